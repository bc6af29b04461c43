"""Contracts on masks and shapes: what is absent is never read, and every size that can occur works."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.components import contract
from tests.contract import (
    Row,
    Size,
    along_batch,
    assert_close,
    assert_equal,
    assert_finite,
    call,
    draw,
    gradients,
    make,
    tensors,
    tree_map,
)

FILLS = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf"), "1e38": 1e38}


def fill_unread(row: Row, inputs: dict, value: float) -> dict:
    """Write ``value`` wherever the component must not read."""
    assert row.real is not None
    real = row.real(inputs)
    return {
        key: tree_map(lambda x, keep: torch.where(keep, x, value), inputs[key], real[key])
        if key in real
        else inputs[key]
        for key in inputs
    }


@contract("unread")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_absent_is_unread(row: Row, training: bool, dtype: torch.dtype) -> None:
    """NaN, Inf and 1e38 under every False: bit-equal outputs and parameter gradients, zero input gradients."""
    module, inputs = make(row, dtype=dtype).train(training), draw(row, Size(batch=6), dtype)
    clean, clean_grads = gradients(row, module, fill_unread(row, inputs, 0.0))
    assert_finite(clean)
    real = dict(tensors(row.real(inputs)))
    assert any((~keep).any() for keep in real.values()), "the row has nothing absent"
    for label, value in FILLS.items():
        outputs, grads = gradients(row, module, fill_unread(row, inputs, value))
        assert_equal(outputs, clean, label)
        assert_equal(grads, clean_grads, label)
        for name, keep in real.items():
            if f"input.{name}" in grads:
                assert (grads[f"input.{name}"][~keep] == 0).all(), f"{label} {name}: gradient where nothing is read"


@contract("all-absent")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_all_absent(row: Row, training: bool) -> None:
    """Nothing present in the whole batch: finite outputs, finite gradients, and no gradient into the inputs."""
    inputs = draw(row)
    inputs |= {name: tree_map(torch.zeros_like, inputs[name]) for name in row.masks}
    inputs = inputs if row.nothing is None else row.nothing(inputs)
    module = make(row).train(training)
    outputs, grads = gradients(row, module, fill_unread(row, inputs, float("nan")) if row.real else inputs)
    assert_finite(outputs)
    assert_finite(grads)
    if row.real:
        real = dict(tensors(row.real(inputs)))
        for name, keep in real.items():
            assert (grads.get(f"input.{name}", torch.zeros(keep.shape))[~keep] == 0).all(), name


@contract("integer-mask")
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_integer_masks(row: Row, dtype: torch.dtype) -> None:
    """Masks of 0 and 1 do what bool masks do."""
    module, inputs = make(row), draw(row)
    want = call(module, inputs)
    whole = {k: tree_map(lambda m: m.to(dtype), v) if k in row.masks else v for k, v in inputs.items()}
    assert_equal(call(module, whole), want)


@contract("mask-none")
def test_no_mask_means_all_real(row: Row) -> None:
    module, inputs = make(row), draw(row)
    ones = {k: tree_map(torch.ones_like, v) if k in row.masks else v for k, v in inputs.items()}
    none = {k: None if k in row.masks else v for k, v in inputs.items()}
    assert_close(call(module, none), call(module, ones), rtol=1e-12, atol=1e-12)


@contract("row-independence")
def test_rows_are_independent(row: Row) -> None:
    """Row i alone is row i of a batch."""
    module, inputs = make(row), draw(row, Size(batch=5))
    whole = call(module, inputs)
    for index in range(5):
        alone = call(module, along_batch(row, lambda x, axis, i=index: x.narrow(axis, i, 1), inputs))
        names = [name for name in whole if name not in row.scalars]
        assert_close(
            {n: alone[n] for n in names},
            {n: whole[n].narrow(row.axis("out"), index, 1) for n in names},
            rtol=1e-11,
            atol=1e-11,
        )


@contract("row-permutation")
def test_batch_order_does_not_matter(row: Row) -> None:
    module, inputs = make(row), draw(row, Size(batch=6))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    got = call(module, along_batch(row, lambda x, axis: x.index_select(axis, order), inputs))
    axis = row.axis("out")
    want = {k: v.index_select(axis, order) if v.dim() and row.per_row else v for k, v in call(module, inputs).items()}
    assert_close(got, want, rtol=1e-11, atol=1e-11)


@contract("batch-sizes")
@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_batch_sizes(row: Row, batch: int, training: bool) -> None:
    """Batches of none and of one have defined, finite values, attached to the graph."""
    module, inputs = make(row).train(training), draw(row, Size(batch=batch))
    if batch < row.smallest:
        with pytest.raises(ValueError, match=f"{row.public}: "):
            call(module, inputs)
        return
    outputs, grads = gradients(row, module, inputs)
    assert_finite(outputs)
    assert_finite(grads)
    for name, out in outputs.items():
        if row.per_row and name not in row.scalars:
            assert out.shape[row.axis("out")] == batch, f"{name}: {tuple(out.shape)}"


@contract("modality-counts")
@pytest.mark.parametrize("modalities", [1, 2, 12])
def test_modality_counts(row: Row, modalities: int) -> None:
    size = Size(modalities=modalities)
    outputs, grads = gradients(row, make(row, size), draw(row, size))
    assert_finite(outputs)
    assert_finite(grads)


@contract("single-step")
@pytest.mark.parametrize("steps", [1, 2])
def test_short_sequences(row: Row, steps: int) -> None:
    outputs, grads = gradients(row, make(row), draw(row, Size(steps=steps)))
    assert_finite(outputs)
    assert_finite(grads)


@contract("class-counts")
@pytest.mark.parametrize("classes", [1, 2, 7])
def test_class_counts(row: Row, classes: int) -> None:
    size = Size(classes=classes)
    outputs, grads = gradients(row, make(row, size), draw(row, size))
    assert_finite(outputs)
    assert_finite(grads)


@contract("modality-permutation")
@settings(derandomize=True, max_examples=6, deadline=None)
@given(order=st.permutations(range(4)), seed=st.integers(0, 99))
def test_modality_order_does_not_matter(row: Row, order: list[int], seed: int) -> None:
    assert row.modality_axis is not None
    size, axes = Size(modalities=4), row.modality_axis
    module, inputs = make(row, size), draw(row, size, seed=seed)
    index = torch.tensor(order)

    def permuted(values: dict) -> dict:
        return {
            k: [v[i] for i in order]
            if isinstance(v, list) and k in axes
            else v.index_select(axes[k], index)
            if k in axes and v is not None
            else v
            for k, v in values.items()
        }

    assert_close(call(module, permuted(inputs)), permuted(call(module, inputs)), rtol=1e-11, atol=1e-11)


class _FirstSteps(nn.Module):
    """Cut outputs to the steps there were before padding; those behind have to be zero."""

    def __init__(self, module: nn.Module, steps: int) -> None:
        super().__init__()
        self.module, self.steps = module, steps

    def forward(self, **inputs: Any) -> Any:
        def cut(x: torch.Tensor) -> torch.Tensor:
            assert x.dim() != 3 or not x[:, self.steps :].any()
            return x[:, : self.steps] if x.dim() == 3 else x

        return tree_map(cut, self.module(**inputs))


@contract("padding")
@settings(derandomize=True, max_examples=5, deadline=None)
@given(extra=st.integers(1, 4), seed=st.integers(0, 99))
def test_padding_changes_nothing(row: Row, extra: int, seed: int) -> None:
    """Appending steps that the mask marks as no steps leaves outputs and parameter gradients as they were."""
    assert row.pad is not None
    module, inputs = make(row), draw(row, seed=seed)
    if row.per_step:
        module = _FirstSteps(module, Size().steps)
    outputs, grads = gradients(row, module, row.pad(inputs, 0))
    longer, longer_grads = gradients(row, module, row.pad(inputs, extra))
    assert_close(longer, outputs, rtol=1e-11, atol=1e-11)
    parameters = [name for name in grads if name.startswith("parameter.")]
    assert_close({n: longer_grads[n] for n in parameters}, {n: grads[n] for n in parameters}, rtol=1e-9, atol=1e-11)


def _strided(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x, torch.zeros_like(x)], dim=-1)[..., 0]


@contract("strides")
def test_strided_inputs(row: Row) -> None:
    """Non-contiguous inputs give what contiguous ones give."""
    module, inputs = make(row), draw(row)
    strided = {key: tree_map(_strided, value) for key, value in inputs.items()}
    assert_close(call(module, strided), call(module, inputs), rtol=1e-12, atol=1e-12)


@contract("expanded")
def test_expanded_inputs(row: Row) -> None:
    """Inputs that share memory between rows give what copies give: nothing is written in place."""
    module, inputs = make(row), draw(row)

    def thrice(x: torch.Tensor, axis: int) -> torch.Tensor:
        return x.narrow(axis, -1, 1).expand(*x.shape[:axis], 3, *x.shape[axis + 1 :])

    shared = along_batch(row, thrice, inputs)
    copies = {key: tree_map(lambda x: x.contiguous().clone(), value) for key, value in shared.items()}
    assert_close(call(module, shared), call(module, copies), rtol=1e-12, atol=1e-12)


@contract("unmodified")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_inputs_are_unmodified(row: Row, training: bool) -> None:
    module, inputs = make(row).train(training), draw(row)
    before = {name: x.clone() for name, x in tensors(inputs)}
    call(module, inputs)
    assert_equal(dict(tensors(inputs)), before)
