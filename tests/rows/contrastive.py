"""Rows for the contrastive losses; their references are shared with ``tests/losses``."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrobust import (
    InfoNCELoss,
    ModalityContrastiveLoss,
    NTXentLoss,
    SupConLoss,
    info_nce_loss,
    modality_contrastive_loss,
    nt_xent_loss,
    sup_con_loss,
)
from tests.contract import Inputs, Row, Size
from tests.references import contrastive as reference

from .common import Call, H, build_wrong, like, normal, presence, reads, row_presence, scaled, wrong

# Extra keys are as many as rows, so that every check may reorder them.


def _weight(rng: np.random.Generator, rows: int) -> Tensor:
    return torch.from_numpy(0.5 + rng.random(rows))


def _labels(size: Size, rng: np.random.Generator) -> Tensor:
    """Labels of which every class has about as many, in random order."""
    return torch.from_numpy(rng.permutation(np.arange(size.batch) % size.classes))


def _temperature(state: Any, fixed: float) -> float:
    return math.exp(float(state.get("temperature.log_temperature", math.log(fixed))))


def _extremes(*names: str) -> dict[str, Any]:
    return {f"{by:g}": scaled(*names, by=by) for by in (1e30, 1e-30, 0.0)}


# Supervised


def _rows(size: Size, rng: np.random.Generator) -> Inputs:
    return {
        "features": normal(rng, size.batch, H),
        "labels": _labels(size, rng),
        "present": row_presence(rng, size.batch),
    }


def _ignoring(size: Size, rng: np.random.Generator) -> Inputs:
    inputs = {**_rows(size, rng), "weight": _weight(rng, size.batch)}
    inputs["labels"][2::5] = -100
    return inputs


def _several(size: Size, rng: np.random.Generator) -> Inputs:
    labels = torch.from_numpy(rng.random((size.batch, size.classes)) < 0.4)
    return {**_rows(size, rng), "labels": labels}


def _with_keys(size: Size, rng: np.random.Generator) -> Inputs:
    return {
        **_rows(size, rng),
        "keys": normal(rng, size.batch, H),
        "key_labels": _labels(size, rng),
        "key_present": row_presence(rng, size.batch),
    }


def _real(inputs: Inputs) -> Inputs:
    """Features and weights of rows that are present and have a label, keys that are present."""
    keep = inputs["present"]
    if inputs["labels"].dim() == 1:
        keep = keep & (inputs["labels"] != -100)
    real = {"features": like(keep, inputs["features"])}
    if "weight" in inputs:
        real["weight"] = keep
    return real | ({"keys": like(inputs["key_present"], inputs["keys"])} if "keys" in inputs else {})


_sup_con_wrong = (
    wrong("labels", "float", lambda y: y.float(), "integer", "torch.float32", error=TypeError),
    wrong("labels", "rows", lambda y: y[1:], "(B,) = (4,)", "(3,)"),
    wrong("features", "vector", lambda x: x[:, 0], "(B, D)", "(4,)"),
    wrong("features", "integer", lambda x: x.long(), "floating-point", "torch.int64", error=TypeError),
    wrong("present", "float", lambda p: p.float(), "bool", "torch.float32", error=TypeError),
    build_wrong("temperature", lambda: SupConLoss(-0.1), "(0", "-0.1"),
    build_wrong("aggregation", lambda: SupConLoss(aggregation="mean"), "'out'", "'in'", "'mean'"),
    build_wrong("reduction", lambda: SupConLoss(reduction="max"), "'none'", "'max'"),
    build_wrong("without_positives", lambda: SupConLoss(without_positives="drop"), "'skip'", "'zero'", "'drop'"),
    build_wrong("gather", lambda: SupConLoss(gather="rings"), "'ring'", "'rings'"),
    build_wrong("impl", lambda: SupConLoss(impl="cuda"), "'triton'", "'cuda'"),
    build_wrong("temperature_range", lambda: SupConLoss(temperature_range=(0.2, 0.1)), "[0.2", "0.1"),
)


def _sup_con(label: str, inputs: Any, temperature: float = 0.3, **options: Any) -> Row:
    learnable = options.pop("learnable_temperature", False)

    def call_function(module: Any, inputs: Inputs) -> Any:
        return sup_con_loss(**inputs, temperature=module.temperature(), **options)

    def call_reference(state: Any, **inputs: Any) -> Any:
        return reference.sup_con_loss(**inputs, temperature=_temperature(state, temperature), **options)

    return Row(
        f"SupConLoss{label}",
        lambda size: SupConLoss(temperature, learnable_temperature=learnable, **options),
        inputs,
        call_reference,
        real=_real,
        function=call_function,
        wrong=_sup_con_wrong
        if inputs is not _several
        else (
            wrong("labels", "float", lambda y: y.float(), "bool", "torch.float32", error=TypeError),
            wrong("labels", "rows", lambda y: y[1:], "(B, C)", "(3, 3)"),
            wrong("labels", "dimensions", lambda y: y[None], "(1, 4, 3)"),
        ),
        letters="BC",
        labels="labels" if options.get("ignore_index") is not None else None,
        masks=("present", "key_present") if inputs is _with_keys else ("present",),
        per_row=False,
        also="sup_con_loss",
        half_factor=24.0 / temperature,
        saved_factor=30.0,
        extremes=_extremes(*(("features", "keys") if inputs is _with_keys else ("features",))),
    )


def _by_masks(
    features: Tensor,
    group: Tensor,
    enemy: Tensor,
    present: Tensor | None = None,
    keys: Tensor | None = None,
    key_group: Tensor | None = None,
) -> Tensor:
    """Turn numbers of rows, which may be reordered, into masks: equal groups are positive, enemies are not compared."""
    everyone = group if key_group is None else torch.cat([group, key_group])
    positives, excluded = group.unsqueeze(1) == everyone, enemy.unsqueeze(1) == everyone
    return sup_con_loss(features, positives=positives, excluded=excluded, present=present, keys=keys, temperature=0.3)


def _masked_reference(
    state: Any, features: Any, group: Any, enemy: Any, keys: Any, key_group: Any, present: Any = None
) -> Any:
    everyone = np.concatenate([group, key_group])
    return reference.sup_con_loss(
        features,
        positives=group[:, None] == everyone,
        excluded=enemy[:, None] == everyone,
        present=present,
        keys=keys,
        temperature=0.3,
    )


def _grouped(size: Size, rng: np.random.Generator) -> Inputs:
    return {
        "features": normal(rng, size.batch, H),
        "group": _labels(size.but(classes=3), rng),
        "enemy": torch.from_numpy(rng.integers(0, 4, size.batch)),
        "present": row_presence(rng, size.batch),
        "keys": normal(rng, size.batch, H),
        "key_group": _labels(size.but(classes=3), rng),
    }


# Pairs


def _pairs(first: str, second: str, *more: str):
    """``more`` is any of negatives, negatives_present and weight."""

    def inputs(size: Size, rng: np.random.Generator) -> Inputs:
        made = {
            first: normal(rng, size.batch, H),
            second: normal(rng, size.batch, H),
            "present": row_presence(rng, size.batch),
            "negatives": normal(rng, size.batch, H),
            "negatives_present": row_presence(rng, size.batch),
            "weight": _weight(rng, size.batch),
        }
        return {name: x for name, x in made.items() if name in (first, second, "present", *more)}

    return inputs


def _pair_row(
    kind: Any, function: Any, names: tuple[str, str], label: str, temperature: float, *more: str, **options: Any
) -> Row:
    first, second = names
    learnable = options.pop("learnable_temperature", False)
    ref = getattr(reference, function.__name__)
    reading = {first: "present", second: "present"}
    reading |= {"weight": "present"} if "weight" in more else {}
    reading |= {"negatives": "negatives_present"} if "negatives_present" in more else {}
    return Row(
        f"{kind.__name__}{label}",
        lambda size: kind(temperature, learnable_temperature=learnable, **options),
        _pairs(first, second, *more),
        lambda state, **inputs: ref(**inputs, temperature=_temperature(state, temperature), **options),
        real=reads(**reading),
        function=lambda module, inputs: function(**inputs, temperature=module.temperature(), **options),
        wrong=(
            wrong(second, "rows", lambda k: k[1:], "B", "(3, 6)"),
            wrong(second, "features", lambda k: k[:, 1:], "D", "(4, 5)"),
            wrong(first, "integer", lambda q: q.long(), "floating-point", "torch.int64", error=TypeError),
            wrong("present", "float", lambda p: p.float(), "bool", "torch.float32", error=TypeError),
            build_wrong("temperature", lambda: kind(0.0), "(0", "0.0"),
            build_wrong("reduction", lambda: kind(reduction="max"), "'none'", "'max'"),
            build_wrong("gather", lambda: kind(gather="rings"), "'ring'", "'rings'"),
            build_wrong("impl", lambda: kind(impl="cuda"), "'triton'", "'cuda'"),
            *([wrong("negatives", "width", lambda n: n[:, 1:], "(N, D)", "(4, 5)")] if "negatives" in more else []),
        ),
        masks=("present", *(name for name in more if name == "negatives_present")),
        per_row=False,
        also=function.__name__,
        half_factor=24.0 / temperature,
        saved_factor=60.0,
        extremes={
            **_extremes(first, second, "negatives"),
            "antipodal": lambda inputs: {**inputs, second: -inputs[first]},
        },
    )


_info_nce = partial(_pair_row, InfoNCELoss, info_nce_loss, ("query", "key"))
_nt_xent = partial(_pair_row, NTXentLoss, nt_xent_loss, ("z1", "z2"))


# Modalities


def _modal(name: str):
    def inputs(size: Size, rng: np.random.Generator) -> Inputs:
        shape = (size.batch, size.modalities)
        return {name: normal(rng, *shape, H), "present": presence(rng, *shape)}

    return inputs


_modal_wrong = (
    wrong("present", "float", lambda p: p.float(), "bool", "torch.float32", error=TypeError),
    wrong("present", "shape", lambda p: p[:, 1:], "(B, M) = (4, 3)", "(4, 2)"),
)


ROWS = (
    _sup_con("", _rows),
    _sup_con("[ignore_index,weight]", _ignoring, ignore_index=-100),
    _sup_con("[zero,sum]", _ignoring, ignore_index=-100, without_positives="zero", reduction="sum"),
    _sup_con("[in,multi-hot]", _several, aggregation="in"),
    _sup_con("[learnable,keys]", _with_keys, learnable_temperature=True),
    Row(
        "sup_con_loss[masks,keys]",
        lambda size: Call(_by_masks),
        _grouped,
        _masked_reference,
        real=reads(features="present"),
        wrong=(
            build_wrong("labels", lambda: sup_con_loss(torch.ones(2, 3)), "positives", "none"),
            build_wrong(
                "positives",
                lambda: sup_con_loss(torch.ones(2, 3), positives=torch.eye(3).bool()),
                "(B, B + K) = (2, 2)",
                "(3, 3)",
            ),
            build_wrong(
                "excluded",
                lambda: sup_con_loss(torch.ones(2, 3), torch.zeros(2).long(), excluded=torch.eye(2)),
                "bool",
                "torch.float32",
                error=TypeError,
            ),
        ),
        masks=("present",),
        per_row=False,
        half_factor=24.0 / 0.3,
        saved_factor=30.0,
        extremes=_extremes("features", "keys"),
    ),
    _info_nce("", 0.1, "negatives"),
    _info_nce("[one-way,temperature=1e-3]", 1e-3, "negatives", symmetric=False),
    _info_nce("[learnable,weight]", 0.2, "weight", "negatives", "negatives_present", learnable_temperature=True),
    _nt_xent("", 0.5),
    _nt_xent("[learnable,negatives]", 0.2, "negatives", "negatives_present", learnable_temperature=True),
    _nt_xent("[weight,sum]", 0.3, "weight", reduction="sum"),
    Row(
        "modality_contrastive_loss",
        lambda size: Call(modality_contrastive_loss, temperature=0.2),
        _modal("features"),
        lambda state, features, present=None: reference.modality_contrastive_loss(features, present, temperature=0.2),
        real=reads(features="present"),
        wrong=(
            *_modal_wrong,
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
        extremes=_extremes("features"),
    ),
    Row(
        "ModalityContrastiveLoss",
        lambda size: ModalityContrastiveLoss(H, size.modalities, 4, 0.2),
        _modal("mu"),
        partial(reference.projected_modality_contrastive_loss, temperature=0.2),
        real=reads(mu="present"),
        wrong=(
            *_modal_wrong,
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
