"""References for input quality: what a modality looks like, how far an input is from it, and the loss on the flags."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .masking import Array, Mask, State, gelu, linear, sub

FLOOR = 1e-3


class Fitted(NamedTuple):
    """The fields of a reference, with the used components alone."""

    mean: Array
    scale: Array
    components: Array
    variances: Array
    rest: float
    rows: Array


def fit_reference(x: Array, *, max_components: int = 64, explained: float = 0.9, num_rows: int = 256) -> Fitted:
    """Moments, principal components by a singular value decomposition, and evenly spaced examples."""
    count, width = x.shape
    mean = np.array([sum(column) / count for column in x.T])
    scale = np.array([math.sqrt(sum((v - m) ** 2 for v in c) / count) for c, m in zip(x.T, mean, strict=True)])
    scale[[len(set(column)) == 1 for column in x.T]] = 1.0
    z = (x - mean) / scale
    part = z[:: math.ceil(count / 2048)]
    _, singular, directions = np.linalg.svd(part - part.mean(0), full_matrices=False)
    variances = singular**2 / len(part)
    most = max(1, min(max_components, width - 1, len(part) // 8))
    used = 0
    while used < min(most, len(variances)) and variances[used] > FLOOR:
        if sum(variances[:used]) / max(sum(variances), FLOOR) >= explained:
            break
        used += 1
    rest = max(sum(variances) - sum(variances[:used]), FLOOR)
    rows = np.array([z[math.floor(i * count / num_rows)] for i in range(num_rows)])
    return Fitted(mean, scale, directions[:used], variances[:used], rest, rows)


def projector(components: Array) -> Array:
    return components.T @ components


def distances(x: Array, fitted: Fitted, apart: Sequence[bool] | None = None) -> Array:
    """The four distances of one row: residual, Mahalanobis, energy, nearest example."""
    z = (x - fitted.mean) / fitted.scale
    inside = [float(sum(u * z)) for u in fitted.components]
    outside = z - sum((c * u for c, u in zip(inside, fitted.components, strict=True)), np.zeros_like(z))
    spread = sum(c**2 / v for c, v in zip(inside, fitted.variances, strict=True)) / max(1, len(inside))
    others = [row for i, row in enumerate(fitted.rows) if apart is None or apart[i]]
    nearest = min(sum((z - row) ** 2) for row in others)
    return np.array([sum(outside**2) / fitted.rest, spread, sum(z**2) / len(z), nearest / len(z)])


def novelty_statistics(
    x: Array, fitted: Fitted, mask: Mask | None = None, apart: Sequence[Sequence[bool]] | None = None
) -> Array:
    out = np.zeros((len(x), 4))
    for b, sample in enumerate(x):
        steps = sample[None] if x.ndim == 2 else sample
        here = np.ones(len(steps), dtype=bool) if mask is None else np.atleast_1d(mask[b])
        measured = [distances(step, fitted, None if apart is None else apart[b]) for step in steps[here]]
        if measured:
            out[b] = [math.log(sum(column) / len(measured) + FLOOR) for column in zip(*measured, strict=True)]
    return out


def usual(x: Array, mask: Mask, fitted: Fitted, num_rows: int) -> tuple[Array, Array]:
    """Mean and spread of the statistics over the samples of up to 2048, the own examples of each left out."""
    known = [b for b, *_ in zip(*np.nonzero(mask), strict=True)]
    source = [known[math.floor(i * len(known) / num_rows)] for i in range(num_rows)]
    samples = sorted(set(known))
    samples = samples[:: math.ceil(len(samples) / 2048)]
    apart = [[s != b for s in source] if any(s != b for s in source) else [True] * num_rows for b in samples]
    statistics = novelty_statistics(x[samples], fitted, mask[samples], apart)
    return statistics.mean(0), np.maximum(statistics.std(0), 0.05)


def of_state(state: State) -> Fitted:
    """Return the fitted reference that a state holds; unused components are zero."""
    parts = [state[name] for name in Fitted._fields]
    used = parts[2].any(1)
    return Fitted(parts[0], parts[1], parts[2][used], parts[3][used], float(parts[4]), parts[5])


def modality_quality(
    state: State, features: Sequence[Array], present: Mask | None = None, masks: Sequence[Mask | None] | None = None
) -> Array:
    out = np.zeros((len(features[0]), len(features)))
    for m, x in enumerate(features):
        here = np.ones(x.shape[: x.ndim - 1], dtype=bool) if masks is None or masks[m] is None else masks[m].copy()
        if present is not None:
            here[~present[:, m]] = False
        own = sub(state, f"references.{m}")
        statistics = novelty_statistics(x, of_state(own), here)
        for b in range(len(x)):
            if here[b].any():
                z = np.clip((statistics[b] - own["usual"]) / own["spread"], -12.0, 12.0)
                hidden = gelu(linear(state, f"heads.{m}.0", z))
                odds = 8.0 * math.tanh(float(linear(state, f"heads.{m}.2", hidden)[0]) / 8.0)
                out[b, m] = math.log(1.0 + math.exp(odds))
    return out


def quality_loss(logvar: Array, spoilt: Array | Mask, present: Mask | None = None) -> Array:
    """Cross-entropy of flags, or of shares in [0, 1], under the chance 1 - e^-x to be spoilt."""
    terms = []
    for b, m in np.ndindex(*logvar.shape):
        if present is None or present[b, m]:
            x = max(float(logvar[b, m]), 1e-30)
            share = float(spoilt[b, m])
            terms.append(-share * math.log(-math.expm1(-x)) + (1.0 - share) * x)
    return np.array(sum(terms) / max(1, len(terms)))


def spoilt_rows(inputs: Mapping[str, Array], targets: Mapping[str, Array], masks: Mapping[str, Mask]) -> Mask:
    """Where an input differs from its target in a real step; what has no target is clean."""
    columns = []
    for name, x in inputs.items():
        clean = targets.get(name, x)
        differs = [[bool((a != b).any()) for a, b in zip(np.atleast_2d(r), np.atleast_2d(c), strict=True)]
                   for r, c in zip(x, clean, strict=True)]  # fmt: skip
        here = masks.get(name, np.ones((len(x), len(differs[0]) if differs else 1), dtype=bool))
        columns.append([any(d and h for d, h in zip(*pair, strict=True)) for pair in zip(differs, here, strict=True)])
    return np.array(columns, dtype=bool).T
