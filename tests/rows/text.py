"""Rows for the calibration of tokens and the text classifier."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from mmrobust import ASRM, ContrastiveASRM, DualContrastiveTextClassifier, PositionAwareASRM, SpanAwareASRM
from tests.contract import Inputs, Row, Size
from tests.references import text as reference

from .common import H, build_wrong, normal, pad_steps, reads, scaled, steps_mask, wrong

WINDOWS = (1, 2, 3)


def _tokens(size: Size, rng: np.random.Generator) -> Inputs:
    return {
        "x": normal(rng, size.batch, size.steps, H),
        "mask": steps_mask(rng, size.batch, size.steps),
        "return_gate": True,
    }


def _states(size: Size, rng: np.random.Generator) -> Inputs:
    return {
        "inputs": normal(rng, size.batch, size.steps, H),
        "mask": steps_mask(rng, size.batch, size.steps),
        "return_gate": True,
    }


def _pad(inputs: Inputs, extra: int) -> Inputs:
    name = "x" if "x" in inputs else "inputs"
    return {
        name: pad_steps(inputs[name], extra, float("nan")),
        "mask": pad_steps(inputs["mask"], extra, False),
        "return_gate": name == "inputs",
    }


_x_wrong = (
    wrong("x", "integer", lambda x: x.long(), "floating-point", "torch.int64", error=TypeError),
    wrong("x", "width", lambda x: x[..., 1:], "H", "6", "(4, 4, 5)"),
    wrong("mask", "shape", lambda m: m[:, 1:], "(B, T) = (4, 4)", "(4, 3)"),
    wrong("mask", "float", lambda m: m.float(), "bool", "torch.float32", error=TypeError),
)


def _gate(name: str, build: Callable[[Size], Any], ref: Any, *wrongs: Any, **more: Any) -> Row:
    return Row(
        name,
        build,
        _tokens,
        ref,
        real=reads(x="mask"),
        wrong=(*_x_wrong, *wrongs),
        letters="BT",
        masks=("mask",),
        pad=_pad,
        per_step=True,
        extremes={"1e4": scaled("x", by=1e4), "1e-30": scaled("x", by=1e-30), "0": scaled("x", by=0.0)},
        saved_factor=60.0,
        **more,
    )


def _span(label: str, windows: tuple[int, ...], **options: Any) -> Row:
    return _gate(
        f"SpanAwareASRM[{label}]",
        lambda size: SpanAwareASRM(H, windows, **options),
        partial(reference.span_aware, windows=windows),
        build_wrong("window_sizes", lambda: SpanAwareASRM(H, ()), "one size or more", "()"),
        build_wrong("window_sizes", lambda: SpanAwareASRM(H, (0, 3)), "1", "0"),
        build_wrong("groups", lambda: SpanAwareASRM(H, groups=4), "divide", "6", "4"),
        build_wrong("convolution", lambda: SpanAwareASRM(H, convolution="full"), "'dense'", "'full'"),
        stochastic=bool(options.get("dropout")),
    )


def _classifier(label: str, windows: tuple[int, ...] | None, pooling: Any) -> Row:
    def build(size: Size) -> DualContrastiveTextClassifier:
        asrm = None if windows is None else SpanAwareASRM(H, windows)
        return DualContrastiveTextClassifier(None, H, size.classes, asrm=asrm, pooling=pooling, projection_features=4)

    return Row(
        f"DualContrastiveTextClassifier[{label}]",
        build,
        _states,
        lambda state, inputs, mask=None, return_gate=True: reference.classifier(
            state, inputs, mask, pooling=pooling, windows=windows
        ),
        real=reads(inputs="mask"),
        wrong=(
            wrong("inputs", "shape", lambda x: x[:, 0, 0], "(B, T)", "(4,)"),
            wrong("mask", "shape", lambda m: m[:, 1:], "(B, T) = (4, 4)", "(4, 3)"),
            build_wrong("pooling", lambda: DualContrastiveTextClassifier(None, H, 3, pooling="max"), "'mean'", "'max'"),
            build_wrong(
                "supervised_weight",
                lambda: DualContrastiveTextClassifier(None, H, 3, supervised_weight=-1.0),
                "0.0",
                "-1.0",
            ),
        ),
        letters="BTC",
        masks=("mask",),
        stochastic=True,
        pad=_pad,
        per_step=True,
        extremes={"1e4": scaled("inputs", by=1e4), "0": scaled("inputs", by=0.0)},
        saved_factor=60.0,
    )


ROWS = (
    _gate(
        "ASRM",
        lambda size: ASRM(H, reduction=2),
        reference.asrm,
        build_wrong("reduction", lambda: ASRM(H, reduction=0), "1", "0"),
    ),
    _span("grouped", WINDOWS, groups=3),
    _span("depthwise", WINDOWS, convolution="depthwise"),
    _span("dense,dropout", (1, 3, 5), convolution="dense", dropout=0.25),
    _gate(
        "PositionAwareASRM",
        lambda size: PositionAwareASRM(H, reduction=2, position_features=8),
        partial(reference.position_aware, features=8),
        build_wrong("position_features", lambda: PositionAwareASRM(H, position_features=6), "multiple of 4", "6"),
    ),
    _gate(
        "ContrastiveASRM",
        lambda size: ContrastiveASRM(H, 3, WINDOWS),
        partial(reference.contrastive, windows=WINDOWS),
        build_wrong("momentum", lambda: ContrastiveASRM(H, 3, momentum=1.0), "1.0"),
    ),
    _classifier("span-aware,mean", WINDOWS, "mean"),
    _classifier("plain,cls", None, "cls"),
)
