"""Rows for presence and for corruptions that a check can call without a seed of its own."""

from __future__ import annotations

import numpy as np
import torch

from mmrobust.presence import ModalityDropout, presence_from_zeros, presence_views
from tests.contract import Inputs, Row, Size
from tests.references import presence as reference

from .common import Call, H, build_wrong, normal, presence, wrong


def _present(size: Size, rng: np.random.Generator) -> Inputs:
    return {"present": presence(rng, size.batch, size.modalities)}


def _features(size: Size, rng: np.random.Generator) -> Inputs:
    x = normal(rng, size.batch, size.steps, H)
    x[1:2] = 0.0
    return {"x": x}


ROWS = (
    Row(
        "ModalityDropout",
        lambda size: ModalityDropout(0.7),
        _present,
        lambda state, present: present,
        wrong=(
            wrong("present", "float", lambda p: p.float(), "bool", "torch.float32", error=TypeError),
            wrong("present", "shape", lambda p: p[0], "(B, M)", "(3,)"),
            build_wrong("p", lambda: ModalityDropout(1.5), "[0.0, 1.0]", "1.5"),
            build_wrong("warmup_epochs", lambda: ModalityDropout(0.5, warmup_epochs=-1), "0", "-1"),
        ),
        letters="BM",
        masks=("present",),
        stochastic=True,
        integer=True,
    ),
    Row(
        "presence_views",
        lambda size: Call(presence_views, count=5000),  # all subsets there are, so that nothing is drawn
        _present,
        lambda state, present: reference.presence_views(present),
        wrong=(
            wrong("present", "float", lambda p: p.float(), "bool", "torch.float32", error=TypeError),
            wrong("present", "shape", lambda p: p[0], "(B, M)", "(3,)"),
            wrong("present", "none", lambda p: p[:, :0], "the modalities of present", "[1, 16]", "0"),
            build_wrong("count", lambda: presence_views(torch.ones(1, 2) > 0, -1), "at least 0", "-1"),
            build_wrong("count", lambda: presence_views(torch.ones(1, 2) > 0, 1.5), "integer", error=TypeError),
        ),
        letters="BM",
        masks=("present",),
        batch_axis={"out": 1},
        integer=True,
    ),
    Row(
        "presence_from_zeros",
        lambda size: Call(presence_from_zeros),
        _features,
        lambda state, x: reference.presence_from_zeros(x),
        wrong=(
            wrong("x", "vector", lambda x: x[:, 0, 0], "(B, ...)", "(4,)"),
            wrong("x", "empty", lambda x: [], "at least one", "none"),
            wrong("x", "sizes", lambda x: [x, x[:2]], "[4, 2]"),
            wrong("x", "type", lambda x: [1.0], "tensor", "float", error=TypeError),
        ),
        letters="BT",
        integer=True,
    ),
)
