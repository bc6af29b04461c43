"""References for calibration: the temperature of least negative log-likelihood, and division by it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar

from .masking import Array, State, softmax_1d

LIMITS = (math.log(0.01), math.log(100.0))


def likelihood_loss(logits: Array, target: NDArray[np.int64], temperature: float, ignore_index: int = -100) -> float:
    """Sum of the negative log-likelihoods of the rows that count."""
    total = 0.0
    for row, label in zip(logits, target, strict=True):
        if label != ignore_index:
            total += math.log(sum(math.exp(v) for v in (row - max(row)) / temperature))
            total -= (row[label] - max(row)) / temperature
    return total


def slope(logits: Array, target: NDArray[np.int64], temperature: float, ignore_index: int = -100) -> float:
    """Derivative of the loss in one over the temperature."""
    counted = [(row, label) for row, label in zip(logits, target, strict=True) if label != ignore_index]
    return sum(float(sum(softmax_1d(row / temperature) * (row - row[label]))) for row, label in counted)


def fit_temperature(logits: Array, target: NDArray[np.int64], ignore_index: int = -100) -> Array:
    counted = [row for row, label in zip(logits, target, strict=True) if label != ignore_index]
    if all(len(set(row)) == 1 for row in counted):
        return np.array(1.0)
    best = minimize_scalar(
        lambda t: likelihood_loss(logits, target, math.exp(t), ignore_index), bounds=LIMITS, method="bounded"
    ).x
    # A minimum is known to half of the digits only; the root of the slope beside it is known to all.
    low, high = max(best - 1e-3, LIMITS[0]), min(best + 1e-3, LIMITS[1])
    slopes = [slope(logits, target, math.exp(t), ignore_index) for t in (low, high)]
    if slopes[0] <= 0:
        return np.array(math.exp(low))
    if slopes[1] >= 0:
        return np.array(math.exp(high))
    root = brentq(lambda t: slope(logits, target, math.exp(t), ignore_index), low, high, xtol=1e-14)
    return np.array(math.exp(root))


def temperature_scaling(state: State, logits: Array) -> Array:
    return np.array([[v / float(state["temperature"]) for v in row] for row in logits]).reshape(logits.shape)
