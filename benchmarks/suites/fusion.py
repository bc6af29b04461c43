"""Fusion of M modality vectors into one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness.case import Case, Contender, Problem, Setup, Size
from benchmarks.suites.encoders import linear_flops
from mmrobust import AttentionFusion, GatedUncertaintyFusion, UncertaintyWeightedFusion, fused_std, uncertainty_weights

_TOY = {"B": 4, "M": 3, "H": 5}
_SIZES = (
    Size({"B": 32, "M": 3, "H": 128}),
    Size({"B": 4096, "M": 3, "H": 256}, compile=True),
    Size({"B": 65536, "M": 3, "H": 256}, cpu="full"),
)


def _gaussians(setup: Setup) -> tuple[Tensor, Tensor, Tensor]:
    batch, modalities, width = setup["B M H"]
    spread = setup.normal(batch, modalities, width, scale=0.5, grad=False).exp().requires_grad_()
    return setup.normal(batch, modalities, width), spread, setup.mask(batch, modalities)


def plain_softmax(scores: Tensor, present: Tensor) -> Tensor:
    """Write out a softmax over the modalities of one sample, zero for samples that have none."""
    return torch.softmax(torch.where(present, scores, -1e9), 1) * present


def plain_weights(std: Tensor, present: Tensor, per_dimension: bool) -> Tensor:
    """Write out inverse-variance weights; with one weight per sample the log-variances are averaged over H."""
    known = torch.where(present.unsqueeze(-1), std, 1.0)
    if per_dimension:
        precision = known.square().reciprocal() * present.unsqueeze(-1)
        return precision / precision.sum(1, keepdim=True).clamp(min=1e-30)
    return plain_softmax(-2 * known.log().mean(-1), present)


def blend(mu: Tensor, weights: Tensor, present: Tensor) -> Tensor:
    """Write out the weighted sum of what is present."""
    kept = torch.where(present.unsqueeze(-1), mu, 0.0)
    return (kept * (weights if weights.dim() == 3 else weights.unsqueeze(-1))).sum(1)


def plain_gate(fusion: Any, mu: Tensor, present: Tensor) -> Tensor:
    """Write out the gate: two linear maps over the joined means, and a softmax over what is present."""
    first, dropout, last = fusion.gate[0], fusion.gate[2], fusion.gate[3]
    kept = torch.where(present.unsqueeze(-1), mu, 0.0)
    hidden = F.gelu(F.linear(kept.flatten(1), first.weight, first.bias))
    hidden = F.dropout(hidden, dropout.p, fusion.training)
    return plain_softmax(F.linear(hidden, last.weight, last.bias), present)


def _uncertainty(setup: Setup, per_dimension: bool) -> Problem:
    fusion = setup.module(lambda: UncertaintyWeightedFusion(per_dimension=per_dimension))

    def eager(mu: Tensor, std: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        weights = plain_weights(std, present, per_dimension)
        return blend(mu, weights, present), weights

    contenders = {"ours": Contender(fusion, "ours"), "eager": Contender(eager, "eager")}
    return Problem(contenders, _gaussians(setup), (fusion,))


def build_uncertainty(setup: Setup) -> Problem:
    return _uncertainty(setup, per_dimension=False)


def build_per_dimension(setup: Setup) -> Problem:
    return _uncertainty(setup, per_dimension=True)


def build_published_weights(setup: Setup) -> Problem:
    """Compare the published weights; there the plain form overflows where stds are small, which these are not."""
    _, std, present = _gaussians(setup)

    def ours(std: Tensor, present: Tensor) -> Tensor:
        return uncertainty_weights(std, present, weighting="softmax_inverse_std")

    def eager(std: Tensor, present: Tensor) -> Tensor:
        mean = torch.where(present.unsqueeze(-1), std, 1.0).mean(-1)
        powers = torch.exp(1 / (mean + 1e-6)) * present
        return powers / powers.sum(1, keepdim=True).clamp(min=1e-30)

    contenders = {"ours": Contender(ours, "ours"), "eager": Contender(eager, "eager")}
    return Problem(contenders, (std, present))


def build_fused_std(setup: Setup) -> Problem:
    _, std, present = _gaussians(setup)
    weights = plain_softmax(setup.normal(*setup["B M"], grad=False), present).requires_grad_()

    def eager(std: Tensor, weights: Tensor, present: Tensor) -> Tensor:
        parts = torch.where(present.unsqueeze(-1), weights.unsqueeze(-1) * std, 0.0).square().sum(1)
        some = present.any(1, keepdim=True)
        return torch.where(some, torch.sqrt(torch.where(some, parts, 1.0)), 0.0)

    contenders = {"ours": Contender(fused_std, "ours"), "eager": Contender(eager, "eager")}
    return Problem(contenders, (std, weights, present))


def build_gated(setup: Setup) -> Problem:
    batch, modalities, width = setup["B M H"]
    fusion = setup.module(lambda: GatedUncertaintyFusion(width, modalities, learn_alpha=True, dropout=0.1))

    def eager(mu: Tensor, std: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        gate = plain_gate(fusion, mu, present)
        share = torch.sigmoid(fusion.alpha_logit)
        weights = share * plain_weights(std, present, False) + (1 - share) * gate
        return blend(mu, weights, present), weights

    contenders = {"ours": Contender(fusion, "ours"), "eager": Contender(eager, "eager")}
    return Problem(contenders, _gaussians(setup), (fusion,), stochastic=True, flops=linear_flops(batch, fusion))


def plain_scores(fusion: Any, x: Tensor, present: Tensor) -> Tensor:
    """Write out the MLP that reads one score per modality from all of them together."""
    layers: list[Any] = [layer for layer in fusion.attention if isinstance(layer, nn.Linear)]
    hidden = torch.where(present.unsqueeze(-1), x, 0.0).flatten(1)
    hidden = F.dropout(hidden, fusion.attention[0].p, fusion.training)
    for layer in layers[:-1]:
        hidden = F.relu(F.linear(hidden, layer.weight, layer.bias))
    return F.linear(hidden, layers[-1].weight, layers[-1].bias)


def build_attention(setup: Setup) -> Problem:
    batch, modalities, width = setup["B M H"]
    fusion = setup.module(lambda: AttentionFusion(width, modalities, dropout=0.1))
    mu, _, present = _gaussians(setup)

    def eager(x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        weights = plain_softmax(plain_scores(fusion, x, present), present)
        return blend(x, weights, present), weights

    contenders = {"ours": Contender(fusion, "ours"), "eager": Contender(eager, "eager")}
    return Problem(contenders, (mu, present), (fusion,), stochastic=True, flops=linear_flops(batch, fusion))


_WEIGHTED = ("UncertaintyWeightedFusion", "uncertainty_weights", "weighted_sum")

CASES = (
    Case("UncertaintyWeightedFusion", build_uncertainty, _TOY, _SIZES, _WEIGHTED),
    Case("UncertaintyWeightedFusion per_dimension", build_per_dimension, _TOY, _SIZES, _WEIGHTED),
    Case("uncertainty_weights published", build_published_weights, _TOY, _SIZES, ("uncertainty_weights",)),
    Case("fused_std", build_fused_std, _TOY, _SIZES),
    Case("GatedUncertaintyFusion", build_gated, _TOY, _SIZES),
    Case("AttentionFusion", build_attention, _TOY, _SIZES),
)
