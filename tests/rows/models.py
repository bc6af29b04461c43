"""Rows for the assembled models; every modality has a size of its own, every second one may be a sequence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from mmrobust import AttentionFusionClassifier, VariationalFusionClassifier
from tests.contract import Inputs, Row, Size
from tests.references import models as reference

from .common import H, build_wrong, like, normal, pad_steps, presence, scaled, steps_mask, wrong
from .quality import training_rows

HEADS = 2


def widths(size: Size) -> dict[str, int]:
    return {f"m{m}": 3 + m % 2 for m in range(size.modalities)}


def sequences(size: Size) -> tuple[str, ...]:
    return tuple(f"m{m}" for m in range(1, size.modalities, 2))


def fitted(model: Any) -> Any:
    """Show the quality of a model, if it has one, training rows from the generator that its builder was seeded with."""
    if getattr(model, "quality", None) is not None and not next(model.buffers()).is_meta:
        steps = {name: [3] if name in model.reader.sequences else [] for name in model.modalities}
        rows = {name: training_rows(40, *steps[name], size) for name, size in model.reader.sizes.items()}
        x = model.reader.read(rows, None, None, fill=False)
        model.quality.fit(x.features, x.present, x.masks)  # without teaching, which takes time
    return model


def vector_inputs(size: Size, rng: np.random.Generator) -> Inputs:
    return {
        "inputs": {name: normal(rng, size.batch, width) for name, width in widths(size).items()},
        "present": presence(rng, size.batch, size.modalities),
    }


def sequence_inputs(size: Size, rng: np.random.Generator) -> Inputs:
    names = sequences(size)
    return {
        "inputs": {
            name: normal(rng, size.batch, *([size.steps] if name in names else []), width)
            for name, width in widths(size).items()
        },
        "present": presence(rng, size.batch, size.modalities),
        "masks": {name: steps_mask(rng, size.batch, size.steps) for name in names},
        "targets": {name: normal(rng, size.batch, size.steps, widths(size)[name]) for name in names},
    }


def viewed(draw: Any) -> Any:
    """Add three views, of which one keeps nothing of a row and none keeps all of the present modalities of another."""

    def inputs(size: Size, rng: np.random.Generator) -> Inputs:
        views = torch.from_numpy(rng.random((3, size.batch, size.modalities)) < 0.6)
        views[1, :1] = False
        views[:, 1:2, :1] = False
        return {**draw(size, rng), "views": views}

    return inputs


def _real(inputs: Inputs) -> Inputs:
    keep = {}
    for m, (name, x) in enumerate(inputs["inputs"].items()):
        rows = inputs["present"][:, m]
        rows = rows & inputs["views"][..., m].any(0) if "views" in inputs else rows
        mask = inputs.get("masks", {}).get(name)
        keep[name] = like(rows if mask is None else rows[:, None] & mask, x)
    both = {"inputs": keep, "targets": {name: keep[name] for name in inputs.get("targets", {})}}
    return {key: value for key, value in both.items() if key in inputs}


def _pad(inputs: Inputs, extra: int) -> Inputs:
    names = inputs["masks"]

    def longer(values: dict[str, torch.Tensor], fill: float | bool) -> dict[str, torch.Tensor]:
        return {k: pad_steps(v, extra, fill) if k in names else v for k, v in values.items()}

    return {
        **inputs,
        "inputs": longer(inputs["inputs"], float("nan")),
        "masks": longer(inputs["masks"], False),
        "targets": longer(inputs["targets"], float("nan")),
    }


def _row(
    kind: Any, label: str, ref: Callable[..., Any], steps: bool = False, *, views: bool = False, **options: Any
) -> Row:
    def build(size: Size) -> Any:
        return fitted(kind(
            widths(size), H, **{"num_classes": size.classes, "num_values": 2, "dropout": 0.25,
            "modality_dropout": 0.4, "sequences": sequences(size) if steps else (), **options}
        ))  # fmt: skip

    return Row(
        f"{kind.__name__}{label}",
        build,
        viewed(sequence_inputs if steps else vector_inputs) if views else sequence_inputs if steps else vector_inputs,
        ref,
        real=_real,
        wrong=(
            wrong("inputs", "unknown", lambda x: {**x, "smell": x["m0"]}, "'m0', 'm1', 'm2'", "'smell'"),
            wrong("inputs", "features", lambda x: {**x, "m0": x["m0"][:, 1:]}, "'m0'", "(B, D) = (4, 3)", "(4, 2)"),
            wrong("inputs", "rows", lambda x: {**x, "m2": x["m2"][1:]}, "'m2'", "(4, 3)", "(3, 3)"),
            wrong("inputs", "none", lambda x: {}, "at least one of m0, m1, m2", "none"),
            wrong("present", "float", lambda p: p.float(), "bool", "torch.float32", error=TypeError),
            wrong("present", "shape", lambda p: p[:, 1:], "(B, M) = (4, 3)", "(4, 2)"),
            *(_views_wrong if views else ()),
            build_wrong("absence", lambda: kind({"a": 2}, 8, num_values=1, absence="drop"), "'exclude'", "'drop'"),
            build_wrong("in_features", lambda: kind({}, 8, num_values=1), "each modality", "{}"),
            build_wrong("num_classes", lambda: kind({"a": 2}, 8), "num_values", "neither"),
        ),
        letters="BMTC" if steps else "BMC",
        masks=("present", "masks") if steps else ("present",),
        fixed=("targets",),
        partly=("inputs",) if "quality" in options else (),
        stochastic=True,
        batch_axis={"views": 1, "out": 1} if views else {},
        wide=frozenset({"aux_loss"}),
        scalars=frozenset({"aux_loss"}),
        pad=_pad if steps else None,
        graph_breaks=steps,
        extremes={
            "1e4": scaled("inputs", by=1e4),
            "1e-30": scaled("inputs", by=1e-30),
            "0": scaled("inputs", by=0.0),
        },
        half_factor=48.0,
        saved_factor=100.0,
    )


_views_wrong = (
    wrong("views", "float", lambda v: v.float(), "bool", "torch.float32", error=TypeError),
    wrong("views", "shape", lambda v: v[0], "(V, B, M) = (any, 4, 3)", "(4, 3)"),
    wrong("views", "rows", lambda v: v[:, 1:], "(V, B, M) = (any, 4, 3)", "(3, 3, 3)"),
    wrong("views", "none", lambda v: v[:0], "at least one view", "(0, 4, 3)"),
)
_attention = partial(_row, AttentionFusionClassifier)
_variational = partial(_row, VariationalFusionClassifier)

ROWS = (
    _attention("", partial(reference.attention_fusion, width=H)),
    _attention("[sequences]", partial(reference.attention_fusion, width=H), True, num_values=0),
    _attention(
        "[published]",
        partial(reference.attention_fusion, width=H, normalize="none", absence="zero_fill"),
        normalize="none",
        absence="zero_fill",
    ),
    _variational("", partial(reference.variational_fusion, heads=HEADS), num_heads=HEADS, contrastive_weight=0.1),
    _variational(
        "[sequences]",
        partial(reference.variational_fusion, kind="mean"),
        True,
        fusion="mean",
        attention="none",
        reconstruct_from="fused",
        classify_from="sample",
        num_classes=None,
    ),
    _variational(
        "[gated,prior]",
        partial(
            reference.variational_fusion,
            kind="gated",
            weighing={"per_dimension": True, "prior_expert": True},
            heads=HEADS,
        ),
        fusion="gated",
        per_dimension=True,
        prior_expert=True,
        num_heads=HEADS,
        reconstruction_weight=0.0,
    ),
    _variational(
        "[published]",
        partial(
            reference.variational_fusion,
            weighing={"weighting": "softmax_inverse_std"},
            heads=HEADS,
            mode="per_modality",
            absence="zero_fill",
            bound="clamp",
        ),
        weighting="softmax_inverse_std",
        attention="per_modality",
        num_heads=HEADS,
        absence="zero_fill",
        latent_reduction="sum",
        symmetric_cross_kl=False,
        logvar_bound="clamp",
    ),
    _variational(
        "[quality=scale]",
        partial(reference.variational_fusion, heads=HEADS, quality="scale"),
        num_heads=HEADS,
        quality="scale",
    ),
    _variational(
        "[quality=replace]",
        partial(reference.variational_fusion, heads=HEADS, quality="replace"),
        True,
        num_heads=HEADS,
        quality="replace",
    ),
    _variational(
        "[views]",
        partial(reference.variational_views, heads=HEADS),
        views=True,
        num_heads=HEADS,
        contrastive_weight=0.1,
    ),
    _variational(
        "[views,frozen]",
        partial(reference.variational_views, kind="gated", weighing={"per_dimension": True}, quality="replace"),
        True,
        views=True,
        fusion="gated",
        per_dimension=True,
        attention="none",
        quality="replace",
        freeze_quality=True,
        classify_from="sample",
    ),
    _variational(
        "[quality,published]",
        partial(
            reference.variational_fusion,
            weighing={"weighting": "softmax_inverse_std"},
            absence="zero_fill",
            quality="scale",
        ),
        weighting="softmax_inverse_std",
        attention="none",
        absence="zero_fill",
        quality="scale",
    ),
)
