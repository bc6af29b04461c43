"""Rows for the variational losses; their references are shared with ``tests/losses``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mmrobust import VariationalLoss, cross_modal_kl, gaussian_kl, reconstruction_loss
from tests.contract import Inputs, Row, Size
from tests.references import losses as reference

from .common import Call, H, build_wrong, like, normal, presence, reads, scaled, steps_mask, wrong


def _gaussians(size: Size, rng: np.random.Generator) -> Inputs:
    shape = (size.batch, size.modalities)
    return {"mu": normal(rng, *shape, H), "logvar": normal(rng, *shape, H), "present": presence(rng, *shape)}


_logvar_extremes = {
    "logvar 1e4": scaled("logvar", by=1e4),
    "logvar -1e4": lambda inputs: {**inputs, "logvar": -1e4 * inputs["logvar"].abs()},
    "logvar 10 and -10": lambda inputs: {**inputs, "logvar": torch.where(inputs["logvar"] > 0, 10.0, -10.0)},
    "mu 1e4": scaled("mu", by=1e4),
    "0": scaled("mu", "logvar", by=0.0),
}


def _kl(function: Any, label: str, invariant: bool, **options: Any) -> Row:
    ref = getattr(reference, function.__name__)
    return Row(
        f"{function.__name__}{label}",
        lambda size: Call(function, **options),
        _gaussians,
        lambda state, mu, logvar, present=None: ref(mu, logvar, present, **options),
        real=reads(mu="present", logvar="present"),
        wrong=(
            wrong("present", "float", lambda p: p.float(), "bool", "torch.float32", error=TypeError),
            wrong("logvar", "shape", lambda v: v[:, :, 1:], "(4, 3, 6)", "(4, 3, 5)"),
            wrong("mu", "integer", lambda m: m.long(), "floating-point", "torch.int64", error=TypeError),
            build_wrong("latent_reduction", lambda: function(*_two(), latent_reduction="max"), "'sum'", "'max'"),
        ),
        letters="BM",
        masks=("present",),
        per_row=False,
        modality_axis={"mu": 1, "logvar": 1, "present": 1} if invariant else None,
        extremes=_logvar_extremes,
        saved_factor=20.0,
        half_factor=48.0,
    )


def _two() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)


def _rebuilt(size: Size, rng: np.random.Generator) -> Inputs:
    shape = (size.batch, size.steps, H)
    return {
        "prediction": normal(rng, *shape),
        "target": normal(rng, *shape),
        "mask": steps_mask(rng, *shape[:2]),
    }


def _variational(size: Size, rng: np.random.Generator) -> Inputs:
    """Vectors, sequences, and a modality that is not reconstructed, in turn."""
    batch, count = size.batch, size.modalities
    shapes = [(batch, size.steps, 2) if m % 3 == 1 else (batch, 3) for m in range(count)]
    rebuilt = [None if m % 3 == 2 else normal(rng, *shape) for m, shape in enumerate(shapes)]
    return {
        **_gaussians(size, rng),
        "reconstructions": rebuilt,
        "targets": [normal(rng, *shape) for shape in shapes],
        "target_present": presence(rng, batch, count),
        "masks": [steps_mask(rng, *shape[:2]) if len(shape) == 3 else None for shape in shapes],
    }


def _variational_real(inputs: Inputs) -> Inputs:
    def kept(values: list[Any]) -> list[Any]:
        out = []
        for m, value in enumerate(values):
            rows = inputs["target_present"][:, m]
            keep = rows if inputs["masks"][m] is None else rows[:, None] & inputs["masks"][m]
            # A target without a reconstruction is not read at all.
            keep = keep & (inputs["reconstructions"][m] is not None)
            out.append(None if value is None else like(keep, value))
        return out

    keep = like(inputs["present"], inputs["mu"])
    return {
        "mu": keep,
        "logvar": keep,
        "reconstructions": kept(inputs["reconstructions"]),
        "targets": kept(inputs["targets"]),
    }


def _variational_loss(label: str, invariant: bool, **options: Any) -> Row:
    axes = ("mu", "logvar", "present", "reconstructions", "targets", "target_present", "masks")
    return Row(
        f"VariationalLoss{label}",
        lambda size: VariationalLoss(**options),
        _variational,
        lambda state, **inputs: reference.variational_loss(**inputs, **options),
        real=_variational_real,
        wrong=(
            wrong("targets", "length", lambda t: t[1:], "M = 3", "2"),
            wrong("targets", "shape", lambda t: [t[0][:, 1:], *t[1:]], "targets[0]", "(4, 3)", "(4, 2)"),
            wrong("target_present", "float", lambda p: p.float(), "bool", "torch.float32", error=TypeError),
            build_wrong("free_bits", lambda: VariationalLoss(free_bits=-1.0), "-1.0"),
            build_wrong("cross_reduction", lambda: VariationalLoss(cross_reduction="max"), "'sum'", "'max'"),
        ),
        letters="BMT",
        masks=("present", "target_present", "masks"),
        fixed=("targets",),
        per_row=False,
        modality_axis=dict.fromkeys(axes, 1) if invariant else None,
        extremes=_logvar_extremes,
        saved_factor=20.0,
        half_factor=48.0,
    )


ROWS = (
    _kl(gaussian_kl, "", True),
    _kl(gaussian_kl, "[mean,free-bits]", True, latent_reduction="mean", free_bits=0.3),
    _kl(cross_modal_kl, "", True),
    _kl(cross_modal_kl, "[published]", False, latent_reduction="mean", symmetric=False),
    *(
        Row(
            f"reconstruction_loss[{reduction}]",
            lambda size, reduction=reduction: Call(reconstruction_loss, feature_reduction=reduction),
            _rebuilt,
            lambda state, prediction, target, mask=None, reduction=reduction: reference.reconstruction_loss(
                prediction, target, mask, feature_reduction=reduction
            ),
            real=reads(prediction="mask", target="mask"),
            wrong=(
                wrong("target", "steps", lambda t: t[:, 0], "prediction (4, 4, 6)", "(4, 6)"),
                wrong("mask", "float", lambda m: m.float(), "bool", "torch.float32", error=TypeError),
                wrong("prediction", "integer", lambda p: p.long(), "floating-point", error=TypeError),
            ),
            letters="BT",
            masks=("mask",),
            fixed=("target",),
            per_row=False,
            extremes={"1e15": scaled("prediction", "target", by=1e15), "0": scaled("prediction", "target", by=0.0)},
        )
        for reduction in ("sum", "mean")
    ),
    _variational_loss("", True, kl_weight=0.5, reconstruction_weight=0.7, cross_kl_weight=0.3),
    _variational_loss(
        "[published]",
        False,
        kl_weight=1.0,
        reconstruction_weight=1.0,
        cross_kl_weight=1.0,
        latent_reduction="sum",
        cross_reduction="mean",
        symmetric=False,
    ),
)
