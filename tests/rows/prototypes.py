"""Rows for subspace prototypes: the classifier in its modes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from mmrobust import SubspacePrototypeClassifier
from tests.contract import Inputs, Row, Size
from tests.references import prototypes as reference

from .common import H, build_wrong, normal, scaled, wrong

K = 2


def _rows(size: Size, rng: np.random.Generator) -> Inputs:
    return {"x": normal(rng, size.batch, H)}


def _classifier(label: str, **options: Any) -> Row:
    options = {"temperature": 0.5, "normalize": False, "orthogonality": "penalty", **options}
    return Row(
        f"SubspacePrototypeClassifier[{label}]",
        lambda size: SubspacePrototypeClassifier(H, size.classes, K, **options),
        _rows,
        partial(
            reference.classifier,
            temperature=options["temperature"],
            normalize=options["normalize"],
            exact=options["orthogonality"] == "exact",
        ),
        wrong=(
            wrong("x", "integer", lambda x: x.long(), "floating-point", "torch.int64", error=TypeError),
            wrong("x", "features", lambda x: x[:, 1:], "D", "6", "(4, 5)"),
            build_wrong("subspace_dim", lambda: SubspacePrototypeClassifier(4, 2, 5), "4", "5"),
            build_wrong("temperature", lambda: SubspacePrototypeClassifier(4, 2, 1, temperature=0.0), "0.0"),
            build_wrong(
                "orthogonality",
                lambda: SubspacePrototypeClassifier(4, 2, 1, orthogonality="hard"),  # type: ignore[arg-type]
                "'exact'",
                "'hard'",
            ),
        ),
        letters="BC",
        extremes={"1e4": scaled("x", by=1e4), "1e-30": scaled("x", by=1e-30), "0": scaled("x", by=0.0)},
        wide=frozenset({"out"}),
        saved_factor=40.0,
    )


ROWS = (
    _classifier("penalty"),
    _classifier("exact", orthogonality="exact"),
    _classifier("normalize,precise", normalize=True, precise=True),
)
