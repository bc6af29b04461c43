"""One row per public component; every check of the contract tests runs on every row.

A check that does not apply to a row is skipped only for a reason of ``REASONS``, and each reason is itself tested:
it must still be true of the rows it excuses, and it must still excuse one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.contract import Row
from tests.rows import (
    attention,
    calibration,
    contrastive,
    corruption,
    encoders,
    fusion,
    losses,
    masking,
    models,
    presence,
    prototypes,
    quality,
    text,
    variational,
)

ROWS: tuple[Row, ...] = (
    *masking.ROWS,
    *presence.ROWS,
    *corruption.ROWS,
    *quality.ROWS,
    *encoders.ROWS,
    *fusion.ROWS,
    *attention.ROWS,
    *losses.ROWS,
    *contrastive.ROWS,
    *variational.ROWS,
    *calibration.ROWS,
    *prototypes.ROWS,
    *models.ROWS,
    *text.ROWS,
)

CHECKS: dict[str, list[str]] = {}  # check -> ids of the rows that it runs on, filled when the tests are collected


@dataclass(frozen=True)
class Reason:
    """Why some checks do not run on some rows."""

    text: str
    checks: frozenset[str]
    applies: Callable[[Row], bool]


REASONS: dict[str, Reason] = {
    "no-modalities": Reason(
        "takes one modality, or none",
        frozenset({"modality-counts"}),
        lambda row: "M" not in row.letters,
    ),
    "order-matters": Reason(
        "has parameters, sizes or an order of its own for every modality",
        frozenset({"modality-permutation"}),
        lambda row: row.modality_axis is None,
    ),
    "no-time": Reason(
        "takes no sequences that a mask could shorten", frozenset({"padding"}), lambda row: row.pad is None
    ),
    "no-step-axis": Reason("takes no sequences", frozenset({"single-step"}), lambda row: "T" not in row.letters),
    "no-classes": Reason("has no classes", frozenset({"class-counts"}), lambda row: "C" not in row.letters),
    "no-mask": Reason("has no mask argument", frozenset({"integer-mask", "mask-none"}), lambda row: not row.masks),
    "nothing-absent": Reason(
        "nothing of its input can be marked absent",
        frozenset({"all-absent"}),
        lambda row: not row.masks and row.nothing is None,
    ),
    "all-is-read": Reason(
        "there is nothing in its input that it must not read, or hand on as it is",
        frozenset({"unread"}),
        lambda row: row.real is None,
    ),
    "is-a-mask": Reason(
        "its data are the masks themselves, so they cannot be left out",
        frozenset({"mask-none"}),
        lambda row: bool(row.masks) and row.integer,
    ),
    "no-labels": Reason(
        "takes no labels, or counts them all",
        frozenset({"labels"}),
        lambda row: "C" not in row.letters or row.per_row or row.labels is None,
    ),
    "reduces-the-batch": Reason(
        "its value is one for the whole batch", frozenset({"row-independence"}), lambda row: not row.per_row
    ),
    "no-function": Reason(
        "has parameters, so there is no public function for the whole of it",
        frozenset({"module-is-function"}),
        lambda row: row.function is None,
    ),
    "draws-in-training": Reason(
        "draws random numbers in training", frozenset({"train-is-eval"}), lambda row: row.stochastic
    ),
    "draws-nothing": Reason(
        "draws no random numbers in training",
        frozenset({"train-draws", "compile-training"}),
        lambda row: not row.stochastic,
    ),
    "no-gradient": Reason(
        "its output is bool or integer: there is no derivative and no rounding",
        frozenset({"gradcheck", "half", "autocast", "saved-memory"}),
        lambda row: row.integer,
    ),
    "detached": Reason(
        "measures its input and has no parameters: it passes no gradient on, on purpose",
        frozenset({"gradcheck"}),
        lambda row: row.detached,
    ),
    "fits-once": Reason(
        "is called once, before training: no program holds it, and its eigenvalue problem waits for the device",
        frozenset({"export", "no-host-sync"}),
        lambda row: row.fits,
    ),
    "dynamo-breaks-on-lstm": Reason(
        "torch.compile leaves nn.LSTM to eager, so the graph breaks there",
        frozenset({"compile"}),
        lambda row: row.graph_breaks,
    ),
    "no-extremes": Reason("moves values without arithmetic", frozenset({"extremes"}), lambda row: not row.extremes),
}


def skip_reason(check: str, row: Row) -> str | None:
    return next((name for name, r in REASONS.items() if check in r.checks and r.applies(row)), None)


def contract(check: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Run a test as ``check`` on every row; the plain function stays callable with any row."""

    def mark(test: Callable[..., Any]) -> Callable[..., Any]:
        params = []
        for row in ROWS:
            reason = skip_reason(check, row)
            skips = [pytest.mark.skip(reason=f"{reason}: {REASONS[reason].text}")] if reason else []
            params.append(pytest.param(row, id=row.name, marks=skips))
        CHECKS[check] = [row.name for row in ROWS if skip_reason(check, row) is None]
        return pytest.mark.parametrize("row", params)(test)

    return mark
