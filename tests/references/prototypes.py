"""References for subspace prototypes: projectors and residual vectors, one sample and class at a time."""

from __future__ import annotations

import numpy as np

from .attention import feature_token_fusion
from .encoders import mlp, projection_head
from .masking import Array, Mask, State, linear, sub


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
    if not normalize:
        return -subspace_residual(x, basis) / temperature
    norms = np.array([float(np.linalg.norm(row)) for row in x])
    unit = np.array([row / norm if norm > 1e-12 else row for row, norm in zip(x, norms, strict=True)]).reshape(x.shape)
    residual = subspace_residual(unit, basis)
    residual[norms <= 1e-12] = 1.0
    return -residual / temperature


def two_branch(
    state: State, inputs: dict[str, Array], present: Mask | None = None, *, heads: int, linear_head: bool = False
) -> tuple[Array, ...]:
    """Encoders, attention between features, the mean over branches, residuals."""
    names = list(inputs)
    batch = len(inputs[names[0]])
    seen = np.ones((batch, len(names)), bool) if present is None else present
    hidden = [
        mlp(sub(state, f"encoders.{m}"), inputs[name], seen[:, m], activation="gelu") for m, name in enumerate(names)
    ]
    tokens = [
        x[:, :, None] * state[f"tokenizers.{m}.weight"] + state[f"tokenizers.{m}.bias"] for m, x in enumerate(hidden)
    ]
    fused = feature_token_fusion(sub(state, "fusion"), tokens, seen, heads=heads)
    for m, x in enumerate(fused):
        found = np.array([[linear(state, f"readouts.{m}", token)[0] for token in row] for row in x]).reshape(
            x.shape[:2]
        )
        hidden[m] = (hidden[m] + found) * seen[:, m : m + 1]
    embedding = np.array([sum(x[b] for x in hidden) / max(1, seen[b].sum()) for b in range(batch)])
    embedding = embedding.reshape(batch, hidden[0].shape[1])
    projections = np.stack([projection_head(sub(state, f"projections.{m}"), x) for m, x in enumerate(hidden)], axis=1)
    if linear_head:
        logits = np.array([linear(state, "head", row) for row in embedding]).reshape(batch, -1)
    else:
        logits = classifier(sub(state, "head"), embedding, temperature=0.1, normalize=True, exact=False)
    return logits, embedding, projections * seen[:, :, None], seen.astype(float)
