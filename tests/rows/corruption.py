"""Rows for what spoils modalities in training."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from mmrobust import ModalityCorruption, SpoiltRows, spoil_rows
from tests.contract import Inputs, Row, Size

from .common import H, build_wrong, normal, row_presence, steps_mask, wrong

KINDS = ("noise", "zeros", "shuffle", "scale", "replace")


def _batch(size: Size, rng: np.random.Generator) -> Inputs:
    return {
        "inputs": {"v": normal(rng, size.batch, H), "s": normal(rng, size.batch, size.steps, H)},
        "masks": {"v": row_presence(rng, size.batch), "s": steps_mask(rng, size.batch, size.steps)},
    }


def _kept(state: Any, inputs: Any, masks: Any = None) -> Any:
    return tuple(inputs.values())


class _Spoil(nn.Module):
    """``spoil_rows`` in training; in eval mode at a rate of 0, where it draws nothing."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> SpoiltRows:
        return spoil_rows(x, 0.8 if self.training else 0.0, mask, kinds=KINDS)


def _spoil(label: str, mask_wrong: Any, *steps: str) -> Row:
    def inputs(size: Size, rng: np.random.Generator) -> Inputs:
        shape = (size.batch, size.steps) if steps else (size.batch,)
        mask = steps_mask(rng, *shape) if steps else row_presence(rng, *shape)
        return {"x": normal(rng, *shape, H), "mask": mask}

    return Row(
        f"spoil_rows{label}",
        lambda size: _Spoil(),
        inputs,
        lambda state, x, mask=None: (x, np.zeros(len(x))),
        wrong=(
            wrong("x", "integer", lambda x: x.long(), "floating-point", "torch.int64", error=TypeError),
            wrong("mask", "float", lambda m: m.float(), "bool", "torch.float32", error=TypeError),
            mask_wrong,
            build_wrong("rate", lambda: spoil_rows(normal(np.random.default_rng(0), 2, 2), 1.5), "[0.0, 1.0]", "1.5"),
            build_wrong("kinds", lambda: spoil_rows(normal(np.random.default_rng(0), 2, 2), 0.5, kinds=[]), "none"),
        ),
        letters="BT" if steps else "B",
        masks=("mask",),
        stochastic=True,
        wide=frozenset({"share"}),
    )


ROWS = (
    _spoil("", wrong("mask", "shape", lambda m: m[1:], "(B,) = (4,)", "(3,)")),
    _spoil("[steps]", wrong("mask", "shape", lambda m: m[:, 1:], "(B, T) = (4, 4)", "(4, 3)"), "T"),
    Row(
        "ModalityCorruption",
        lambda size: ModalityCorruption(0.8, kinds=KINDS),
        _batch,
        _kept,
        wrong=(
            wrong("inputs", "integer", lambda x: {**x, "v": x["v"].long()}, "'v'", "int64", error=TypeError),
            wrong("masks", "unknown", lambda m: {**m, "smell": m["v"]}, "'v', 's'", "'smell'"),
            wrong("masks", "float", lambda m: {"v": m["v"].float()}, "'v'", "bool", "float32", error=TypeError),
            wrong("masks", "vector", lambda m: {"v": m["s"]}, "masks['v']", "(B,) = (4,)", "(4, 4)"),
            wrong("masks", "steps", lambda m: {"s": m["s"][:, 1:]}, "masks['s']", "(B, T) = (4, 4)", "(4, 3)"),
            build_wrong("rate", lambda: ModalityCorruption(1.5), "[0.0, 1.0]", "1.5"),
            build_wrong("kinds", lambda: ModalityCorruption(0.5, kinds=["blur"]), "'noise'", "'blur'"),
            build_wrong("kinds", lambda: ModalityCorruption(0.5, kinds=[]), "noise, zeros, shuffle, scale", "none"),
            build_wrong("snr_db", lambda: ModalityCorruption(0.5, snr_db=(5.0, 0.0)), "[5.0, inf)", "0.0"),
        ),
        letters="BT",
        masks=("masks",),
        stochastic=True,
    ),
)
