"""Reference for the proxy attention, in the direct form: keys and values are projected, one by one."""

from __future__ import annotations

import math

import numpy as np

from .masking import Array, Mask, State, gelu, layer_norm, linear, softmax_1d, sub


def one_query(
    state: State, query: Array, keys: list[Array], heads: int, factors: list[float] | None = None
) -> tuple[Array, Array]:
    """Attend from one vector to a list of vectors: result and weights ``(heads, K)``; nothing gives zeros."""
    width = len(query) // heads
    q = linear(state, "query", query)
    k = [linear(state, "key", x) for x in keys]
    v = [linear(state, "value", x) for x in keys]
    weights, out = np.zeros((heads, len(keys))), np.zeros(len(query))
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        scores = np.array([sum(q[part] * x[part]) / math.sqrt(width) for x in k])
        if factors is not None:
            scores = np.array([s + math.log(f) if f > 0 else 0.0 for s, f in zip(scores, factors, strict=True)])
        weights[h] = softmax_1d(scores, None if factors is None else np.array([f > 0 for f in factors]))
        for w, x in zip(weights[h], v, strict=True):
            out[part] += w * x[part]
    found = bool(keys) and bool(weights.any())
    return (linear(state, "out", out) if found else np.zeros(len(query))), weights


def proxy_attention(
    state: State,
    proxy: Array,
    modalities: Array | list[Array],
    weights: Array | None = None,
    present: Mask | None = None,
    masks: list[Mask | None] | None = None,
    *,
    heads: int,
    mode: str = "joint",
) -> tuple[Array, Array]:
    parts = modalities if isinstance(modalities, list) else [modalities[:, m] for m in range(modalities.shape[1])]
    parts = [x[:, None] if x.ndim == 2 else x for x in parts]
    starts = np.cumsum([0, *(x.shape[1] for x in parts)])
    out, attention = np.zeros_like(proxy), np.zeros((len(proxy), heads, starts[-1]))
    for b in range(len(proxy)):
        here = [
            [
                t
                for t in range(x.shape[1])
                if (present is None or present[b, m]) and (masks is None or masks[m] is None or masks[m][b, t])
            ]
            for m, x in enumerate(parts)
        ]
        groups = [m for m, steps in enumerate(here) if steps]
        if not groups:
            continue
        attended = np.zeros(proxy.shape[1])
        if mode == "joint":
            places = [(m, t) for m in groups for t in here[m]]
            factors = None if weights is None else [float(weights[b, m]) for m, _ in places]
            keys = [parts[m][b, t] for m, t in places]
            attended, found = one_query(sub(state, "attentions.0"), proxy[b], keys, heads, factors)
            for column, (m, t) in enumerate(places):
                attention[b, :, starts[m] + t] = found[:, column]
        else:
            for m in groups:
                result, found = one_query(
                    sub(state, f"attentions.{m}"), proxy[b], [parts[m][b, t] for t in here[m]], heads
                )
                attended = attended + (1.0 / len(groups) if weights is None else weights[b, m]) * result
                for column, t in enumerate(here[m]):
                    attention[b, :, starts[m] + t] = found[:, column]
        hidden = layer_norm(state, "norm", proxy[b] + attended)
        forward = gelu(linear(state, "feed_forward.0", hidden))
        out[b] = hidden + linear(state, "feed_forward.3", forward)
    return out, attention


def feature_token_fusion(
    state: State, tokens: list[Array], present: Mask | None = None, *, heads: int
) -> tuple[Array, ...]:
    """Every token of every branch, one at a time, over the tokens of the branches that are there."""
    count, out = len(tokens), [np.zeros_like(x) for x in tokens]
    for b in range(len(tokens[0])):
        there = [m for m in range(count) if present is None or present[b][m]]
        for m in there:
            own = sub(state, f"branches.{m}")
            keys = [
                layer_norm(sub(state, f"branches.{n}"), "norm", step) for n in there if n != m for step in tokens[n][b]
            ]
            for t, x in enumerate(tokens[m][b]):
                h = x.copy()
                if keys:
                    h = h + _look(own, layer_norm(own, "norm", x), keys, heads)
                inner = gelu(linear(own, "feed_forward.1", layer_norm(own, "feed_forward.0", h)))
                out[m][b, t] = h + linear(own, "feed_forward.4", inner)
    return tuple(out)


def _look(state: State, query: Array, keys: list[Array], heads: int) -> Array:
    q, width = linear(state, "query", query), len(query) // heads
    pairs = [linear(state, "key_value", key) for key in keys]
    seen = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        scores = np.array([q[part] @ pair[: len(q)][part] / math.sqrt(width) for pair in pairs])
        weights = softmax_1d(scores)
        seen.append(sum(w * pair[len(q) :][part] for w, pair in zip(weights, pairs, strict=True)))
    return linear(state, "out", np.concatenate(seen))
