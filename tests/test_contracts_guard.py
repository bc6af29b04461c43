"""The contracts can fail: a sound stand-in passes them, and each broken one fails the check that is meant for it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests import broken
from tests import test_contracts_compile as compiling
from tests import test_contracts_errors as errors
from tests import test_contracts_masks as masks
from tests import test_contracts_numerics as numerics
from tests import test_contracts_state as state

BROKEN: list[tuple[type[broken.Sound], Callable[..., None], dict[str, Any]]] = [
    (broken.Multiplies, masks.test_absent_is_unread, {"training": False, "dtype": torch.float64}),
    (broken.WhereAfterLinear, masks.test_absent_is_unread, {"training": True, "dtype": torch.float32}),
    (broken.ReadsAbsent, masks.test_absent_is_unread, {"training": False, "dtype": torch.float64}),
    (broken.EmptyIsNaN, masks.test_all_absent, {"training": False}),
    (broken.InvertsIntegers, masks.test_integer_masks, {"dtype": torch.int64}),
    (broken.NoneIsAbsent, masks.test_no_mask_means_all_real, {}),
    (broken.BatchStatistics, masks.test_rows_are_independent, {}),
    (broken.RowNumber, masks.test_batch_order_does_not_matter, {}),
    (broken.EmptyBatch, masks.test_batch_sizes, {"batch": 0, "training": False}),
    (broken.OneModality, masks.test_modality_counts, {"modalities": 1}),
    (broken.OrderCounts, masks.test_modality_order_does_not_matter, {"order": [1, 0, 3, 2], "seed": 0}),
    (broken.DividesByAll, masks.test_padding_changes_nothing, {"extra": 2, "seed": 0}),
    (broken.ReadsMemory, masks.test_strided_inputs, {}),
    (broken.ReadsMemory, masks.test_expanded_inputs, {}),
    (broken.WritesInput, masks.test_inputs_are_unmodified, {"training": False}),
    (broken.SlightlyOff, numerics.test_reference, {"dtype": torch.float64, "tolerance": 1e-10, "seed": 0}),
    (broken.Detached, numerics.test_gradcheck, {}),
    (broken.Widens, numerics.test_output_dtype, {"dtype": torch.float64}),
    (broken.Overflows, numerics.test_half_precision, {"dtype": torch.float16}),
    (broken.Squares, numerics.test_extremes, {}),
    (broken.DrawsInEval, state.test_eval_is_deterministic_and_draws_nothing, {}),
    (broken.DrawsForNothing, state.test_eval_is_deterministic_and_draws_nothing, {}),
    (broken.TrainsOtherwise, state.test_training_computes_the_same, {}),
    (broken.PlainState, state.test_state_dict_round_trip, {}),
    (broken.SharedCopy, state.test_deepcopy_and_pickle, {}),
    (broken.NeedsValues, state.test_meta_device, {}),
    (broken.KeepsState, state.test_eight_threads_share_one_eval_module, {}),
    (broken.SquareMemory, state.test_memory_kept_for_backward, {}),
    (broken.BranchesOnValues, compiling.test_compiles_to_one_graph, {}),
    (broken.SpecialisesOnBatch, compiling.test_exports_with_dynamic_batch, {}),
    (broken.ChecksNothing, errors.test_wrong_inputs, {}),
]
RAISES = (
    AssertionError,
    RuntimeError,  # gradcheck, meta tensors, values that a graph may not read
    pytest.fail.Exception,  # pytest.raises without an error
    torch._dynamo.exc.TorchDynamoException,
)


@pytest.mark.parametrize(("kind", "check", "options"), BROKEN, ids=[f"{k.__name__}-{c.__name__}" for k, c, _ in BROKEN])
@pytest.mark.filterwarnings("ignore")
def test_a_broken_component_fails(
    kind: type[broken.Sound], check: Callable[..., None], options: dict[str, Any]
) -> None:
    """The sound stand-in passes the check that the broken one fails, so it fails for its fault."""
    check = check.hypothesis.inner_test if hasattr(check, "hypothesis") else check  # one example, no shrinking
    check(row=broken.SOUND, **options)
    torch._dynamo.reset()
    with pytest.raises(RAISES):
        check(row=dataclasses.replace(broken.SOUND, build=lambda size: kind()), **options)


def test_the_guard_covers_the_checks() -> None:
    """Every check that runs without a GPU has a broken stand-in, apart from those named here."""
    unguarded = {"test_golden_keys", "test_repr", "test_to_dtype", "test_row_is_honest", "test_autocast"}
    unguarded |= {"test_cuda_parity", "test_no_host_sync", "test_inductor", "test_compiles_in_training"}
    unguarded |= {"test_module_is_function", "test_label_degeneracies", "test_short_sequences", "test_class_counts"}
    unguarded |= {"test_training_draws_from_the_seed", "test_lstm_compiles_without_fullgraph"}
    guarded = {check.__name__ for _, check, _ in BROKEN}
    modules = (numerics, masks, state, compiling, errors)
    tests = {name: thing for module in modules for name, thing in vars(module).items() if name.startswith("test_")}
    found = {name for name, thing in tests.items() if "row" in inspect.signature(thing).parameters}
    assert len(found) > 35
    assert found - guarded == unguarded
