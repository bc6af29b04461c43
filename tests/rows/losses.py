"""Rows for the losses; their references are shared with ``tests/losses``."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from mmrobust import (
    FocalLabelSmoothingLoss,
    FocalLoss,
    InfoNCELoss,
    LabelSmoothingCrossEntropy,
    ModalityContrastiveLoss,
    focal_label_smoothing_loss,
    focal_loss,
    info_nce_loss,
    label_smoothing_cross_entropy,
    modality_contrastive_loss,
)
from tests.contract import Inputs, Row, Size
from tests.references import losses as reference

from .common import Call, H, build_wrong, like, normal, presence, reads, row_presence, scaled, wrong

# Classification


def _labelled(size: Size, rng: np.random.Generator) -> Inputs:
    target = torch.from_numpy(rng.integers(0, size.classes, size.batch))
    target[2::3] = -100
    return {"logits": normal(rng, size.batch, size.classes), "target": target}


def _ignore_all(inputs: Inputs) -> Inputs:
    return {**inputs, "target": torch.full_like(inputs["target"], -100)}


def _classification(kind: Any, function: Any, label: str, options: dict[str, Any], **more: Any) -> Row:
    """``options`` are those of the function; class weights go to the module as a buffer."""
    ref = getattr(reference, function.__name__)

    def build(size: Size) -> Any:
        weight = options.get("weight")
        given = {k: v for k, v in options.items() if k != "weight"}
        return kind(**given, weight=None if weight is None else [1.0 + c for c in range(size.classes)])

    def call_function(module: Any, inputs: Inputs) -> Any:
        given = {k: v for k, v in options.items() if k != "weight"}
        return function(**inputs, **given, weight=module.weight)

    def call_reference(state: Any, logits: Any, target: Any) -> Any:
        given = {k: v for k, v in options.items() if k != "weight"}
        return ref(logits, target, **given, weight=state.get("weight"))

    return Row(
        f"{kind.__name__}{label}",
        build,
        _labelled,
        call_reference,
        real=lambda inputs: {"logits": like(inputs["target"] != -100, inputs["logits"])},
        function=call_function,
        wrong=(
            wrong("target", "column", lambda t: t[:, None], "(B,) = (4,)", "(4, 1)"),
            wrong("target", "float", lambda t: t.float(), "integer", "torch.float32", error=TypeError),
            wrong("logits", "vector", lambda x: x[:, 0], "(B, C", "(4,)"),
            build_wrong("reduction", lambda: kind(reduction="max"), "'mean'", "'max'"),
            build_wrong("weight", lambda: kind(weight=[1.0, -1.0]), "-1.0"),
        ),
        letters="BC",
        per_row=options.get("reduction") == "none",
        wide=frozenset({"out"}),
        also=function.__name__,
        nothing=_ignore_all,
        extremes={
            "1e4": scaled("logits", by=1e4),
            "1e30": scaled("logits", by=1e30),
            "0": scaled("logits", by=0.0),
            "1e-30": scaled("logits", by=1e-30),
        },
        saved_factor=16.0,
        **more,
    )


# Contrastive


def _pairs(size: Size, rng: np.random.Generator) -> Inputs:
    return {
        "query": normal(rng, size.batch, H),
        "key": normal(rng, size.batch, H),
        "present": row_presence(rng, size.batch),
        "negatives": normal(rng, size.batch, H),  # as many as rows, so that every check may reorder them
    }


def _modal(name: str):
    def inputs(size: Size, rng: np.random.Generator) -> Inputs:
        shape = (size.batch, size.modalities)
        return {name: normal(rng, *shape, H), "present": presence(rng, *shape)}

    return inputs


def _info_nce(label: str, temperature: float, symmetric: bool) -> Row:
    options = {"temperature": temperature, "symmetric": symmetric}
    return Row(
        f"InfoNCELoss{label}",
        lambda size: InfoNCELoss(temperature, symmetric=symmetric),
        _pairs,
        lambda state, query, key, present=None, negatives=None: reference.info_nce_loss(
            query, key, present=present, negatives=negatives, **options
        ),
        real=reads(query="present", key="present"),
        function=lambda module, inputs: info_nce_loss(**inputs, **options),
        wrong=(
            wrong("key", "rows", lambda k: k[1:], "B", "(3, 6)"),
            wrong("query", "integer", lambda q: q.long(), "floating-point", "torch.int64", error=TypeError),
            wrong("present", "float", lambda p: p.float(), "bool", "torch.float32", error=TypeError),
            wrong("negatives", "width", lambda n: n[:, 1:], "(N, D)", "(4, 5)"),
            build_wrong("temperature", lambda: InfoNCELoss(0.0), "(0", "0.0"),
        ),
        masks=("present",),
        per_row=False,
        also="info_nce_loss",
        half_factor=24.0 / temperature,
        saved_factor=40.0,
        extremes={
            "1e30": scaled("query", "key", "negatives", by=1e30),
            "1e-30": scaled("query", "key", "negatives", by=1e-30),
            "0": scaled("query", "key", "negatives", by=0.0),
            "antipodal": lambda inputs: {**inputs, "key": -inputs["query"]},
        },
    )


_features_wrong = (
    wrong("present", "float", lambda p: p.float(), "bool", "torch.float32", error=TypeError),
    wrong("present", "shape", lambda p: p[:, 1:], "(B, M) = (4, 3)", "(4, 2)"),
)


ROWS = (
    _classification(FocalLoss, focal_loss, "", {}),
    _classification(FocalLoss, focal_loss, "[gamma=0.3,weights]", {"gamma": 0.3, "weight": True}),
    _classification(FocalLoss, focal_loss, "[gamma=0,sum]", {"gamma": 0.0, "reduction": "sum"}),
    _classification(FocalLoss, focal_loss, "[gamma=5,none]", {"gamma": 5.0, "reduction": "none"}),
    _classification(LabelSmoothingCrossEntropy, label_smoothing_cross_entropy, "", {}),
    _classification(
        LabelSmoothingCrossEntropy,
        label_smoothing_cross_entropy,
        "[off-target,weights]",
        {"smoothing": 0.2, "convention": "off_target", "weight": True},
    ),
    _classification(FocalLabelSmoothingLoss, focal_label_smoothing_loss, "", {}),
    _classification(
        FocalLabelSmoothingLoss,
        focal_label_smoothing_loss,
        "[target-factor]",
        {"gamma": 1.0, "focal_factor": "target", "convention": "off_target"},
    ),
    _info_nce("", 0.1, True),
    _info_nce("[one-way,temperature=1e-3]", 1e-3, False),
    Row(
        "modality_contrastive_loss",
        lambda size: Call(modality_contrastive_loss, temperature=0.2),
        _modal("features"),
        lambda state, features, present=None: reference.modality_contrastive_loss(features, present, temperature=0.2),
        real=reads(features="present"),
        wrong=(
            *_features_wrong,
            wrong("features", "vector", lambda x: x[:, 0], "(B, M, H)", "(4, 6)"),
            build_wrong(
                "temperature", lambda: modality_contrastive_loss(torch.ones(1, 2, 3), temperature=-1.0), "-1.0"
            ),
        ),
        letters="BM",
        masks=("present",),
        per_row=False,
        modality_axis={"features": 1, "present": 1},
        half_factor=100.0,
        saved_factor=60.0,
        extremes={
            "1e30": scaled("features", by=1e30),
            "1e-30": scaled("features", by=1e-30),
            "0": scaled("features", by=0.0),
        },
    ),
    Row(
        "ModalityContrastiveLoss",
        lambda size: ModalityContrastiveLoss(H, size.modalities, 4, 0.2),
        _modal("mu"),
        partial(reference.projected_modality_contrastive_loss, temperature=0.2),
        real=reads(mu="present"),
        wrong=(
            *_features_wrong,
            wrong("mu", "modalities", lambda x: x[:, 1:], "M", "3", "(4, 2, 6)"),
            build_wrong("num_modalities", lambda: ModalityContrastiveLoss(H, 0), "1", "0"),
        ),
        letters="BM",
        masks=("present",),
        per_row=False,
        half_factor=100.0,
        saved_factor=60.0,
        extremes={"1e4": scaled("mu", by=1e4), "1e-30": scaled("mu", by=1e-30), "0": scaled("mu", by=0.0)},
    ),
)
