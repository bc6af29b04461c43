"""The losses in NumPy float64, written as loops from the formulas; no torch, no shared helper of the library."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Array = np.ndarray


# Classification --------------------------------------------------------------------------------------------------


def _log_probabilities(row: Array) -> list[float]:
    top = max(row)
    total = sum(math.exp(value - top) for value in row)
    return [float(value - top) - math.log(total) for value in row]


def _target_distribution(label: int, classes: int, smoothing: float, convention: str) -> list[float]:
    if classes == 1:
        return [1.0]
    if convention == "uniform":
        return [(1 - smoothing) * (k == label) + smoothing / classes for k in range(classes)]
    return [1 - smoothing if k == label else smoothing / (classes - 1) for k in range(classes)]


def focal_label_smoothing_loss(
    logits: Array,
    target: Array,
    *,
    gamma: float = 2.0,
    smoothing: float = 0.1,
    convention: str = "uniform",
    focal_factor: str = "per_class",
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Array:
    """Sum over k of w_k q_k (1 - p_k)^gamma (-log p_k), or (1 - p_y)^gamma times the smoothed cross-entropy."""
    classes = logits.shape[1]
    rows = np.moveaxis(np.asarray(logits, np.float64), 1, -1).reshape(-1, classes)
    weights = [1.0] * classes if weight is None else [float(w) for w in weight]
    losses, total_weight = [], 0.0
    for row, label in zip(rows, np.asarray(target).reshape(-1), strict=True):
        if label == ignore_index:
            losses.append(0.0)
            continue
        log_p = _log_probabilities(row)
        rest = [sum(math.exp(other) for j, other in enumerate(log_p) if j != k) for k in range(classes)]
        q = _target_distribution(int(label), classes, smoothing, convention)
        loss = 0.0
        for k in range(classes):
            if q[k] != 0.0:
                factor = rest[k] ** gamma if focal_factor == "per_class" else rest[int(label)] ** gamma
                loss += weights[k] * q[k] * factor * -log_p[k]
        losses.append(loss)
        total_weight += weights[int(label)]
    if reduction == "none":
        return np.array(losses, np.float64).reshape(np.shape(target))
    if reduction == "sum":
        return np.float64(sum(losses))
    return np.float64(sum(losses) / total_weight if total_weight > 0 else 0.0)


def focal_loss(logits: Array, target: Array, *, gamma: float = 2.0, **options: object) -> Array:
    return focal_label_smoothing_loss(logits, target, gamma=gamma, smoothing=0.0, **options)


def label_smoothing_cross_entropy(logits: Array, target: Array, *, smoothing: float = 0.1, **options: object) -> Array:
    return focal_label_smoothing_loss(logits, target, gamma=0.0, smoothing=smoothing, **options)


# Variational -----------------------------------------------------------------------------------------------------


def tangent_exp(x: float) -> float:
    """exp(x), and the tangent at 25 above 25."""
    return math.exp(x) if x <= 25.0 else math.exp(25.0) * (1.0 + x - 25.0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _over_latent(values: Sequence[float], reduction: str) -> float:
    return sum(values) if reduction == "sum" else sum(values) / len(values)


def gaussian_kl(
    mu: Array,
    logvar: Array,
    present: Array | None = None,
    *,
    latent_reduction: str = "sum",
    free_bits: float = 0.0,
) -> Array:
    rows = []
    for index in np.ndindex(mu.shape[:-1]):
        if present is None or present[index]:
            terms = [
                max(0.5 * (m * m + tangent_exp(v) - 1.0 - v), free_bits)
                for m, v in zip(mu[index].tolist(), logvar[index].tolist(), strict=True)
            ]
            rows.append(_over_latent(terms, latent_reduction))
    return np.float64(_mean(rows))


def _kl_between(mu_a: Array, logvar_a: Array, mu_b: Array, logvar_b: Array, reduction: str) -> float:
    terms = []
    for ma, va, mb, vb in zip(mu_a.tolist(), logvar_a.tolist(), mu_b.tolist(), logvar_b.tolist(), strict=True):
        shift = (ma - mb) * tangent_exp(-0.5 * vb)
        terms.append(0.5 * (tangent_exp(va - vb) - 1.0 - (va - vb) + shift**2))
    return _over_latent(terms, reduction)


def cross_modal_kl(
    mu: Array,
    logvar: Array,
    present: Array | None = None,
    *,
    latent_reduction: str = "sum",
    symmetric: bool = True,
) -> Array:
    values = []
    for b in range(mu.shape[0]):
        for i in range(mu.shape[1]):
            for j in range(i + 1, mu.shape[1]):
                if present is not None and not (present[b, i] and present[b, j]):
                    continue
                there = _kl_between(mu[b, i], logvar[b, i], mu[b, j], logvar[b, j], latent_reduction)
                back = _kl_between(mu[b, j], logvar[b, j], mu[b, i], logvar[b, i], latent_reduction)
                values.append(0.5 * (there + back) if symmetric else there)
    return np.float64(_mean(values))


def _squared_errors(
    prediction: Array, target: Array, mask: Array | None, reduction: str, rows: Array | None = None
) -> tuple[float, int]:
    """Return the sum of the errors that count and the number to divide by."""
    total, features, items = 0.0, 0, 0
    for index in np.ndindex(prediction.shape[:-1]):
        counted = 0
        for d in range(prediction.shape[-1]):
            place = (*index, d)
            keep = mask is None or bool(mask[place[: np.ndim(mask)]])
            if keep and (rows is None or rows[index[0]]):
                total += float(prediction[place] - target[place]) ** 2
                counted += 1
        features += counted
        items += counted > 0
    return total, items if reduction == "sum" else features


def reconstruction_loss(
    prediction: Array, target: Array, mask: Array | None = None, *, feature_reduction: str = "sum"
) -> Array:
    total, count = _squared_errors(prediction, target, mask, feature_reduction)
    return np.float64(total / count if count else 0.0)


def variational_loss(
    mu: Array,
    logvar: Array,
    reconstructions: Sequence[Array | None],
    targets: Sequence[Array | None],
    present: Array | None = None,
    *,
    target_present: Array | None = None,
    masks: Sequence[Array | None] | None = None,
    kl_weight: float = 0.01,
    reconstruction_weight: float = 0.1,
    cross_kl_weight: float = 0.01,
    latent_reduction: str = "mean",
    feature_reduction: str = "mean",
    cross_reduction: str | None = None,
    symmetric: bool = True,
    free_bits: float = 0.0,
    beta: float = 1.0,
) -> tuple[Array, Array, Array, Array]:
    """Return total, kl, reconstruction and cross_kl; ``beta`` is the value of the schedule."""
    kl = gaussian_kl(mu, logvar, present, latent_reduction=latent_reduction, free_bits=free_bits)
    cross = cross_modal_kl(
        mu, logvar, present, latent_reduction=cross_reduction or latent_reduction, symmetric=symmetric
    )
    rows = present if target_present is None else target_present
    errors = []
    for m, (prediction, target) in enumerate(zip(reconstructions, targets, strict=True)):
        if prediction is None or target is None:
            continue
        mask = None if masks is None else masks[m]
        here = None if rows is None else rows[:, m]
        total, count = _squared_errors(prediction, target, mask, feature_reduction, here)
        if count:
            errors.append(total / count)
    reconstruction = _mean(errors)
    total = beta * (kl_weight * kl + cross_kl_weight * cross) + reconstruction_weight * reconstruction
    return np.float64(total), kl, np.float64(reconstruction), cross
