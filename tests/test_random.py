"""Dropout that reads nothing absent: the same distribution as ``nn.Dropout``, drawn from 16 bits per entry."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mmrobust._random import masked_dropout


@pytest.mark.parametrize("p", [0.02, 0.35, 0.5, 0.9])
def test_rate_and_scale(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(301, 1001, dtype=torch.float64)  # no multiple of four
    y = masked_dropout(x, None, nn.Dropout(p))
    lost = (y == 0).double()
    assert abs(lost.mean().item() - p) < 4 * math.sqrt(p * (1 - p) / x.numel()) + 2**-17
    assert torch.allclose(y[y != 0], torch.tensor(1 / (1 - p), dtype=torch.float64))
    # Neighbours come from the same 64 bits and must not know of each other.
    for step in (1, 2, 3, 4):
        both = (lost[:, step:] * lost[:, :-step]).mean().item()
        assert abs(both - p * p) < 6 * p / math.sqrt(x.numel())


@pytest.mark.parametrize("p", [1e-6, 1 - 1e-6])
def test_extreme_rates_never_wrap_around(p: float) -> None:
    torch.manual_seed(0)
    lost = (masked_dropout(torch.ones(100, 1000), None, nn.Dropout(p)) == 0).float().mean().item()
    assert abs(lost - p) < 1e-3


def test_absent_rows_are_unread_with_zero_gradient() -> None:
    x = torch.ones(4, 9)
    x[1] = torch.nan
    x.requires_grad_()
    y = masked_dropout(x, torch.tensor([True, False, True, True]), nn.Dropout(0.5))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert (y[1] == 0).all() and (gradient[1] == 0).all()
    assert torch.equal(gradient[[0, 2, 3]], y[[0, 2, 3]].detach())


def test_eval_mode_changes_and_draws_nothing() -> None:
    x, state = torch.randn(3, 5), torch.get_rng_state()
    assert torch.equal(masked_dropout(x, None, nn.Dropout(0.5).eval()), x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (2, 0)])
def test_small_shapes(shape: tuple[int, int]) -> None:
    assert masked_dropout(torch.ones(shape), None, nn.Dropout(0.5)).shape == shape
