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
    VariationalLoss,
    cross_modal_kl,
    focal_label_smoothing_loss,
    focal_loss,
    gaussian_kl,
    info_nce_loss,
    label_smoothing_cross_entropy,
    modality_contrastive_loss,
    reconstruction_loss,
)
from tests.contract import Inputs, Row, Size
from tests.references import losses as reference

from .common import Call, H, build_wrong, like, normal, presence, reads, row_presence, scaled, steps_mask, wrong

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


# Variational


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
            *_features_wrong[:1],
            wrong("logvar", "shape", lambda v: v[:, :, 1:], "(4, 3, 6)", "(4, 3, 5)"),
            wrong("mu", "integer", lambda m: m.long(), "floating-point", "torch.int64", error=TypeError),
            build_wrong(
                "latent_reduction", lambda: function(*_two(), latent_reduction="max"), "'sum'", "'max'"
            ),
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
            build_wrong("temperature", lambda: modality_contrastive_loss(torch.ones(1, 2, 3), temperature=-1.0), "-1.0"),
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
        "[published]", False, kl_weight=1.0, reconstruction_weight=1.0, cross_kl_weight=1.0,
        latent_reduction="sum", cross_reduction="mean", symmetric=False,
    ),  # fmt: skip
)
