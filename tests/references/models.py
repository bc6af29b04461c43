"""References for the assembled models, put together from the references of their parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import attention, contrastive, encoders, fusion, losses
from . import quality as qualities
from .masking import Array, Mask, State, linear, masked_softmax, sub, zero_missing

Named = Mapping[str, Array]


def _read(
    names: list[str], inputs: Named, present: Mask | None, masks: Mapping[str, Mask] | None
) -> tuple[list[Array], list[Mask | None], Mask]:
    """Inputs in order with zeros where absent, step masks (None for vectors), and what each sample has."""
    batch = len(inputs[names[0]])
    there = np.ones((batch, len(names)), dtype=bool) if present is None else present.copy()
    features: list[Array] = []
    steps: list[Mask | None] = []
    for m, name in enumerate(names):
        x, mask = inputs[name], None
        if x.ndim == 3:
            given = None if masks is None else masks.get(name)
            mask = (np.ones(x.shape[:2], dtype=bool) if given is None else given) & there[:, m : m + 1]
            there[:, m] = mask.any(1)
        features.append(zero_missing(x, there[:, m] if mask is None else mask))
        steps.append(mask)
    return features, steps, there


def _heads(state: State, features: Array) -> tuple[Array | None, Array | None]:
    return tuple(
        np.array([linear(state, f"heads.{name}", row) for row in features]) if f"heads.{name}.bias" in state else None
        for name in ("classes", "values")
    )


def attention_fusion(
    state: State,
    inputs: Named,
    present: Mask | None = None,
    masks: Mapping[str, Mask] | None = None,
    targets: Named | None = None,
    *,
    width: int,
    normalize: str = "softmax",
    absence: str = "exclude",
) -> tuple[Array | None, ...]:
    x, steps, there = _read(list(inputs), inputs, present, masks)
    visible = there if absence == "exclude" else None
    vectors = []
    for m, part in enumerate(x):
        own = sub(state, f"encoders.{m}")
        if steps[m] is None:
            vectors.append(encoders.mlp(own, part, None if visible is None else visible[:, m]))
        else:
            vectors.append(encoders.lstm(own, part, steps[m], width=width))
    stacked = np.stack(vectors, axis=1)
    features, weights = fusion.attention_fusion(sub(state, "fusion"), stacked, visible, normalize=normalize)
    logits, values = _heads(state, features)
    return features, logits, values, np.zeros(()), weights, there


def _latents(
    state: State, x: list[Array], steps: list[Mask | None], visible: Mask | None, bound: str
) -> tuple[Array, Array, Array]:
    parts = []
    for m, part in enumerate(x):
        own = sub(state, f"encoders.{m}")
        if steps[m] is None:
            column = None if visible is None else visible[:, m]
            parts.append(encoders.variational_mlp(own, part, column, bound=bound))
        else:
            parts.append(encoders.variational_lstm(own, part, steps[m], bound=bound))
    mu, logvar, std = (np.stack([part[i] for part in parts], axis=1) for i in (1, 2, 3))
    return mu, logvar, std


def _fuse(state: State, kind: str, mu: Array, std: Array, visible: Mask | None, options: dict) -> tuple[Array, Array]:
    if kind == "mean":
        weights = masked_softmax(np.zeros(mu.shape[:2]), visible)
        return fusion.weighted_sum(mu, weights, visible), weights
    fuse = fusion.gated_fusion if kind == "gated" else fusion.uncertainty_fusion
    return fuse(sub(state, "fusion"), mu, std, visible, **options)


def variational_fusion(
    state: State,
    inputs: Named,
    present: Mask | None = None,
    masks: Mapping[str, Mask] | None = None,
    targets: Named | None = None,
    *,
    kind: str = "uncertainty",
    weighing: dict | None = None,
    heads: int | None = None,
    mode: str = "joint",
    absence: str = "exclude",
    bound: str = "soft",
    quality: str = "none",
    quality_weight: float = 1.0,
    noise: Array | None = None,
    source: str = "own",
    loss: dict | None = None,
    contrastive_weight: float = 0.0,
) -> tuple[Array | None, ...]:
    """Eval mode, or with ``noise (B, M, H)`` training mode without dropout of any kind."""
    x, steps, there = _read(list(inputs), inputs, present, masks)
    visible = there if absence == "exclude" else None
    mu, logvar, std = _latents(state, x, steps, visible, bound)
    believed, doubt = std, None
    if quality != "none":
        doubt = qualities.modality_quality(sub(state, "quality"), x, visible, _read_steps(steps, absence))
        factor = np.exp(0.5 * doubt)[:, :, None]
        believed = factor * (np.ones_like(std) if quality == "replace" else std)
    fused, weights = _fuse(state, kind, mu, believed, visible, weighing or {})
    features = fused
    if heads is not None:
        scalar = weights.mean(-1) if weights.ndim == 3 else weights
        features, _ = attention.proxy_attention(
            sub(state, "attention"), fused, mu, scalar, visible, heads=heads, mode=mode
        )
    logits, values = _heads(state, features)
    aux = np.zeros(())
    if noise is not None:
        given = [(targets or {}).get(name, own) for name, own in zip(inputs, x, strict=True)]
        rebuilt, counted = _rebuild(state, mu, std, noise, weights, visible, there, steps, source)
        aux = losses.variational_loss(
            mu, logvar, rebuilt, given, visible, target_present=counted, masks=steps, **(loss or {})
        )[0]
        if contrastive_weight:
            extra = contrastive.projected_modality_contrastive_loss(
                sub(state, "contrastive"), mu, visible, temperature=0.07
            )
            aux = aux + contrastive_weight * extra
        if doubt is not None and targets is not None:
            real = {name: mask for name, mask in zip(inputs, steps, strict=True) if mask is not None}
            flags = qualities.spoilt_rows(dict(zip(inputs, x, strict=True)), targets, real)
            aux = aux + quality_weight * qualities.quality_loss(doubt, flags, there)
    return features, logits, values, aux, weights, mu, believed, there


def variational_views(
    state: State,
    inputs: Named,
    present: Mask | None = None,
    masks: Mapping[str, Mask] | None = None,
    targets: Named | None = None,
    *,
    views: Mask,
    **options: Any,
) -> tuple[Array | None, ...]:
    """One call of the model for every view; the auxiliary loss is that of the first."""
    there = np.ones(views.shape[1:], dtype=bool) if present is None else present
    calls = [variational_fusion(state, inputs, there & view, masks, targets, **options) for view in views]
    fields = [None if parts[0] is None else np.stack(parts) for parts in zip(*calls, strict=True)]
    fields[3] = calls[0][3]
    return tuple(fields)


def _read_steps(steps: list[Mask | None], absence: str) -> list[Mask | None]:
    """Step masks as the quality sees them: zero filling counts an absent sequence as zeros in all of its steps."""
    if absence == "exclude":
        return steps
    return [None if mask is None else mask | ~mask.any(1, keepdims=True) for mask in steps]


def _rebuild(
    state: State,
    mu: Array,
    std: Array,
    noise: Array,
    weights: Array,
    visible: Mask | None,
    there: Mask,
    steps: list[Mask | None],
    source: str,
) -> tuple[list[Array], Mask]:
    z = mu + std * noise
    if visible is not None:
        z = zero_missing(z, visible)
    counted = there if visible is None or source == "fused" else visible
    fused = fusion.weighted_sum(z, weights, visible)
    rebuilt = [
        encoders.decoder(
            sub(state, f"decoders.{m}"), fused if source == "fused" else z[:, m], None if s is None else s.shape[1]
        )
        for m, s in enumerate(steps)
    ]
    return rebuilt, counted
