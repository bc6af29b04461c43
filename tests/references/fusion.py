"""References for the fusions, one sample at a time."""

from __future__ import annotations

import math

import numpy as np

from .masking import Array, Mask, State, gelu, linear, relu, softmax_1d, sub

EPS = 1e-6


def _logit(std: Array, weighting: str, power: float, temperature: float) -> float:
    """The logit of one modality from one std, or from all stds of its dimensions."""
    if weighting == "precision":
        return -power / temperature * sum(math.log(s) for s in std) / len(std)
    return 1.0 / ((sum(std) / len(std) + EPS) * temperature)


def uncertainty_weights(
    std: Array,
    present: Mask | None = None,
    *,
    weighting: str = "precision",
    power: float = 2.0,
    temperature: float = 1.0,
    per_dimension: bool = False,
    prior_expert: bool = False,
) -> Array:
    batch, modalities, width = std.shape
    columns = [slice(h, h + 1) for h in range(width)] if per_dimension else [slice(0, width)]
    out = np.zeros((batch, modalities, len(columns)))
    for b in range(batch):
        keep = [True] * modalities if present is None else [bool(v) for v in present[b]]
        for c, column in enumerate(columns):
            stds = [std[b, m, column] if keep[m] else np.ones(1) for m in range(modalities)] + [np.ones(1)]
            logits = np.array([_logit(s, weighting, power, temperature) for s in stds])
            out[b, :, c] = softmax_1d(logits, np.array([*keep, prior_expert]))[:modalities]
    return out if per_dimension else out[:, :, 0]


def weighted_sum(x: Array, weights: Array, present: Mask | None = None) -> Array:
    out = np.zeros((x.shape[0], x.shape[2]))
    for b, m, h in np.ndindex(*x.shape):
        if present is None or present[b, m]:
            out[b, h] += (weights[b, m, h] if weights.ndim == 3 else weights[b, m]) * x[b, m, h]
    return out


def fused_std(std: Array, weights: Array, present: Mask | None = None, *, prior_expert: bool = False) -> Array:
    out = np.zeros((std.shape[0], std.shape[2]))
    for b, h in np.ndindex(*out.shape):
        variance, share = 0.0, 1.0
        for m in range(std.shape[1]):
            if present is None or present[b, m]:
                w = weights[b, m, h] if weights.ndim == 3 else weights[b, m]
                variance, share = variance + (w * std[b, m, h]) ** 2, share - w
        out[b, h] = math.sqrt(variance + (share**2 if prior_expert else 0.0))
    return out


def product_of_experts(mu: Array, std: Array, present: Mask) -> tuple[Array, Array]:
    """Mean and std of the product of the present Gaussians and N(0, I)."""
    mean, deviation = np.zeros((mu.shape[0], mu.shape[2])), np.zeros((mu.shape[0], mu.shape[2]))
    for b, h in np.ndindex(*mean.shape):
        here = [m for m in range(mu.shape[1]) if present[b, m]]
        precision = 1.0 + sum(std[b, m, h] ** -2 for m in here)
        mean[b, h] = sum(mu[b, m, h] * std[b, m, h] ** -2 for m in here) / precision
        deviation[b, h] = precision**-0.5
    return mean, deviation


def uncertainty_fusion(
    state: State, mu: Array, std: Array, present: Mask | None = None, **options: object
) -> tuple[Array, Array]:
    weights = uncertainty_weights(std, present, **options)
    return weighted_sum(mu, weights, present), weights


def gated_fusion(
    state: State, mu: Array, std: Array, present: Mask | None = None, **options: object
) -> tuple[Array, Array]:
    uncertain = uncertainty_weights(std, present, **options)
    alpha = 1.0 / (1.0 + math.exp(-state["alpha_logit"])) if "alpha_logit" in state else float(state["fixed_alpha"])
    weights = np.zeros_like(uncertain)
    for b in range(len(mu)):
        keep = np.ones(mu.shape[1], dtype=bool) if present is None else present[b]
        joined = np.concatenate([mu[b, m] if keep[m] else np.zeros_like(mu[b, m]) for m in range(mu.shape[1])])
        gate = sub(state, "gate")
        gated = softmax_1d(linear(gate, "3", gelu(linear(gate, "0", joined))), keep)
        for m in range(mu.shape[1]):
            weights[b, m] = alpha * uncertain[b, m] + (1.0 - alpha) * gated[m]
    return weighted_sum(mu, weights, present), weights


def attention_fusion(
    state: State, x: Array, present: Mask | None = None, *, normalize: str = "softmax"
) -> tuple[Array, Array]:
    layers = sorted({int(key.split(".")[1]) for key in state if key.endswith("weight")})
    weights = np.zeros(x.shape[:2])
    for b in range(len(x)):
        keep = np.ones(x.shape[1], dtype=bool) if present is None else present[b]
        v = np.concatenate([x[b, m] if keep[m] else np.zeros_like(x[b, m]) for m in range(x.shape[1])])
        for index in layers[:-1]:
            v = relu(linear(state, f"attention.{index}", v))
        logits = linear(state, f"attention.{layers[-1]}", v)
        weights[b] = (
            softmax_1d(logits, keep)
            if normalize == "softmax"
            else [v if k else 0.0 for v, k in zip(logits, keep, strict=True)]
        )
    return weighted_sum(x, weights, present), weights
