"""Rows for input quality."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmrobust import (
    ModalityQuality,
    Reference,
    fit_reference,
    novelty_statistics,
    quality_loss,
)
from tests.contract import Inputs, Row, Size
from tests.references import quality as reference

from .common import Call, build_wrong, like, normal, pad_steps, presence, reads, row_presence, scaled, steps_mask, wrong

D = 5
# Seven examples, for no size of a row may be one of the batch sizes that the checks on torch.compile take.
FITTING: dict[str, Any] = {"max_components": 3, "explained": 0.8, "num_rows": 7}


def training_rows(*shape: int) -> Tensor:
    """Rows near a plane, off the origin, from the generator that the builder of a row was seeded with."""
    low = torch.randn(*shape[:-1], 2) @ torch.randn(2, shape[-1])
    return low + 0.3 * torch.randn(shape) + torch.randn(shape[-1])


def _fit(x: Tensor) -> dict[str, Tensor]:
    """Fit, and return what depends neither on the order of the rows nor on the signs of the components."""
    found = fit_reference(x, **FITTING)
    outer = found.components.unsqueeze(2) * found.components.unsqueeze(1)  # no product that autocast would take
    return {
        "mean": found.mean,
        "scale": found.scale,
        "projector": outer.sum(0),
        "variances": found.variances,
        "rest": found.rest,
    }


def _fitted(state: Any, x: Any) -> tuple[Any, ...]:
    found = reference.fit_reference(x, **FITTING)
    variances = np.ones(FITTING["max_components"])
    variances[: len(found.variances)] = found.variances
    return found.mean, found.scale, reference.projector(found.components), variances, np.array(found.rest)


class _Statistics(nn.Module):
    """``novelty_statistics`` with a reference that moves along with the module."""

    def __init__(self) -> None:
        super().__init__()
        rows = training_rows(64, D)
        with torch.device("cpu"):
            found = fit_reference(torch.zeros(64, D) if rows.is_meta else rows, **FITTING)
        for name, value in found._asdict().items():
            self.register_buffer(name, value.to(rows.device))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return novelty_statistics(x, Reference(*(getattr(self, name) for name in Reference._fields)), mask)


def _statistics(label: str, inputs: Any, mask_wrong: Any, **more: Any) -> Row:
    return Row(
        f"novelty_statistics{label}",
        lambda size: _Statistics(),
        inputs,
        lambda state, x, mask=None: reference.novelty_statistics(x, reference.of_state(state), mask),
        real=reads(x="mask"),
        wrong=(
            wrong("x", "integer", lambda x: x.long(), "floating-point", "torch.int64", error=TypeError),
            wrong("x", "features", lambda x: x[..., 1:], "D) = (", "5", "4)"),
            wrong("mask", "float", lambda m: m.float(), "bool", "torch.float32", error=TypeError),
            mask_wrong,
        ),
        masks=("mask",),
        fixed=("x",),
        detached=True,
        wide=frozenset({"out"}),
        extremes={
            "1e30": scaled("x", by=1e30),
            "1e38": scaled("x", by=1e38),
            "1e-30": scaled("x", by=1e-30),
            "0": scaled("x", by=0.0),
        },
        **more,
    )


def widths(size: Size) -> list[int]:
    return [3 + m % 2 for m in range(size.modalities)]


def steps_of(size: Size, sequences: bool, count: int) -> list[list[int]]:
    """Return the shape of every modality for ``count`` rows; every second one may be a sequence."""
    return [
        [count, size.steps, width] if sequences and m % 2 else [count, width] for m, width in enumerate(widths(size))
    ]


def _quality_inputs(size: Size, rng: np.random.Generator, *, sequences: bool) -> Inputs:
    shapes = steps_of(size, sequences, size.batch)
    inputs: Inputs = {
        "features": [normal(rng, *shape) for shape in shapes],
        "present": presence(rng, size.batch, size.modalities),
    }
    if sequences:
        inputs["masks"] = [steps_mask(rng, size.batch, size.steps) if len(shape) == 3 else None for shape in shapes]
    return inputs


def _quality_real(inputs: Inputs) -> Inputs:
    masks = inputs.get("masks", [None] * len(inputs["features"]))
    columns = inputs["present"].unbind(1)
    return {
        "features": [
            like(there if mask is None else there.unsqueeze(1) & mask, x)
            for x, there, mask in zip(inputs["features"], columns, masks, strict=True)
        ]
    }


def _quality_pad(inputs: Inputs, extra: int) -> Inputs:
    return {
        "features": [pad_steps(x, extra, float("nan")) if x.dim() == 3 else x for x in inputs["features"]],
        "present": inputs["present"],
        "masks": [None if mask is None else pad_steps(mask, extra, False) for mask in inputs["masks"]],
    }


def _build_quality(size: Size, *, sequences: bool) -> ModalityQuality:
    module = ModalityQuality(widths(size), 4, **FITTING)
    if not module.references[0].mean.is_meta:
        module.fit([training_rows(*shape) for shape in steps_of(size, sequences, 40)])
    return module


def _quality(label: str, sequences: bool, **more: Any) -> Row:
    return Row(
        f"ModalityQuality{label}",
        partial(_build_quality, sequences=sequences),
        partial(_quality_inputs, sequences=sequences),
        reference.modality_quality,
        real=_quality_real,
        wrong=(
            wrong("features", "count", lambda x: x[1:], "length M = 3", "2"),
            wrong("features", "width", lambda x: [x[0][:, 1:], *x[1:]], "features[0]", "(4, 3)", "(4, 2)"),
            wrong("features", "rows", lambda x: [*x[:2], x[2][1:]], "features[2]", "(4, 3)", "(3, 3)"),
            wrong("features", "integer", lambda x: [v.long() for v in x], "floating-point", "int64", error=TypeError),
            wrong("present", "float", lambda p: p.float(), "bool", "torch.float32", error=TypeError),
            wrong("present", "shape", lambda p: p[:, 1:], "(B, M) = (4, 3)", "(4, 2)"),
            build_wrong("in_features", lambda: ModalityQuality([]), "at least one modality", "none"),
            build_wrong("max_components", lambda: ModalityQuality([2], max_components=0), "at least 1", "0"),
            build_wrong("explained", lambda: ModalityQuality([2], explained=1.0), "(0.0, 1.0)", "1.0"),
            build_wrong("num_rows", lambda: ModalityQuality([2], num_rows=1.5), "integer", "float", error=TypeError),
            *more.pop("wrong", ()),
        ),
        fixed=("features",),
        wide=frozenset({"out"}),
        extremes={
            "1e30": scaled("features", by=1e30),
            "1e-30": scaled("features", by=1e-30),
            "0": scaled("features", by=0.0),
        },
        half_factor=48.0,
        **more,
    )


def _flags(size: Size, rng: np.random.Generator) -> Inputs:
    shape = (size.batch, size.modalities)
    return {
        "logvar": 0.1 + 3.0 * normal(rng, *shape).abs(),
        "spoilt": torch.from_numpy(rng.random(shape) < 0.5),
        "present": presence(rng, *shape),
    }


def _shares(size: Size, rng: np.random.Generator) -> Inputs:
    """Every share there is, both ends included."""
    inputs = _flags(size, rng)
    share = torch.from_numpy(rng.random(inputs["logvar"].shape))
    return {**inputs, "spoilt": torch.where(share < 0.2, 0.0, torch.where(share > 0.8, 1.0, share))}


def _loss(label: str, inputs: Any, **more: Any) -> Row:
    return Row(
        f"quality_loss{label}",
        lambda size: Call(quality_loss),
        inputs,
        lambda state, logvar, spoilt, present=None: reference.quality_loss(logvar, spoilt, present),
        wrong=(
            wrong("logvar", "integer", lambda x: x.long(), "floating-point", "torch.int64", error=TypeError),
            wrong("logvar", "shape", lambda x: x[0], "(B, M)", "(3,)"),
            wrong("spoilt", "complex", lambda s: s.cfloat(), "bool", "torch.complex64", error=TypeError),
            wrong("spoilt", "none", lambda s: None, "tensor", "NoneType", error=TypeError),
            wrong("spoilt", "shape", lambda s: s[:, 1:], "(B, M) = (4, 3)", "(4, 2)"),
            wrong("present", "float", lambda p: p.float(), "bool", "torch.float32", error=TypeError),
        ),
        letters="BM",
        masks=("present",),
        per_row=False,
        modality_axis={"logvar": 1, "spoilt": 1, "present": 1},
        extremes={"1e4": scaled("logvar", by=1e4), "1e30": scaled("logvar", by=1e30), "0": scaled("logvar", by=0.0)},
        half_factor=48.0,
        **more,
    )


_vectors_wrong = wrong("mask", "shape", lambda m: m[1:], "(B,) = (4,)", "(3,)")
_steps_wrong = wrong("mask", "shape", lambda m: m[:, 1:], "(B, T) = (4, 4)", "(4, 3)")

ROWS = (
    Row(
        "fit_reference",
        lambda size: Call(_fit),
        lambda size, rng: {"x": normal(rng, size.batch, D)},
        _fitted,
        wrong=(
            wrong("x", "integer", lambda x: x.long(), "floating-point", "torch.int64", error=TypeError),
            wrong("x", "vector", lambda x: x[0], "(N, D)", "(5,)"),
            wrong("x", "rows", lambda x: x[:0], "at least one row", "(0, 5)"),
            build_wrong("explained", lambda: fit_reference(torch.ones(2, 2), explained=0.0), "(0.0, 1.0)", "0.0"),
            build_wrong("num_rows", lambda: fit_reference(torch.ones(2, 2), num_rows=0), "at least 1", "0"),
            build_wrong("max_components", lambda: fit_reference(torch.ones(2, 2), max_components=0), "1", "0"),
        ),
        fixed=("x",),
        detached=True,
        fits=True,
        per_row=False,
        smallest=1,
        extremes={"1e30": scaled("x", by=1e30), "1e-30": scaled("x", by=1e-30), "0": scaled("x", by=0.0)},
    ),
    _statistics(
        "",
        lambda size, rng: {"x": normal(rng, size.batch, D), "mask": row_presence(rng, size.batch)},
        _vectors_wrong,
    ),
    _statistics(
        "[steps]",
        lambda size, rng: {
            "x": normal(rng, size.batch, size.steps, D),
            "mask": steps_mask(rng, size.batch, size.steps),
        },
        _steps_wrong,
        letters="BT",
        pad=lambda inputs, extra: {
            "x": pad_steps(inputs["x"], extra, float("nan")),
            "mask": pad_steps(inputs["mask"], extra, False),
        },
    ),
    _quality("", False, letters="BM", masks=("present",)),
    _quality(
        "[sequences]",
        True,
        letters="BMT",
        masks=("present", "masks"),
        pad=_quality_pad,
        wrong=(
            wrong("masks", "shape", lambda m: [None, m[1][:, 1:], None], "masks[1]", "(4, 4)", "(4, 3)"),
            wrong("masks", "vector", lambda m: [m[1], m[1], None], "masks[0]", "None", "a mask"),
        ),
    ),
    _loss("", _flags, real=reads(logvar="present")),
    _loss("[shares]", _shares, real=reads(logvar="present", spoilt="present"), fixed=("spoilt",)),
)
