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
    assert torch.allclose(y[y != 0], torch.tensor(1 / (1 - p), dtype=torch.float64), rtol=1e-3)
    assert abs(y.mean().item() - 1) < 5 * math.sqrt(p / (1 - p) / x.numel())
    # Neighbours come from the same 64 bits and must not know of each other.
    for step in (1, 2, 3, 4):
        both = (lost[:, step:] * lost[:, :-step]).mean().item()
        assert abs(both - p * p) < 6 * p / math.sqrt(x.numel())


@pytest.mark.parametrize("p", [1e-6, 1 - 1e-6])
def test_extreme_rates_never_wrap_around_and_keep_the_mean(p: float) -> None:
    torch.manual_seed(0)
    y = masked_dropout(torch.ones(1000, 4000), None, nn.Dropout(p))
    assert abs((y == 0).float().mean().item() - p) < 1e-4
    assert abs(y.double().mean().item() - 1) < 0.5


def test_nan_of_a_present_row_is_never_hidden() -> None:
    y = masked_dropout(torch.full((2, 64), torch.nan), torch.tensor([True, False]), nn.Dropout(0.5))
    assert y[0].isnan().all() and (y[1] == 0).all()


def test_what_is_no_plain_dropout_is_called_itself() -> None:
    x, calls = torch.ones(2, 8), []
    assert torch.equal(masked_dropout(x, None, nn.Identity()), x)
    hooked = nn.Dropout(0.5)
    hooked.register_forward_hook(lambda *_: calls.append(1))
    masked_dropout(x, None, hooked)
    assert calls == [1]
    drawn = torch.func.vmap(lambda row: masked_dropout(row, None, nn.Dropout(0.5)), randomness="different")(x[:, None])
    assert drawn.shape == (2, 1, 8)


def test_the_default_device_does_not_matter() -> None:
    with torch.device("meta"):
        assert masked_dropout(torch.ones(2, 8, device="cpu"), None, nn.Dropout(0.5)).device.type == "cpu"


def test_absent_rows_are_unread_with_zero_gradient() -> None:
    x = torch.ones(4, 9)
    x[1] = torch.nan
    x.requires_grad_()
    y = masked_dropout(x, torch.tensor([True, False, True, True]), nn.Dropout(0.5))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert (y[1] == 0).all() and (gradient[1] == 0).all()
    torch.testing.assert_close(gradient[[0, 2, 3]], y[[0, 2, 3]].detach())


def test_eval_mode_changes_and_draws_nothing() -> None:
    x, state = torch.randn(3, 5), torch.get_rng_state()
    assert torch.equal(masked_dropout(x, None, nn.Dropout(0.5).eval()), x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (2, 0)])
def test_small_shapes(shape: tuple[int, int]) -> None:
    assert masked_dropout(torch.ones(shape), None, nn.Dropout(0.5)).shape == shape
