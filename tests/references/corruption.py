"""References for corruption, given the random numbers: what noise adds, which samples are spoilt, and how much."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .masking import Array, Mask


def add_noise(x: Array, snr_db: Array, noise: Array, mask: Mask | None = None) -> Array:
    """Add given standard normal numbers at one ratio per sample."""
    out = np.zeros_like(x)
    for b, sample in enumerate(x):
        here = np.ones(sample.shape, dtype=bool)
        if mask is not None:
            here &= mask[b].reshape(mask[b].shape + (1,) * (sample.ndim - mask[b].ndim))
        if here.any():
            power = sum(v**2 for v in sample[here]) / here.sum()
            out[b][here] = sample[here] + math.sqrt(power / 10.0 ** (snr_db[b] / 10.0)) * noise[b][here]
    return out


def kinds_of(draws: Array, rate: float, kinds: Sequence[str]) -> list[str | None]:
    """What happens to every sample, from one uniform number each: the kinds share [0, rate) evenly."""
    return [next((k for i, k in enumerate(kinds) if v < rate * (i + 1) / len(kinds)), None) for v in draws]


def ratios(draws: Array, snr_db: tuple[float, float]) -> Array:
    return np.array([snr_db[0] + (snr_db[1] - snr_db[0]) * v for v in draws])


def shares(kinds: Sequence[str | None], ratio: Array) -> Array:
    """Share of the power that is no signal: noise over noise and signal."""
    out = np.zeros(len(kinds))
    for b, kind in enumerate(kinds):
        if kind == "noise":
            noise = 10.0 ** (-ratio[b] / 10.0)
            out[b] = noise / (1.0 + noise)
        elif kind in ("zeros", "shuffle", "replace"):
            out[b] = 1.0
    return out


def replace(x: Array, noise: Array, mask: Mask | None = None) -> Array:
    """Give every sample noise of its own mean square, and nothing else."""
    silent = np.zeros(len(x))
    return add_noise(x, silent, noise, mask) - add_noise(x, silent, np.zeros_like(noise), mask)
