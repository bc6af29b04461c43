"""References for presence: patterns, zero rows, the schedule, and the distribution of dropped patterns."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from .masking import Array, Mask


def all_presence_patterns(modalities: int) -> set[tuple[bool, ...]]:
    return {p for p in itertools.product((False, True), repeat=modalities) if any(p)}


def presence_views(present: Mask) -> Mask:
    """Everything, then every non-empty proper subset, large ones first; a row that would be empty stays whole."""
    count = present.shape[1]
    views = [present.copy()]
    for size in range(count - 1, 0, -1):
        for kept in itertools.combinations(range(count), size):
            view = np.array([[bool(row[m]) and m in kept for m in range(count)] for row in present], dtype=bool)
            view = view.reshape(present.shape)
            for b, row in enumerate(view):
                if not row.any():
                    view[b] = present[b]
            views.append(view)
    return np.stack(views)


def presence_from_zeros(x: Array) -> Mask:
    """True for every row that holds at least one non-zero number."""
    return np.array([any(v != 0 for v in row.ravel()) for row in x], dtype=bool)


def schedule(epoch: int, delay: int, ramp: int) -> float:
    if epoch < delay:
        return 0.0
    return 1.0 if ramp == 0 else min(1.0, (epoch - delay) / ramp)


def dropped_distribution(present: NDArray[np.bool_], p: float) -> dict[tuple[bool, ...], float]:
    """Distribution of the kept pattern of one row: with probability p one non-empty proper subset is dropped."""
    here = tuple(bool(v) for v in present)
    kept = [
        pattern
        for pattern in itertools.product((False, True), repeat=len(here))
        if any(pattern) and pattern != here and all(h or not k for h, k in zip(here, pattern, strict=True))
    ]
    if not kept:
        return {here: 1.0}
    return {here: 1.0 - p, **{pattern: p / len(kept) for pattern in kept}}
