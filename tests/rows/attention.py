"""Rows for the proxy attention: vectors and sequences, joint and per modality."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from mmrobust.attention import FeatureTokenFusion, ProxyCrossModalAttention
from tests.contract import Inputs, Row, Size
from tests.references import attention as reference

from .common import H, build_wrong, like, normal, pad_steps, presence, scaled, steps_mask, wrong

HEADS = 2


def _vectors(size: Size, rng: np.random.Generator) -> Inputs:
    weights = torch.from_numpy(rng.uniform(0.1, 1.0, (size.batch, size.modalities)))
    return {
        "proxy": normal(rng, size.batch, H),
        "modalities": normal(rng, size.batch, size.modalities, H),
        "weights": weights,
        "present": presence(rng, size.batch, size.modalities),
        "return_weights": True,
    }


def _sequences(size: Size, rng: np.random.Generator) -> Inputs:
    steps = [size.steps + m % 3 for m in range(size.modalities)]
    return {
        **_vectors(size, rng),
        "modalities": [normal(rng, size.batch, t, H) for t in steps],
        "masks": [steps_mask(rng, size.batch, t) for t in steps],
        "present": presence(rng, size.batch, size.modalities),
    }


def _keys(inputs: Inputs) -> list[torch.Tensor]:
    parts = inputs["modalities"]
    if isinstance(parts, torch.Tensor):
        return [column[:, None] for column in inputs["present"].unbind(1)]
    return [m & p[:, None] for m, p in zip(inputs["masks"], inputs["present"].unbind(1), strict=True)]


def _real(inputs: Inputs) -> Inputs:
    keys = _keys(inputs)
    there = torch.stack([key.any(1) for key in keys], dim=1)
    parts = inputs["modalities"]
    kept = (
        like(inputs["present"], parts)
        if isinstance(parts, torch.Tensor)
        else [like(key, part) for key, part in zip(keys, parts, strict=True)]
    )
    return {"modalities": kept, "weights": there, "proxy": like(there.any(1), inputs["proxy"])}


def _pad(inputs: Inputs, extra: int) -> Inputs:
    return {
        **inputs,
        "modalities": [pad_steps(x, extra, float("nan")) for x in inputs["modalities"]],
        "masks": [pad_steps(m, extra, False) for m in inputs["masks"]],
        "return_weights": False,
    }


def _reference(state: Any, mode: str, return_weights: bool = False, **inputs: Any) -> Any:
    found = reference.proxy_attention(state, **inputs, heads=HEADS, mode=mode)
    return found if return_weights else found[0]


def _row(label: str, mode: str, sequences: bool, **more: Any) -> Row:
    def build(size: Size) -> ProxyCrossModalAttention:
        count = size.modalities if mode == "per_modality" else None
        return ProxyCrossModalAttention(H, HEADS, 0.25, mode=mode, num_modalities=count)

    return Row(
        f"ProxyCrossModalAttention[{label}]",
        build,
        _sequences if sequences else _vectors,
        partial(_reference, mode=mode),
        real=_real,
        wrong=(
            wrong("proxy", "width", lambda p: p[:, 1:], "H", "6", "(4, 5)"),
            wrong("present", "float", lambda p: p.float(), "bool", "torch.float32", error=TypeError),
            wrong("weights", "shape", lambda w: w[:, 1:], "(B, M) = (4, 3)", "(4, 2)"),
            build_wrong("num_heads", lambda: ProxyCrossModalAttention(H, 4), "divide", "6", "4"),
            build_wrong("mode", lambda: ProxyCrossModalAttention(H, 2, mode="single"), "'joint'", "'single'"),
        ),
        letters="BMT" if sequences else "BM",
        masks=("present", "masks") if sequences else ("present",),
        stochastic=True,
        extremes={
            "1e4": scaled("modalities", "proxy", by=1e4),
            "1e-30": scaled("modalities", "proxy", by=1e-30),
            "0": scaled("modalities", "proxy", by=0.0),
            "weights 0": scaled("weights", by=0.0),
            "weights 1e10": scaled("weights", by=1e10),
        },
        **more,
    )


def _tokens(size: Size, rng: np.random.Generator) -> Inputs:
    return {
        "tokens": [normal(rng, size.batch, 2 + m % 3, H) for m in range(size.modalities)],
        "present": presence(rng, size.batch, size.modalities),
    }


def _real_tokens(inputs: Inputs) -> Inputs:
    columns = inputs["present"].unbind(1)
    return {"tokens": [like(column, x) for column, x in zip(columns, inputs["tokens"], strict=True)]}


FEATURE_TOKENS = Row(
    "FeatureTokenFusion",
    lambda size: FeatureTokenFusion(H, HEADS, size.modalities, dropout=0.25),
    _tokens,
    partial(reference.feature_token_fusion, heads=HEADS),
    real=_real_tokens,
    wrong=(
        wrong("tokens", "count", lambda x: x[1:], "3 branches", "2"),
        wrong("tokens", "width", lambda x: [x[0][..., 1:], *x[1:]], "E", "6", "(4, 2, 5)"),
        wrong("present", "float", lambda p: p.float(), "bool", "torch.float32", error=TypeError),
        build_wrong("num_heads", lambda: FeatureTokenFusion(H, 4), "divide", "6", "4"),
    ),
    letters="BM",
    masks=("present",),
    stochastic=True,
    extremes={"1e4": scaled("tokens", by=1e4), "1e-30": scaled("tokens", by=1e-30), "0": scaled("tokens", by=0.0)},
    saved_factor=60.0,
)

ROWS = (
    _row("vectors", "joint", False),
    _row("steps", "joint", True, pad=_pad),
    _row("per-modality,vectors", "per_modality", False),
    _row("per-modality,steps", "per_modality", True, pad=_pad),
    FEATURE_TOKENS,
)
