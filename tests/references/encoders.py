"""References for the encoders, the decoder and the heads, one sample (and one step) at a time."""

from __future__ import annotations

import math

import numpy as np

from .masking import ACTIVATIONS, Array, Mask, State, gelu, layer_norm, linear, relu, sigmoid, sub

LIMIT = 10.0


def bounded(raw: Array, bound: str) -> Array:
    if bound == "clamp":
        return np.array([min(LIMIT, max(-LIMIT, v)) for v in raw])
    return np.array([LIMIT * (v / LIMIT) / (1.0 + abs(v / LIMIT)) for v in raw])


def gaussian(state: State, hidden: Array, there: bool, bound: str) -> tuple[Array, Array, Array]:
    """Mean, log-variance and std of one sample; the prior when there is nothing to read."""
    if not there:
        return np.zeros(len(hidden)), np.zeros(len(hidden)), np.ones(len(hidden))
    mu, logvar = linear(state, "mu", hidden), bounded(linear(state, "logvar", hidden), bound)
    return mu, logvar, np.array([math.exp(v / 2.0) for v in logvar])


def _stacked(rows: list[tuple[Array, Array, Array]], width: int) -> tuple[Array, Array, Array, Array]:
    mu, logvar, std = (np.array([row[i] for row in rows]).reshape(len(rows), width) for i in range(3))
    return mu, mu, logvar, std  # z = mu in eval


def variational_mlp(
    state: State, x: Array, present: Mask | None = None, *, bound: str = "soft"
) -> tuple[Array, Array, Array, Array]:
    rows = []
    for b in range(len(x)):
        there = present is None or bool(present[b])
        v = x[b] if there else np.zeros_like(x[b])
        h = gelu(layer_norm(state, "layer1.1", linear(state, "layer1.0", v)))
        h = gelu(layer_norm(state, "layer2.1", linear(state, "layer2.0", h)))
        h = h + (linear(state, "residual", v) if "residual.weight" in state else v)
        rows.append(gaussian(sub(state, "head"), h, there, bound))
    return _stacked(rows, len(state["head.mu.bias"]))


def lstm_run(cell: State, steps: list[Array]) -> list[Array]:
    """Hidden states of one LSTM direction over the given steps (gates in the order i, f, g, o)."""
    width = len(cell["weight_hh_l0"][0])
    h, c, out = np.zeros(width), np.zeros(width), []
    for v in steps:
        gates = cell["weight_ih_l0"] @ v + cell["bias_ih_l0"] + cell["weight_hh_l0"] @ h + cell["bias_hh_l0"]
        i, f, g, o = (gates[k * width : (k + 1) * width] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return out


def lstm_final(state: State, steps: list[Array], layers: int, directions: int) -> Array:
    """Final states of the last layer, forward then backward, of one sequence that is not empty."""
    final: list[Array] = []
    for layer in range(layers):
        forward = lstm_run(sub(state, f"cells.{layer * directions}"), steps)
        final, outputs = [forward[-1]], forward
        if directions == 2:
            backward = lstm_run(sub(state, f"cells.{layer * 2 + 1}"), steps[::-1])
            final.append(backward[-1])
            outputs = [np.concatenate(pair) for pair in zip(forward, backward[::-1], strict=True)]
        steps = outputs
    return np.concatenate(final)


def _sequences(x: Array, mask: Mask | None) -> list[list[Array]]:
    return [[x[b, t] for t in range(x.shape[1]) if mask is None or mask[b, t]] for b in range(len(x))]


def variational_lstm(
    state: State, x: Array, mask: Mask | None = None, *, layers: int = 1, directions: int = 1, bound: str = "soft"
) -> tuple[Array, Array, Array, Array]:
    rows, width = [], len(state["shared.bias"])
    for steps in _sequences(x, mask):
        hidden = np.zeros(width)
        if steps:
            hidden = relu(linear(state, "shared", lstm_final(sub(state, "lstm"), steps, layers, directions)))
        rows.append(gaussian(sub(state, "head"), hidden, bool(steps), bound))
    return _stacked(rows, width)


def lstm(
    state: State, x: Array, mask: Mask | None = None, *, width: int, layers: int = 1, directions: int = 1
) -> Array:
    out = np.zeros((len(x), width))
    for b, steps in enumerate(_sequences(x, mask)):
        if steps:
            final = lstm_final(sub(state, "lstm"), steps, layers, directions)
            out[b] = linear(state, "projection", final) if directions == 2 else final
    return out


def mlp(state: State, x: Array, present: Mask | None = None, *, activation: str = "relu") -> Array:
    """Any stack: matrices are linear layers, vectors normalise; the activation closes every layer."""
    indices = sorted({int(key.split(".")[1]) for key in state if key.endswith(".weight")})
    rows = []
    for b in range(len(x)):
        v = x[b]
        for place, index in enumerate(indices):
            name = f"layers.{index}"
            v = linear(state, name, v) if state[f"{name}.weight"].ndim == 2 else layer_norm(state, name, v)
            following = state[f"layers.{indices[place + 1]}.weight"] if place + 1 < len(indices) else None
            if following is None or following.ndim == 2:
                v = ACTIVATIONS[activation](v)
        rows.append(v if present is None or present[b] else np.zeros_like(v))
    return np.array(rows)


def decoder(state: State, z: Array, num_steps: int | None = None) -> Array:
    def decode(v: Array) -> Array:
        v = relu(linear(state, "layers.0", v))
        return linear(state, "layers.5", relu(linear(state, "layers.3", v)))

    if num_steps is None:
        return np.array([decode(v) for v in z])
    width = z.shape[1]
    out = []
    for v in z:
        for t in range(num_steps):
            angle = [t / 10000.0 ** (2.0 * (i // 2) / width) for i in range(width)]
            out.append(decode(v + np.array([math.cos(a) if i % 2 else math.sin(a) for i, a in enumerate(angle)])))
    return np.array(out).reshape(len(z), num_steps, -1)


def unit(v: Array) -> Array:
    return v / max(math.sqrt(sum(a * a for a in v)), 1e-12)


def projection_head(state: State, x: Array, *, normalize: bool = True) -> Array:
    rows = [linear(state, "layers.2", relu(linear(state, "layers.0", v))) for v in x.reshape(-1, x.shape[-1])]
    return np.array([unit(v) if normalize else v for v in rows]).reshape(*x.shape[:-1], -1)


def feature_tokenizer(state: State, x: Array) -> Array:
    if "linear.weight" in state:
        return np.array([linear(state, "linear", v).reshape(x.shape[1], -1) for v in x])
    out = np.zeros((*x.shape, state["weight"].shape[1]))
    for b, d, e in np.ndindex(*out.shape):
        out[b, d, e] = x[b, d] * state["weight"][d, e] + state["bias"][d, e]
    return out
