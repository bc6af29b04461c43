"""Fusion beyond the contracts: limits, invariances, closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmrobust import (
    AttentionFusion,
    GatedUncertaintyFusion,
    UncertaintyWeightedFusion,
    fused_std,
    uncertainty_weights,
    weighted_sum,
)
from tests.references import fusion as reference

PATTERNS = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=5)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def _std(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(0.2, 3.0, shape))


@pytest.mark.parametrize("per_dimension", [False, True])
@pytest.mark.parametrize("weighting", ["precision", "softmax_inverse_std"])
@settings(max_examples=20)
@given(rows=PATTERNS, seed=st.integers(0, 99))
def test_weights_are_a_distribution_over_what_is_present(
    weighting: str, per_dimension: bool, rows: list[list[bool]], seed: int
) -> None:
    present = torch.tensor(rows)
    weights = uncertainty_weights(
        _std(len(rows), 3, 4, seed=seed), present, weighting=weighting, per_dimension=per_dimension
    )
    keep = present[..., None].expand_as(weights) if per_dimension else present
    assert (weights[~keep] == 0).all()
    assert (weights[keep] > 0).all()
    total = present.any(1).double()
    torch.testing.assert_close(weights.sum(1), total[:, None].expand(-1, 4) if per_dimension else total)


@settings(max_examples=20)
@given(scale=st.floats(1e-20, 1e20), power=st.floats(0.1, 4.0), seed=st.integers(0, 99))
def test_precision_weights_have_no_scale(scale: float, power: float, seed: int) -> None:
    """All stds times a constant: the same weights. The published form turns from even to one-hot."""
    std = _std(3, 3, 4, seed=seed)
    torch.testing.assert_close(
        uncertainty_weights(std * scale, power=power), uncertainty_weights(std, power=power), rtol=1e-9, atol=1e-12
    )


def test_the_published_weights_have_a_scale() -> None:
    """std 0.05 against 0.06 gives 0.93 of the weight, 0.9 against 1.0 only 0.36."""
    for stds, want in (((0.05, 0.06, 0.06), 0.93), ((0.9, 1.0, 1.0), 0.36)):
        std = torch.tensor(stds).reshape(1, 3, 1)
        assert abs(float(uncertainty_weights(std, weighting="softmax_inverse_std")[0, 0]) - want) < 0.005
    ratio = torch.tensor([5.0, 6.0]).reshape(1, 2, 1)
    torch.testing.assert_close(uncertainty_weights(ratio), torch.tensor([[36.0, 25.0]]) / 61)


def test_power_two_per_dimension_is_inverse_variance() -> None:
    std = _std(4, 3, 5)
    precision = std**-2
    want = precision / precision.sum(1, keepdim=True)
    torch.testing.assert_close(uncertainty_weights(std, per_dimension=True), want)


def test_temperature_softens_and_sharpens() -> None:
    std = torch.tensor([1.0, 2.0]).reshape(1, 2, 1)
    for weighting in ("precision", "softmax_inverse_std"):
        share = [float(uncertainty_weights(std, weighting=weighting, temperature=t)[0, 0]) for t in (0.01, 1.0, 100.0)]
        assert share[0] > 0.999
        assert share[0] > share[1] > share[2] > 0.5
        assert share[2] < 0.51


@settings(max_examples=20)
@given(rows=PATTERNS, seed=st.integers(0, 99))
def test_product_of_experts_with_a_prior(rows: list[list[bool]], seed: int) -> None:
    """Per dimension, with power 2 and the prior, mean and std are those of the product of the Gaussians."""
    present = torch.tensor(rows)
    mu, std = _normal(len(rows), 3, 4, seed=seed), _std(len(rows), 3, 4, seed=seed)
    fused, weights = UncertaintyWeightedFusion(per_dimension=True, prior_expert=True)(mu, std, present)
    mean, deviation = reference.product_of_experts(mu.numpy(), std.numpy(), present.numpy())
    torch.testing.assert_close(fused, torch.from_numpy(mean), rtol=1e-10, atol=1e-12)
    found = fused_std(std, weights, present, prior_expert=True)
    torch.testing.assert_close(found, torch.from_numpy(deviation), rtol=1e-10, atol=1e-12)
    assert (found[~present.any(1)] == 1).all()


def test_nothing_present_fuses_to_nothing() -> None:
    mu, std, present = _normal(2, 3, 4), _std(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)
    modules = (UncertaintyWeightedFusion(), GatedUncertaintyFusion(4, 3).double())
    for fused, weights in (module(mu, std, present) for module in modules):
        assert (fused == 0).all()
        assert (weights == 0).all()
    assert (fused_std(std, uncertainty_weights(std, present), present) == 0).all()


def test_more_noise_means_less_weight() -> None:
    std = torch.stack([torch.ones(50), torch.linspace(0.1, 10, 50)], dim=1)[..., None]
    for weighting in ("precision", "softmax_inverse_std"):
        share = uncertainty_weights(std, weighting=weighting)[:, 1]
        assert (share.diff() < 0).all()


class TestGate:
    @pytest.mark.parametrize("per_dimension", [False, True])
    def test_alpha_one_is_uncertainty_alone(self, per_dimension: bool) -> None:
        mu, std, present = _normal(5, 3, 4), _std(5, 3, 4), torch.rand(5, 3) < 0.7
        gated = GatedUncertaintyFusion(4, 3, alpha=1.0, per_dimension=per_dimension).double().eval()
        plain = UncertaintyWeightedFusion(per_dimension=per_dimension)
        for got, want in zip(gated(mu, std, present), plain(mu, std, present), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)

    def test_alpha_zero_is_the_gate_alone(self) -> None:
        mu, present = _normal(5, 3, 4), torch.rand(5, 3) < 0.7
        gated = GatedUncertaintyFusion(4, 3, alpha=0.0).double().eval()
        first, second = (gated(mu, _std(5, 3, 4, seed=seed), present) for seed in (1, 2))
        assert torch.equal(first.weights, second.weights)
        torch.testing.assert_close(first.weights.sum(1), present.any(1).double())

    def test_gate_logits_are_masked_before_the_softmax(self) -> None:
        """What is left shares the whole: a gate that loved the absent modality does not starve the others."""
        gated = GatedUncertaintyFusion(4, 3, alpha=0.0).eval()
        with torch.no_grad():
            gated.gate[-1].weight.zero_()
            gated.gate[-1].bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
        weights = gated(torch.randn(1, 3, 4), torch.ones(1, 3, 4), torch.tensor([[False, True, True]])).weights
        assert weights.tolist() == [[0.0, 0.5, 0.5]]

    def test_learned_alpha_moves_and_stays_inside(self) -> None:
        gated = GatedUncertaintyFusion(4, 2, alpha=0.9, learn_alpha=True)
        assert abs(float(gated.alpha.detach()) - 0.9) < 1e-6
        optimizer = torch.optim.SGD([gated.alpha_logit], lr=100.0)
        mu, std = torch.randn(8, 2, 4), torch.rand(8, 2, 4) + 0.1
        for _ in range(20):
            optimizer.zero_grad()
            gated(mu, std).weights[:, 0].sum().backward()
            optimizer.step()
        assert 0 <= float(gated.alpha.detach()) <= 1
        assert abs(float(gated.alpha.detach()) - 0.9) > 0.01
        assert "alpha_logit" not in dict(GatedUncertaintyFusion(4, 2).named_parameters())


class TestAttentionFusion:
    def test_raw_weights_may_be_negative_and_sum_to_anything(self) -> None:
        torch.manual_seed(0)
        weights = AttentionFusion(4, 3, normalize="none")(torch.randn(50, 3, 4)).weights
        assert (weights < 0).any()
        assert (weights.sum(1) - 1).abs().min() > 1e-3

    def test_softmax_is_over_what_is_present(self) -> None:
        present = torch.rand(50, 3) < 0.6
        weights = AttentionFusion(4, 3)(torch.randn(50, 3, 4), present).weights
        assert torch.equal(weights > 0, present)
        torch.testing.assert_close(weights.sum(1), present.any(1).float())


@settings(max_examples=20)
@given(rows=PATTERNS, fill=st.sampled_from([float("nan"), float("inf"), -3.0, 1e38]))
def test_absent_values_change_no_bit(rows: list[list[bool]], fill: float) -> None:
    present = torch.tensor(rows)
    x, keep = torch.randn(len(rows), 3, 4), torch.tensor(rows)[..., None]
    spoilt, std = torch.where(keep, x, fill), torch.rand(len(rows), 3, 4) + 0.1
    other = torch.where(keep, std, fill)
    for module in (UncertaintyWeightedFusion(prior_expert=True), GatedUncertaintyFusion(4, 3).eval()):
        for got, want in zip(module(spoilt, other, present), module(x, std, present), strict=True):
            assert torch.equal(got, want)
    attention = AttentionFusion(4, 3).eval()
    for got, want in zip(attention(spoilt, present), attention(x, present), strict=True):
        assert torch.equal(got, want)


def test_a_sequence_of_modalities_is_stacked() -> None:
    mu, std = torch.randn(4, 3, 5), torch.rand(4, 3, 5) + 0.1
    whole = UncertaintyWeightedFusion()(mu, std)
    parts = UncertaintyWeightedFusion()(tuple(mu.unbind(1)), list(std.unbind(1)))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    weights = torch.rand(4, 3)
    assert torch.equal(weighted_sum(list(mu.unbind(1)), weights), weighted_sum(mu, weights))


def test_fused_std_neither_overflows_nor_underflows() -> None:
    for size in (1e-30, 1.0, 1e30):
        std = torch.full((1, 2, 3), size)
        torch.testing.assert_close(fused_std(std, torch.full((1, 2), 0.5)), std[:, 0] / 2**0.5)
