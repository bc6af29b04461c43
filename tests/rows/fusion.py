"""Rows for the fusions and their functions."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from mmrobust.fusion import (
    AttentionFusion,
    GatedUncertaintyFusion,
    UncertaintyWeightedFusion,
    fused_std,
    uncertainty_weights,
    weighted_sum,
)
from tests.contract import Inputs, Row, Size
from tests.references import fusion as reference

from .common import Call, H, build_wrong, like, normal, presence, reads, scaled, wrong


def _std(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.uniform(0.3, 2.0, shape))


def _gaussians(size: Size, rng: np.random.Generator) -> Inputs:
    shape = (size.batch, size.modalities, H)
    return {"mu": normal(rng, *shape), "std": _std(rng, *shape), "present": presence(rng, *shape[:2])}


def _listed(size: Size, rng: np.random.Generator) -> Inputs:
    inputs = _gaussians(size, rng)
    return {**inputs, "mu": list(inputs["mu"].unbind(1)), "std": list(inputs["std"].unbind(1))}


def _stds(size: Size, rng: np.random.Generator) -> Inputs:
    return {k: v for k, v in _gaussians(size, rng).items() if k != "mu"}


def _vectors(size: Size, rng: np.random.Generator) -> Inputs:
    shape = (size.batch, size.modalities, H)
    return {"x": normal(rng, *shape), "present": presence(rng, *shape[:2])}


def _weighted(first: str, per_dimension: bool):
    def inputs(size: Size, rng: np.random.Generator) -> Inputs:
        shape = (size.batch, size.modalities, H)
        weights = torch.from_numpy(rng.uniform(0.05, 0.3, shape if per_dimension else shape[:2]))
        x = _std(rng, *shape) if first == "std" else normal(rng, *shape)
        return {first: x, "weights": weights, "present": presence(rng, *shape[:2])}

    return inputs


def _listed_real(inputs: Inputs) -> Inputs:
    keep = [like(column, x) for column, x in zip(inputs["present"].unbind(1), inputs["mu"], strict=True)]
    return {"mu": keep, "std": keep}


def _listed_reference(state: Any, mu: Any, std: Any, present: Any = None) -> Any:
    return reference.uncertainty_fusion(state, np.stack(mu, 1), np.stack(std, 1), present)


_present_wrong = (
    wrong("present", "float", lambda p: p.float(), "bool", "torch.float32", error=TypeError),
    wrong("present", "shape", lambda p: p[:, 1:], "(B, M) = (4, 3)", "(4, 2)"),
)
_std_extremes = {
    "std 0": scaled("std", by=0.0),
    "std 1e-30": scaled("std", by=1e-30),
    "std 1e30": scaled("std", by=1e30),
    "std exp(5e3)": lambda inputs: {**inputs, "std": torch.full_like(inputs["std"], float("inf"))},
    "std 1e-4 and 1e4": lambda inputs: {**inputs, "std": torch.where(inputs["std"] > 1, 1e4, 1e-4).to(inputs["std"])},
}
_gaussian_extremes = {
    **_std_extremes,
    "mu 1e30": scaled("mu", by=1e30),
    "mu 0": scaled("mu", by=0.0),
}


def _weights(label: str, **options: Any) -> Row:
    return Row(
        f"uncertainty_weights{label}",
        lambda size: Call(uncertainty_weights, **options),
        _stds,
        lambda state, std, present=None: reference.uncertainty_weights(std, present, **options),
        real=reads(std="present"),
        wrong=(
            *_present_wrong,
            wrong("std", "vector", lambda s: s[:, 0], "(B, M, H)", "(4, 6)"),
            build_wrong("temperature", lambda: uncertainty_weights(torch.ones(1, 2, 3), temperature=0.0), "(0", "0.0"),
        ),
        letters="BM",
        masks=("present",),
        modality_axis={"std": 1, "present": 1, "out": 1},
        extremes=_std_extremes,
    )


def _uncertainty(label: str, **options: Any) -> Row:
    return Row(
        f"UncertaintyWeightedFusion{label}",
        lambda size: UncertaintyWeightedFusion(**options),
        _gaussians,
        partial(reference.uncertainty_fusion, **options),
        real=reads(mu="present", std="present"),
        wrong=(
            wrong("std", "shape", lambda s: s[:, :, 1:], "mu (4, 3, 6)", "(4, 3, 5)"),
            wrong("mu", "vector", lambda m: m[:, 0], "(B, M, H)", "(4, 6)"),
            wrong("mu", "integer", lambda m: m.long(), "floating-point", "torch.int64", error=TypeError),
            build_wrong("weighting", lambda: UncertaintyWeightedFusion(weighting="mean"), "'precision'", "'mean'"),
            build_wrong("power", lambda: UncertaintyWeightedFusion(power=-1.0), "-1.0"),
        ),
        letters="BM",
        masks=("present",),
        modality_axis={"mu": 1, "std": 1, "present": 1, "weights": 1},
        extremes=_gaussian_extremes,
    )


def _gated(label: str, **options: Any) -> Row:
    named = {k: v for k, v in options.items() if k not in {"alpha", "learn_alpha"}}
    return Row(
        f"GatedUncertaintyFusion{label}",
        lambda size: GatedUncertaintyFusion(H, size.modalities, dropout=0.25, **options),
        _gaussians,
        partial(reference.gated_fusion, **named),
        real=reads(mu="present", std="present"),
        wrong=(
            *_present_wrong,
            wrong("std", "shape", lambda s: s[:, :, 1:], "mu (4, 3, 6)", "(4, 3, 5)"),
            wrong("mu", "integer", lambda m: m.long(), "floating-point", "torch.int64", error=TypeError),
            build_wrong("alpha", lambda: GatedUncertaintyFusion(H, 3, alpha=1.5), "[0.0, 1.0]", "1.5"),
            build_wrong("alpha", lambda: GatedUncertaintyFusion(H, 3, alpha=1.0, learn_alpha=True), "(0.0, 1.0)"),
        ),
        letters="BM",
        masks=("present",),
        stochastic=True,
        extremes=_gaussian_extremes,
    )


def _attention(label: str, **options: Any) -> Row:
    return Row(
        f"AttentionFusion{label}",
        lambda size: AttentionFusion(H, size.modalities, dropout=0.25, **options),
        _vectors,
        partial(reference.attention_fusion, normalize=options.get("normalize", "softmax")),
        real=reads(x="present"),
        wrong=(
            *_present_wrong,
            wrong("x", "modalities", lambda x: x[:, 1:], "M", "3", "(4, 2, 6)"),
            wrong("x", "width", lambda x: x[..., 1:], "H", "6", "(4, 3, 5)"),
            build_wrong("normalize", lambda: AttentionFusion(H, 3, normalize="sum"), "'softmax'", "'sum'"),
        ),
        letters="BM",
        masks=("present",),
        stochastic=True,
        extremes={"1e4": scaled("x", by=1e4), "1e-30": scaled("x", by=1e-30), "0": scaled("x", by=0.0)},
    )


ROWS = (
    _weights(""),
    _weights("[softmax,per-dimension]", weighting="softmax_inverse_std", per_dimension=True),
    _weights("[prior,per-dimension]", per_dimension=True, prior_expert=True, power=1.5, temperature=0.7),
    *(
        Row(
            f"weighted_sum[{'per-dimension' if each else 'per-sample'}]",
            lambda size: Call(weighted_sum),
            _weighted("x", each),
            lambda state, x, weights, present=None: reference.weighted_sum(x, weights, present),
            real=reads(x="present", weights="present"),
            wrong=(
                *_present_wrong,
                wrong("weights", "integer", lambda w: w.long(), "floating-point", error=TypeError),
                wrong("weights", "shape", lambda w: w[:, 1:], "4", "2"),
            ),
            letters="BM",
            masks=("present",),
            modality_axis={"x": 1, "weights": 1, "present": 1},
            extremes={"1e30": scaled("x", by=1e30), "0": scaled("x", by=0.0)},
        )
        for each in (False, True)
    ),
    *(
        Row(
            f"fused_std[{'prior' if prior else 'no-prior'}]",
            lambda size, prior=prior: Call(fused_std, prior_expert=prior),
            _weighted("std", prior),
            lambda state, std, weights, present=None, prior=prior: reference.fused_std(
                std, weights, present, prior_expert=prior
            ),
            real=reads(std="present", weights="present"),
            wrong=(
                *_present_wrong,
                wrong("weights", "integer", lambda w: w.long(), "floating-point", error=TypeError),
                wrong("std", "vector", lambda s: s[:, 0], "(B, M, H)", "(4, 6)"),
            ),
            letters="BM",
            masks=("present",),
            modality_axis={"std": 1, "weights": 1, "present": 1},
            extremes={k: v for k, v in _std_extremes.items() if k != "std exp(5e3)"},
        )
        for prior in (False, True)
    ),
    _uncertainty(""),
    _uncertainty("[softmax]", weighting="softmax_inverse_std", temperature=0.5),
    _uncertainty("[prior,per-dimension]", per_dimension=True, prior_expert=True),
    Row(
        "UncertaintyWeightedFusion[sequence]",
        lambda size: UncertaintyWeightedFusion(),
        _listed,
        _listed_reference,
        real=_listed_real,
        wrong=(
            *_present_wrong,
            wrong("mu", "empty", lambda m: [], "at least one", "none"),
            wrong("mu", "widths", lambda m: [m[0], m[1][:, 1:], m[2]], "mu[1]", "(4, 5)"),
        ),
        letters="BM",
        masks=("present",),
        modality_axis={"mu": 1, "std": 1, "present": 1, "weights": 1},
        extremes={"std 0": lambda inputs: {**inputs, "std": [0.0 * s for s in inputs["std"]]}},
    ),
    _gated(""),
    _gated("[learned,per-dimension]", alpha=0.3, learn_alpha=True, per_dimension=True),
    _gated("[softmax]", alpha=0.8, weighting="softmax_inverse_std"),
    _attention(""),
    _attention("[raw]", normalize="none", num_layers=1),
)
