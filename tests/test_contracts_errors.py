"""Contracts on wrong input, on the rows themselves, and on the reasons for skipping."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable

import pytest
import torch
from torch import nn

import mmrobust
import tests
from tests.components import CHECKS, REASONS, ROWS, contract
from tests.contract import Inputs, Row, call, draw, loss_of, make, signature, tensors, tree_map

# Public names without a row -> why.
NOT_COMPONENTS: dict[str, str] = {
    "add_noise": "random by nature: tests/test_presence.py measures what it does",
    "scale_rows": "random by nature: tests/test_presence.py measures what it does",
    "shuffle_rows": "random by nature: tests/test_presence.py measures what it does",
    "drop_frames": "random by nature: tests/test_presence.py measures what it does",
    "random_presence": "random by nature: tests/test_presence.py measures what it does",
    "reparameterize": "random by nature: tests/test_encoders.py measures what it does",
    "ClassBalancedBatchSampler": "makes batches, of no tensor: tests/test_data.py",
    "MemoryBank": "is nothing but state: tests/test_memory.py holds it to the same contract",
    "cached_encode": "takes an encoder, and computes nothing but what that does: tests/test_gradient_cache.py",
    "subspace_residual": "takes bases, which have no batch: tests/test_prototypes.py",
    "orthonormality_penalty": "takes bases, which have no batch: tests/test_prototypes.py",
    "subspace_separation": "takes bases, which have no batch: tests/test_prototypes.py",
    "all_presence_patterns": "takes no tensor: tests/test_presence.py lists its values",
}


@contract("wrong-inputs")
def test_wrong_inputs(row: Row) -> None:
    """At least three wrong uses: the right exception, naming the component, the argument, what was given, what fits."""
    assert len(row.wrong) >= 3, f"{row.name} lists {len(row.wrong)} wrong uses"
    for wrong in row.wrong:
        with pytest.raises((ValueError, TypeError)) as caught:
            wrong.use(make(row, dtype=torch.float32), draw(row, dtype=torch.float32))
        assert caught.type is wrong.error, f"{wrong.id}: {caught.type.__name__}"
        message = str(caught.value)
        assert message.startswith((f"{row.public}: ", f"{row.also or row.public}: ")), f"{wrong.id}: {message}"
        for piece in (*wrong.says, "got"):
            assert piece in message, f"{wrong.id}: {piece!r} is missing in {message!r}"
        assert "\n" not in message


@contract("row-inputs")
def test_row_is_honest(row: Row) -> None:
    """The masks that a row names are masks of the component, and hold both values."""
    inputs = draw(row)
    parameters = signature(make(row))
    takes = _mask_names(parameters)
    assert set(row.masks) <= takes
    assert bool(takes) == bool(row.masks), f"takes the masks {takes}"
    assert set(inputs) <= set(parameters)
    for name in row.masks:
        flat = torch.cat([mask.flatten() for _, mask in tensors(inputs[name])])
        assert flat.dtype == torch.bool
        assert flat.any()
        assert not flat.all()


def _mask_names(parameters: Iterable[str]) -> set[str]:
    return {name for name in parameters if name in {"mask", "masks"} or name.endswith("present")}


def _public() -> dict[str, object]:
    return {name: getattr(mmrobust, name) for name in mmrobust.__all__ if not name.startswith("__")}


def test_every_public_component_has_a_row() -> None:
    covered = {row.public for row in ROWS} | {row.also for row in ROWS}
    for name, thing in _public().items():
        if inspect.ismodule(thing) or (inspect.isclass(thing) and issubclass(thing, tuple)):
            continue  # the functions once more; and the NamedTuples, which are what components return
        assert name in covered | set(NOT_COMPONENTS), f"{name} has no row in tests/components.py"


def test_excused_names_are_not_stale() -> None:
    for name, why in NOT_COMPONENTS.items():
        assert name in _public(), f"{name} is no longer public"
        assert name not in {row.public for row in ROWS} | {row.also for row in ROWS}, f"{name} has a row by now"
        assert why


def test_modules_of_rows_are_what_they_say() -> None:
    for row in ROWS:
        thing = _public()[row.public]
        if inspect.isclass(thing) and issubclass(thing, nn.Module):
            assert type(make(row)) is thing, row.name


def test_row_names_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.fixture(scope="module")
def checks() -> dict[str, list[str]]:
    for module in pkgutil.iter_modules(tests.__path__):
        if module.name.startswith("test_contracts_"):
            importlib.import_module(f"tests.{module.name}")
    return CHECKS


def test_skip_reasons_are_not_stale(checks: dict[str, list[str]]) -> None:
    """Every reason excuses a row, none excuses all, and each names checks that exist."""
    for name, reason in REASONS.items():
        assert reason.checks <= set(checks), f"{name} names unknown checks {sorted(reason.checks - set(checks))}"
        excused = [row.name for row in ROWS if reason.applies(row)]
        assert excused, f"{name} excuses nothing any more"
        assert len(excused) < len(ROWS), f"{name} excuses everything"


def test_every_check_runs_somewhere(checks: dict[str, list[str]]) -> None:
    assert len(checks) >= 25
    for check, rows in checks.items():
        assert rows, f"{check} runs on no row"


def with_all_grads(inputs: Inputs) -> Inputs:
    return tree_map(lambda x: x.requires_grad_() if x.is_floating_point() else x, inputs)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_fixed_arguments_take_no_gradient(training: bool) -> None:
    """What a row names as fixed is detached inside, whatever the caller has switched on."""
    for row in ROWS:
        inputs = with_all_grads({name: value for name, value in draw(row).items() if name in row.fixed})
        total = loss_of(call(make(row).train(training), {**draw(row), **inputs}))
        if total.requires_grad:
            total.backward()
        assert all(x.grad is None for _, x in tensors(inputs)), row.name


def test_reasons_hold_in_fact() -> None:
    """What a reason says about a row is read off the component, not only off the row."""
    for row in ROWS:
        outputs = call(make(row), draw(row))
        assert row.integer == (not any(out.is_floating_point() for out in outputs.values())), row.name
        assert row.masks or not _mask_names(signature(make(row))), f"{row.name} does take a mask"
        if row.detached:
            assert not any(out.requires_grad for out in call(make(row), with_all_grads(draw(row))).values()), row.name
        assert not row.fits or (row.detached and not row.per_row and not list(make(row).parameters())), row.name
        if row.graph_breaks:
            assert any(isinstance(m, nn.RNNBase) for m in make(row).modules()), f"{row.name} holds no LSTM"
