"""References for the calibration of tokens and the text classifier, one token at a time."""

from __future__ import annotations

import math

import numpy as np

from .masking import Array, Mask, State, gelu, linear, relu, sigmoid, sub


def _kept(x: Array, mask: Mask | None) -> list[list[int]]:
    return [[t for t in range(x.shape[1]) if mask is None or mask[b][t]] for b in range(len(x))]


def _mean(x: Array, steps: list[int]) -> Array:
    return sum((x[t] for t in steps), np.zeros(x.shape[1])) / max(1, len(steps))


def _calibrated(x: Array, gate: Array, kept: list[list[int]]) -> tuple[Array, Array]:
    tokens, shown = np.zeros_like(x), np.zeros_like(x)
    for b, steps in enumerate(kept):
        for t in steps:
            shown[b, t] = gate[b, t]
            tokens[b, t] = x[b, t] * gate[b, t]
    return tokens, shown


def asrm(state: State, x: Array, mask: Mask | None = None, return_gate: bool = True) -> tuple[Array, Array]:
    kept, gate = _kept(x, mask), np.zeros_like(x)
    for b, steps in enumerate(kept):
        squeezed = relu(linear(state, "squeeze", _mean(x[b], steps)))
        gate[b, :] = sigmoid(linear(state, "excite", squeezed))
    return _calibrated(x, gate, kept)


def _window(state: State, x: Array, steps: list[int], t: int, size: int) -> Array:
    """What one convolution finds at token t: zeros stand beyond the ends and where tokens are masked."""
    weight, out = state["weight"], state["bias"].copy()
    channels, width = weight.shape[1], len(out)
    per_group = width // (x.shape[1] // channels)
    for c in range(width):
        first = c // per_group * channels
        for k in range(size):
            place = t + k - (size - 1) // 2
            if place in steps:
                out[c] += weight[c, :, k] @ x[place, first : first + channels]
    return out


def span_aware(
    state: State, x: Array, mask: Mask | None = None, return_gate: bool = True, *, windows: tuple[int, ...]
) -> tuple[Array, Array]:
    kept, gate = _kept(x, mask), np.zeros_like(x)
    for b, steps in enumerate(kept):
        for t in steps:
            logits = state["bias"].copy()
            for i, size in enumerate(windows):
                found = _window(sub(state, f"windows.{i}"), x[b], steps, t, size)
                if f"mixers.{i}.weight" in state:
                    found = linear(state, f"mixers.{i}", found)
                logits += state["scale"][i] * gelu(found)
            gate[b, t] = 2.0 * sigmoid(logits)
    return _calibrated(x, gate, kept)


def contrastive(
    state: State, x: Array, mask: Mask | None = None, return_gate: bool = True, *, windows: tuple[int, ...]
) -> tuple[Array, Array]:
    return span_aware(sub(state, "calibration"), x, mask, windows=windows)


def position_aware(
    state: State, x: Array, mask: Mask | None = None, return_gate: bool = True, *, features: int
) -> tuple[Array, Array]:
    kept, gate = _kept(x, mask), np.zeros_like(x)
    waves = [10_000.0 ** (-i / (features // 4)) for i in range(features // 4)]
    for b, steps in enumerate(kept):
        context = state["context.weight"] @ _mean(x[b], steps)
        for n, t in enumerate(steps):
            place: list[float] = []
            for distance in (n, len(steps) - 1 - n):
                place += [math.sin(distance * wave) for wave in waves] + [math.cos(distance * wave) for wave in waves]
            meaning = linear(state, "semantic", gelu(linear(state, "token", x[b, t]) + context))
            where = linear(state, "positional", gelu(linear(state, "position", np.array(place))))
            gate[b, t] = 4.0 * sigmoid(meaning) * sigmoid(where)
    return _calibrated(x, gate, kept)


def class_loss(
    tokens: Array, labels: Array, mask: Mask | None, centres: Array, seen: Array, temperature: float
) -> float:
    """The loss of texts against given centres; of no text 0."""
    losses = []
    for b, steps in enumerate(_kept(tokens, mask)):
        if labels[b] == -100 or not steps or not seen[labels[b]]:
            continue
        pooled = _mean(tokens[b], steps)
        scores = {
            c: pooled @ centres[c] / (np.linalg.norm(pooled) * np.linalg.norm(centres[c])) / temperature
            for c in range(len(centres))
            if seen[c]
        }
        losses.append(math.log(sum(math.exp(s) for s in scores.values())) - scores[int(labels[b])])
    return sum(losses) / len(losses) if losses else 0.0


def classifier(
    state: State, inputs: Array, mask: Mask | None = None, *, pooling: str, windows: tuple[int, ...] | None
) -> tuple[Array, ...]:
    kept = _kept(inputs, mask)
    if windows is None:
        tokens, gate = _calibrated(inputs, np.ones_like(inputs), kept)[0], None
    else:
        tokens, gate = span_aware(sub(state, "asrm"), inputs, mask, windows=windows)
    if pooling == "mean":
        pooled = np.array([_mean(x, steps) for x, steps in zip(tokens, kept, strict=True)])
    else:
        pooled = np.array([x[steps[0]] if steps else x[0] * 0 for x, steps in zip(tokens, kept, strict=True)])
    pooled = pooled.reshape(len(inputs), inputs.shape[2])
    logits = np.array([linear(state, "head", v) for v in pooled]).reshape(len(inputs), -1)
    states = np.zeros_like(inputs)
    for b, steps in enumerate(_kept(inputs, mask)):
        states[b, steps] = inputs[b, steps]
    return (logits, pooled, tokens, *(() if gate is None else (gate,)), states)
