"""Calibrated confidence: the temperature against scipy, what it does to confidence, and what cannot be fitted."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from mmrobust import TemperatureScaling, fit_temperature
from tests.references import calibration as reference


def overconfident(count: int, factor: float, seed: int = 0, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Draw labels from logits, and tell the logits times a factor: the best temperature is near that factor."""
    source = torch.Generator().manual_seed(seed)
    logits = 2.0 * torch.randn(count, classes, generator=source)
    return factor * logits, torch.multinomial(logits.softmax(1), 1, generator=source).squeeze(1)


@pytest.mark.parametrize("factor", [0.05, 0.7, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("count", [60, 400])
def test_equals_a_minimum_found_by_scipy(factor: float, count: int) -> None:
    logits, target = overconfident(count, factor, count)
    x, y = logits.double().numpy(), target.numpy()
    found = float(fit_temperature(logits.double(), target))
    best = minimize_scalar(
        lambda t: reference.likelihood_loss(x, y, math.exp(t)), bounds=reference.LIMITS, method="bounded"
    )
    assert reference.likelihood_loss(x, y, found) <= best.fun + 1e-9
    assert math.isclose(found, math.exp(best.x), rel_tol=1e-4)
    assert math.isclose(found, float(reference.fit_temperature(x, y)), rel_tol=1e-10)
    assert math.isclose(found, float(fit_temperature(logits, target)), rel_tol=1e-4)


@pytest.mark.parametrize("factor", [0.1, 5.0])
def test_confidence_becomes_the_share_of_right_answers(factor: float) -> None:
    """On new rows, whether the classifier was too sure or not sure enough; its decisions stay."""
    scale = TemperatureScaling()
    scale.fit(*overconfident(4000, factor, 0))
    logits, target = overconfident(4000, factor, 1)
    assert math.isclose(float(scale.temperature), factor, rel_tol=0.1)
    right = (logits.argmax(1) == target).float().mean()
    before, after = (x.softmax(1).amax(1).mean() for x in (logits, scale(logits)))
    assert abs(after - right) < 0.02 < 0.1 < abs(before - right)
    assert torch.equal(scale(logits).argmax(1), logits.argmax(1))
    assert F.cross_entropy(scale(logits), target) < F.cross_entropy(logits, target)


def test_rows_that_do_not_count_are_not_read() -> None:
    logits, target = overconfident(200, 3.0)
    want = fit_temperature(logits, target)
    for label in (-100, -1):
        more = torch.cat([logits, torch.full((9, 4), torch.nan), torch.full((9, 4), torch.inf)])
        labels = torch.cat([target, torch.full((18,), label)])
        assert torch.equal(fit_temperature(more, labels, ignore_index=label), want)


def test_small_integers_do_not_wrap_around() -> None:
    """In eight bits -100 would be the label 156."""
    logits, target = torch.randn(40, 200), torch.full((40,), 156)
    assert torch.equal(fit_temperature(logits, target.to(torch.uint8)), fit_temperature(logits, target))
    assert fit_temperature(logits, target) != 1.0


def test_only_differences_of_logits_count() -> None:
    logits, target = overconfident(200, 2.0)
    shift = 100.0 * torch.randn(200, 1, dtype=torch.float64)
    torch.testing.assert_close(
        fit_temperature(logits.double() + shift, target), fit_temperature(logits.double(), target)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_where_the_best_lies_outside(dtype: torch.dtype) -> None:
    """Always right, always wrong, and everything between: the ends of the range, and never beyond."""
    logits = torch.tensor([[3.0, 0.0], [0.0, 2.0]], dtype=dtype)
    coldest, hottest = fit_temperature(logits, torch.tensor([0, 1])), fit_temperature(logits, torch.tensor([1, 0]))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert coldest.dtype == wide
    for found, limit in ((coldest, 0.01), (hottest, 100.0)):
        torch.testing.assert_close(found, torch.tensor(limit, dtype=wide), rtol=1e-6, atol=0.0)
        assert torch.tensor(0.01, dtype=wide) <= found <= torch.tensor(100.0, dtype=wide)


def test_nothing_to_tell_is_a_temperature_of_one() -> None:
    nothing = [(0, 3), (0, 0), (5, 1), (5, 3)]
    for shape in nothing:
        assert fit_temperature(torch.zeros(shape), torch.zeros(shape[0], dtype=torch.long)) == 1.0
    logits, target = overconfident(20, 2.0)
    assert fit_temperature(logits, torch.full_like(target, -100)) == 1.0


def test_bad_logits_are_seen() -> None:
    """NaN gives NaN; a class ruled out by minus infinity is one that weighs nothing."""
    logits, target = overconfident(50, 2.0)
    assert fit_temperature(torch.where(torch.eye(50, 4) > 0, torch.nan, logits), target).isnan()
    longer = torch.cat([logits, torch.full((50, 1), -torch.inf)], dim=1)
    assert torch.equal(fit_temperature(longer, target), fit_temperature(logits, target))


def test_a_checkpoint_holds_the_temperature() -> None:
    scale, fresh = TemperatureScaling(), TemperatureScaling(3.0)
    scale.fit(*overconfident(100, 2.0))
    file = io.BytesIO()
    torch.save(scale.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh.temperature, scale.temperature)
    assert "temperature=3" in repr(TemperatureScaling(3.0))
    assert not list(scale.parameters())


def test_logits_keep_their_dtype_and_gradient() -> None:
    scale = TemperatureScaling(4.0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = torch.randn(2, 3, 5).to(dtype).requires_grad_()
        y = scale(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y, x / 4.0)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gradient, torch.full_like(x, 0.25))


def test_fitting_passes_no_gradient_and_draws_nothing() -> None:
    logits, target = overconfident(50, 2.0)
    state = torch.get_rng_state()
    found = fit_temperature(logits.requires_grad_(), target.to(torch.int32))
    assert not found.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    scale = TemperatureScaling()
    scale.fit(logits, target)
    assert not scale.temperature.requires_grad
    assert np.isclose(float(scale.temperature), float(found))
