"""Rows for subspace prototypes: the classifier in its modes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from mmrobust import SubspacePrototypeClassifier, TwoBranchPrototypeClassifier
from tests.contract import Inputs, Row, Size
from tests.references import prototypes as reference

from .common import H, build_wrong, like, normal, presence, scaled, wrong

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


def _branches(size: Size, rng: np.random.Generator) -> Inputs:
    return {
        "inputs": {f"m{m}": normal(rng, size.batch, 3 + m % 2) for m in range(size.modalities)},
        "present": presence(rng, size.batch, size.modalities),
    }


def _real(inputs: Inputs) -> Inputs:
    columns = inputs["present"].unbind(1)
    return {"inputs": {n: like(c, x) for (n, x), c in zip(inputs["inputs"].items(), columns, strict=True)}}


def _headless(head: Any) -> TwoBranchPrototypeClassifier:
    return TwoBranchPrototypeClassifier({"a": 2}, [3], 2, 1, head=head)


def _two_branch(label: str, **options: Any) -> Row:
    def build(size: Size) -> TwoBranchPrototypeClassifier:
        sizes = {f"m{m}": 3 + m % 2 for m in range(size.modalities)}
        return TwoBranchPrototypeClassifier(
            sizes, [5, H], size.classes, K, dropout=0.25, token_features=4, projection_features=4, **options
        )

    return Row(
        f"TwoBranchPrototypeClassifier[{label}]",
        build,
        _branches,
        partial(reference.two_branch, heads=2, linear_head="head" in options),
        real=_real,
        wrong=(
            wrong("inputs", "unknown", lambda x: {**x, "m9": x["m0"]}, "'m0'", "'m9'"),
            wrong("present", "float", lambda p: p.float(), "bool", "torch.float32", error=TypeError),
            build_wrong(
                "hidden_features",
                lambda: TwoBranchPrototypeClassifier({"a": 2, "b": 2}, {"a": [3], "b": [4]}, 2, 1),
                "same width",
                "[3]",
            ),
            build_wrong("head", lambda: _headless("max"), "'linear'", "'max'"),
        ),
        letters="BMC",
        masks=("present",),
        stochastic=True,
        extremes={"1e4": scaled("inputs", by=1e4), "0": scaled("inputs", by=0.0)},
        wide=frozenset() if "head" in options else frozenset({"logits"}),
        half_factor=200.0,
        saved_factor=80.0,
    )


ROWS = (
    _classifier("penalty"),
    _classifier("exact", orthogonality="exact"),
    _classifier("normalize,precise", normalize=True, precise=True),
    _two_branch("subspace"),
    _two_branch("linear", head="linear"),
)
