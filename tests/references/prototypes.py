"""References for subspace prototypes: projectors and residual vectors, one sample and class at a time."""

from __future__ import annotations

import numpy as np

from .masking import Array, State


def subspace_residual(x: Array, basis: Array) -> Array:
    """The squared length of ``x - U^T U x``."""
    out = np.zeros((len(x), len(basis)))
    for b, row in enumerate(x):
        for c, u in enumerate(basis):
            left = row - u.T @ (u @ row)
            out[b, c] = left @ left
    return out


def orthonormality_penalty(basis: Array) -> float:
    return float(np.mean([((u @ u.T - np.eye(len(u))) ** 2).sum() for u in basis]))


def subspace_separation(basis: Array) -> float:
    """The mean over ordered pairs of classes, each the squared overlap of two bases over K."""
    found = [((u @ v.T) ** 2).sum() / len(u) for i, u in enumerate(basis) for j, v in enumerate(basis) if i != j]
    return float(np.mean(found)) if found else 0.0


def classifier(state: State, x: Array, *, temperature: float, normalize: bool, exact: bool) -> Array:
    basis = state["weight"]
    if exact:
        basis = np.array([np.linalg.qr(u.T)[0].T for u in basis]).reshape(basis.shape)
    if normalize:
        x = np.array([row / max(float(np.linalg.norm(row)), 1e-12) for row in x]).reshape(x.shape)
    return -subspace_residual(x, basis) / temperature
