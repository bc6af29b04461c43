"""Rows for the losses of classification; their references are shared with ``tests/losses``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mmrobust import (
    FocalLabelSmoothingLoss,
    FocalLoss,
    LabelSmoothingCrossEntropy,
    focal_label_smoothing_loss,
    focal_loss,
    label_smoothing_cross_entropy,
)
from tests.contract import Inputs, Row, Size
from tests.references import losses as reference

from .common import build_wrong, like, normal, scaled, wrong


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
)
