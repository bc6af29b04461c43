"""Rows for calibrated confidence."""

from __future__ import annotations

import numpy as np
import torch

from mmrobust import TemperatureScaling, fit_temperature
from tests.contract import Inputs, Row, Size
from tests.references import calibration as reference

from .common import Call, build_wrong, like, normal, scaled, wrong


def _labelled(size: Size, rng: np.random.Generator) -> Inputs:
    target = torch.from_numpy(rng.integers(0, size.classes, size.batch))
    target[2::3] = -100
    return {"logits": 2.0 * normal(rng, size.batch, size.classes), "target": target}


def _fitted(size: Size) -> TemperatureScaling:
    return TemperatureScaling(2.5)


_extremes = {
    "1e4": scaled("logits", by=1e4),
    "1e30": scaled("logits", by=1e30),
    "1e38": scaled("logits", by=1e38),
    "0": scaled("logits", by=0.0),
}

ROWS = (
    Row(
        "fit_temperature",
        lambda size: Call(fit_temperature),
        _labelled,
        lambda state, logits, target: reference.fit_temperature(logits, target),
        real=lambda inputs: {"logits": like(inputs["target"] != -100, inputs["logits"])},
        wrong=(
            wrong("logits", "integer", lambda x: x.long(), "floating-point", "torch.int64", error=TypeError),
            wrong("logits", "vector", lambda x: x[:, 0], "(N, C)", "(4,)"),
            wrong("target", "column", lambda t: t[:, None], "(N,) = (4,)", "(4, 1)"),
            wrong("target", "float", lambda t: t.float(), "integer", "torch.float32", error=TypeError),
            wrong("target", "bool", lambda t: t > 0, "integer", "torch.bool", error=TypeError),
        ),
        letters="BC",
        fixed=("logits",),
        detached=True,
        per_row=False,
        unlabelled=1.0,
        nothing=lambda inputs: {**inputs, "target": torch.full_like(inputs["target"], -100)},
        extremes=_extremes,
    ),
    Row(
        "TemperatureScaling",
        _fitted,
        lambda size, rng: {"logits": normal(rng, size.batch, size.classes)},
        reference.temperature_scaling,
        wrong=(
            wrong("logits", "integer", lambda x: x.long(), "floating-point", "torch.int64", error=TypeError),
            build_wrong("temperature", lambda: TemperatureScaling(0.0), "(0.0, inf)", "0.0"),
            build_wrong("temperature", lambda: TemperatureScaling("hot"), "a number", "str", error=TypeError),
        ),
        letters="BC",
        extremes=_extremes,
    ),
)
