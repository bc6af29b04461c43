"""The contrastive losses through the kernels, in the interpreter, against the torch definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrobust import info_nce_loss, nt_xent_loss, sup_con_loss
from mmrobust._kernels import is_interpreted

pytestmark = pytest.mark.skipif(not is_interpreted(), reason="needs Triton's interpreter")

LABELS = torch.arange(70) % 5
PRESENT = torch.arange(70) % 7 != 3
CASES: dict[str, Callable[..., Tensor]] = {
    "sup_con": lambda x, y, **options: sup_con_loss(x, LABELS, **options),
    "sup_con with keys": lambda x, y, **options: sup_con_loss(
        x, LABELS, keys=y[:45], key_labels=LABELS[:45], key_present=PRESENT[:45], present=PRESENT, **options
    ),
    "nt_xent": lambda x, y, **options: nt_xent_loss(x, y, present=PRESENT, **options),
    "info_nce": lambda x, y, **options: info_nce_loss(x, y, present=PRESENT, **options),
    "info_nce one way": lambda x, y, **options: info_nce_loss(
        x, y[:70], symmetric=False, negatives=x.detach()[:30] + 1.0, **options
    ),
}


def run(loss: Callable[..., Tensor], dtype: torch.dtype, **options: Any) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x, y = (torch.randn(70, 24, dtype=torch.float64).to(dtype) for _ in range(2))
    x[4] = 0.0  # without a direction
    temperature = torch.tensor(options.pop("temperature"), requires_grad=True)
    x.requires_grad_()
    y.requires_grad_()
    value = loss(x, y, temperature=temperature, **options)
    gradients = torch.autograd.grad(value, (x, y, temperature), allow_unused=True)
    return value.detach(), *(g for g in gradients if g is not None)


@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize("name", CASES)
def test_losses_agree_with_the_definition(name: str, temperature: float) -> None:
    got = run(CASES[name], torch.float32, temperature=temperature, impl="triton")
    want = run(CASES[name], torch.float64, temperature=temperature, impl="torch")
    for a, b in zip(got, want, strict=True):
        scale = max(float(b.abs().max()), 1e-6)
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_units_only(dtype: torch.dtype) -> None:
    got = run(CASES["sup_con"], dtype, temperature=0.2, impl="triton")
    want = run(CASES["sup_con"], dtype, temperature=0.2, impl="torch")
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got[0], want[0], rtol=5e-3, atol=0.0)
    for a, b in zip(got[1:], want[1:], strict=True):
        assert (a.double() - b.double()).norm() <= 0.05 * b.double().norm()


def test_float64_has_no_kernel() -> None:
    with pytest.raises(RuntimeError, match=r"sup_con_loss: impl='triton' cannot run: .*float64"):
        sup_con_loss(torch.randn(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.long), impl="triton")
