"""References for masking, and the layers that all other references are built from."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
State = Mapping[str, Array]


def sub(state: State, prefix: str) -> dict[str, Array]:
    """Return the entries below ``prefix``, without it."""
    return {key[len(prefix) + 1 :]: value for key, value in state.items() if key.startswith(prefix + ".")}


def zero_missing(x: Array, mask: Mask | None = None) -> Array:
    out = np.zeros_like(x)
    if mask is None:
        return x.copy()
    for index in np.ndindex(*mask.shape):
        if mask[index]:
            out[index] = x[index]
    return out


def softmax_1d(logits: Array, mask: Mask | None = None) -> Array:
    """Softmax over the present entries of one vector; all zero when there is none."""
    keep = [i for i in range(len(logits)) if mask is None or mask[i]]
    out = np.zeros(len(logits))
    if keep:
        top = max(logits[i] for i in keep)
        total = sum(math.exp(logits[i] - top) for i in keep)
        for i in keep:
            out[i] = math.exp(logits[i] - top) / total
    return out


def masked_softmax(logits: Array, mask: Mask | None = None) -> Array:
    out = np.zeros_like(logits)
    full = None if mask is None else np.broadcast_to(mask, logits.shape)
    for index in np.ndindex(*logits.shape[:-1]):
        out[index] = softmax_1d(logits[index], None if full is None else full[index])
    return out


def masked_mean(x: Array, mask: Mask | None = None) -> Array:
    """Mean over dimension 1 of ``(B, T, H)``."""
    out = np.zeros((x.shape[0], *x.shape[2:]))
    for b in range(x.shape[0]):
        steps = [t for t in range(x.shape[1]) if mask is None or mask[b, t]]
        for t in steps:
            out[b] += x[b, t] / len(steps)
    return out


def lengths_to_mask(lengths: NDArray[np.int64], max_length: int) -> Mask:
    return np.array([[t < n for t in range(max_length)] for n in lengths], dtype=bool).reshape(len(lengths), max_length)


def linear(state: State, name: str, x: Array) -> Array:
    """Affine map of one vector with the parameters ``name.weight`` and ``name.bias``."""
    weight = state[f"{name}.weight"]
    out = np.array([sum(w * v for w, v in zip(row, x, strict=True)) for row in weight])
    return out + state[f"{name}.bias"] if f"{name}.bias" in state else out


def layer_norm(state: State, name: str, x: Array, eps: float = 1e-5) -> Array:
    """Layer norm of one vector."""
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    normal = np.array([(v - mean) / math.sqrt(variance + eps) for v in x])
    return normal * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: Array) -> Array:
    return np.array([0.5 * v * (1.0 + math.erf(v / math.sqrt(2.0))) for v in x])


def relu(x: Array) -> Array:
    return np.array([v if v > 0 else 0.0 for v in x])


def sigmoid(x: Array) -> Array:
    return np.array([1.0 / (1.0 + math.exp(-v)) if v > -700 else 0.0 for v in x])


ACTIVATIONS = {"relu": relu, "gelu": gelu, "tanh": np.tanh, "silu": lambda x: x * sigmoid(x)}
