"""Contracts on values: references, derivatives, precision, extremes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.components import contract
from tests.contract import (
    Row,
    Size,
    assert_close,
    assert_finite,
    call,
    cast,
    draw,
    gradients,
    loss_of,
    make,
    numpy_tree,
    tensors,
    with_grad,
)

pytestmark = pytest.mark.filterwarnings("ignore:CPU autocast:UserWarning")


def reference(row: Row, module: torch.nn.Module, inputs: dict[str, object], keys: list[str]) -> dict[str, torch.Tensor]:
    """Evaluate the NumPy reference on the values that the component really gets, as float64."""
    assert row.reference is not None, f"{row.name} has no reference"
    state = {key: value.double().numpy() for key, value in module.state_dict().items()}
    found = row.reference(state, **numpy_tree(inputs))
    parts = found if isinstance(found, tuple) else (found,)
    parts = tuple(part for part in parts if part is not None)
    assert len(parts) == len(keys), f"{row.name}: {len(parts)} reference outputs for {keys}"
    return {key: torch.as_tensor(np.asarray(part)) for key, part in zip(keys, parts, strict=True)}


@contract("reference")
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_reference(row: Row, dtype: torch.dtype, tolerance: float, seed: int) -> None:
    module, inputs = make(row, dtype=dtype, seed=seed), draw(row, Size(batch=5), dtype, seed)
    got = call(module, inputs)
    want = reference(row, module, inputs, list(got))
    for name in got:
        assert got[name].shape == want[name].shape, f"{name}: {got[name].shape} against {want[name].shape}"
    scale = max([1.0, *(float(value.detach().double().abs().max()) for value in want.values() if value.numel())])
    assert_close(got, want, rtol=tolerance, atol=tolerance * scale)


@contract("module-is-function")
def test_module_is_function(row: Row) -> None:
    module, inputs = make(row), draw(row)
    assert row.function is not None
    torch.manual_seed(0)
    assert_close(call(module, inputs), dict(tensors(row.function(module, inputs))), rtol=0.0, atol=0.0)


@contract("gradcheck")
def test_gradcheck(row: Row) -> None:
    """Central differences against autograd, for inputs and parameters, with masks and an all-absent row."""
    size = Size(batch=3, steps=3)
    module, inputs = make(row, size), with_grad(row, draw(row, size))
    whole = {name: value for name, value in inputs.items() if name not in row.partly}
    leaves = [x for _, x in tensors(whole) if x.requires_grad] + list(module.parameters())

    def scalar(*_: torch.Tensor) -> torch.Tensor:
        return loss_of(call(module, inputs))

    total = scalar()
    assert torch.autograd.gradcheck(scalar, leaves, eps=1e-6, atol=2e-6, rtol=1e-4, fast_mode=len(leaves) > 4)
    assert total.isfinite()


@contract("dtype")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_output_dtype(row: Row, dtype: torch.dtype) -> None:
    """Feature functions keep the dtype; losses widen to float32 (float64 for float64)."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name, out in call(make(row, dtype=dtype), draw(row, dtype=dtype)).items():
        if out.is_floating_point():
            want = wide if not row.per_row or name in row.wide else dtype
            assert out.dtype == want, f"{name}: {out.dtype}"


@contract("half")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision(row: Row, dtype: torch.dtype) -> None:
    """Half precision is finite, and close to float64 on the same rounded numbers."""
    module, inputs = make(row, dtype=dtype), draw(row, dtype=dtype)
    got, grads = gradients(row, module, inputs)
    want = call(make(row, dtype=dtype).double(), cast(inputs, torch.float64))
    assert_finite(got)
    assert_finite(grads)
    tolerance = row.half_factor * torch.finfo(dtype).eps
    for name in want:
        if not want[name].is_floating_point():
            continue
        scale = max(1.0, float(want[name].detach().abs().max()))
        assert_close({name: got[name]}, {name: want[name]}, rtol=0.0, atol=tolerance * scale)


@contract("autocast")
def test_autocast(row: Row) -> None:
    """Under bf16 autocast a float32 model stays finite and close, and exp, log and sums stay in float32."""
    module, inputs = make(row, dtype=torch.float32), draw(row, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = gradients(row, module, inputs)
    want = call(make(row, dtype=torch.float32), inputs)
    assert_finite(got)
    assert_finite(grads)
    tolerance = row.half_factor * torch.finfo(torch.bfloat16).eps
    for name in want:
        scale = max(1.0, float(want[name].detach().double().abs().max()))
        assert_close({name: got[name]}, {name: want[name]}, rtol=0.0, atol=tolerance * scale)
        if want[name].is_floating_point() and (not row.per_row or name in row.wide):
            assert got[name].dtype == torch.float32


@contract("extremes")
def test_extremes(row: Row) -> None:
    """Outputs and gradients stay finite at the named extremes, in float32."""
    for label, change in row.extremes.items():
        inputs = change(draw(row, dtype=torch.float32))
        outputs, grads = gradients(row, make(row, dtype=torch.float32), inputs)
        assert_finite(outputs, label)
        assert_finite(grads, label)


@contract("labels")
def test_label_degeneracies(row: Row) -> None:
    """One class only, one label only, no label: finite, and 0 with zero gradients where nothing counts."""
    module, inputs = make(row), draw(row)
    assert row.labels is not None
    ignored = torch.full_like(inputs[row.labels], -100)
    one = torch.where(torch.arange(len(ignored)) == 1, 0, ignored)
    for label, target in {"one class": torch.zeros_like(ignored), "one label": one, "none": ignored}.items():
        outputs, grads = gradients(row, module, {**inputs, row.labels: target})
        assert_finite(outputs, label)
        assert_finite(grads, label)
        if label == "none":
            assert all((value == row.unlabelled).all() for value in outputs.values())
            assert not any(value.any() for value in grads.values())
