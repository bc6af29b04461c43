"""Rows for the masking functions."""

from __future__ import annotations

import numpy as np
import torch

from mmrobust.masking import lengths_to_mask, masked_mean, masked_softmax, zero_missing
from tests.contract import Inputs, Row, Size
from tests.references import masking as reference

from .common import Call, H, normal, pad_steps, reads, scaled, steps_mask, wrong


def _frames(name: str):
    def inputs(size: Size, rng: np.random.Generator) -> Inputs:
        return {name: normal(rng, size.batch, size.steps, H), "mask": steps_mask(rng, size.batch, size.steps)}

    return inputs


def _logits(size: Size, rng: np.random.Generator) -> Inputs:
    return {
        "logits": normal(rng, size.batch, size.steps),
        "mask": steps_mask(rng, size.batch, size.steps),
    }


def _lengths(size: Size, rng: np.random.Generator) -> Inputs:
    return {"lengths": torch.from_numpy(rng.integers(0, size.steps + 1, size.batch))}


def _pad(name: str):
    return lambda inputs, extra: {
        name: pad_steps(inputs[name], extra, float("nan")),
        "mask": pad_steps(inputs["mask"], extra, False),
    }


_float_mask = ("mask", "float", lambda m: m.float(), "bool", "torch.float32")

ROWS = (
    Row(
        "zero_missing",
        lambda size: Call(zero_missing),
        _frames("x"),
        lambda state, x, mask=None: reference.zero_missing(x, mask),
        real=reads(x="mask"),
        wrong=(
            wrong(*_float_mask, error=TypeError),
            wrong("mask", "shape", lambda m: m[:, :2], "(4, 4, 6)", "(4, 2)"),
            wrong("x", "type", lambda x: x.tolist(), "tensor", "list", error=TypeError),
        ),
        letters="BT",
        masks=("mask",),
    ),
    Row(
        "masked_softmax",
        lambda size: Call(masked_softmax),
        _logits,
        lambda state, logits, mask=None: reference.masked_softmax(logits, mask),
        real=reads(logits="mask"),
        wrong=(
            wrong(*_float_mask, error=TypeError),
            wrong("mask", "shape", lambda m: m[:, :3], "(4, 4)", "(4, 3)"),
            wrong("logits", "integer", lambda x: x.long(), "floating-point", "torch.int64", error=TypeError),
        ),
        letters="BT",
        masks=("mask",),
        extremes={"1e4": scaled("logits", by=1e4), "1e30": scaled("logits", by=1e30), "0": scaled("logits", by=0.0)},
    ),
    Row(
        "masked_mean",
        lambda size: Call(masked_mean),
        _frames("x"),
        lambda state, x, mask=None: reference.masked_mean(x, mask),
        real=reads(x="mask"),
        wrong=(
            wrong(*_float_mask, error=TypeError),
            wrong("mask", "reach", lambda m: m[:, 0], "1", "dimension"),
            wrong("x", "integer", lambda x: x.long(), "floating-point", "torch.int64", error=TypeError),
        ),
        letters="BT",
        masks=("mask",),
        pad=_pad("x"),
        extremes={"1e30": scaled("x", by=1e30), "1e-30": scaled("x", by=1e-30), "0": scaled("x", by=0.0)},
    ),
    Row(
        "lengths_to_mask",
        lambda size: Call(lengths_to_mask, max_length=size.steps),
        _lengths,
        lambda state, lengths: reference.lengths_to_mask(lengths, Size().steps),
        wrong=(
            wrong("lengths", "float", lambda n: n.double(), "integer", "torch.float64", error=TypeError),
            wrong("lengths", "bool", lambda n: n > 0, "integer", "torch.bool", error=TypeError),
            wrong("lengths", "shape", lambda n: n[:, None], "(B,)", "(4, 1)"),
        ),
        letters="BT",
        integer=True,
    ),
)
