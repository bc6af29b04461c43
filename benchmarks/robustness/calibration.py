"""Confidence of one model: is it as often right as it says, and does it know its errors, for each subset?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import Tensor

from benchmarks.robustness.metrics import Scores, check_labels
from benchmarks.robustness.protocol import Evaluator
from benchmarks.robustness.rows import View
from benchmarks.robustness.statistics import reduce_columns
from benchmarks.robustness.subsets import subset_patterns

ECE_BINS = 15
RELIABILITY_BINS = 10
COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MOST_DIAGRAMS = 15  # with more subsets the reliability bins are pooled by the number of modalities

Array = NDArray[np.float64]


class Outcomes(NamedTuple):
    """What came of each labelled row.

    Attributes:
        confidence: (n,) largest softmax probability.
        correct: (n,) bool, the class with that probability is the label.
        surprise: (n,) negative log-likelihood of the label, in nats.
    """

    confidence: Array
    correct: NDArray[np.bool_]
    surprise: Array


class Bins(NamedTuple):
    """Rows by their confidence, in bins of equal width.

    Attributes:
        confidence: (bins,) mean confidence; NaN where no row is.
        accuracy: (bins,) share of right answers; NaN where no row is.
        share: (bins,) share of all rows; they sum to 1.
    """

    confidence: Array
    accuracy: Array
    share: Array


def outcomes(logits: NDArray[np.floating], label: NDArray[np.int64]) -> Outcomes:
    """Compare predictions with labels; rows whose label is negative are left out.

    Args:
        logits: (N, C) floating; the class is the first largest entry, as in `score_predictions`.
        label: (N,) integer; negative means "no label".

    Returns:
        The outcomes of the n labelled rows, in float64.

    Raises:
        ValueError: if a label is not below C; the message names the row.

    Example:
        >>> outcomes(np.log([[0.75, 0.25], [0.5, 0.5]]), np.array([1, -1])).confidence.round(3).tolist()
        [0.75]
    """
    check_labels("outcomes", label, logits.shape[1])
    logits, label = logits[label >= 0].astype(np.float64), label[label >= 0]
    logs = log_softmax(logits, axis=1)
    return Outcomes(np.exp(logs.max(axis=1)), logits.argmax(axis=1) == label, -logs[np.arange(len(label)), label])


def bin_by_confidence(rows: Outcomes, bins: int = ECE_BINS) -> Bins:
    """Sort rows into bins [b / bins, (b + 1) / bins); a confidence of 1 belongs to the last.

    Example:
        >>> bin_by_confidence(Outcomes(np.array([0.5, 1.0]), np.array([True, False]), np.zeros(2)), 2)
        Bins(confidence=array([ nan, 0.75]), accuracy=array([nan, 0.5]), share=array([0., 1.]))
    """
    place = np.minimum((rows.confidence * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = (np.bincount(place, part, minlength=bins) / count for part in rows[:2])
    return Bins(confidence, accuracy, count / max(len(place), 1))


def risk_coverage(rows: Outcomes) -> Array:
    """Compute the error rate among the k most confident rows, for k = 1 to n.

    Rows of equal confidence have no order: each counts with the error rate of them all, which is the mean over all
    their orders.

    Args:
        rows: the outcomes of n rows.

    Returns:
        (n,) error rates; the last is that of all rows.

    Example:
        >>> rows = Outcomes(np.array([0.6, 0.9, 0.6]), np.array([True, True, False]), np.zeros(3))
        >>> risk_coverage(rows).round(3).tolist()
        [0.0, 0.25, 0.333]
    """
    _, group = np.unique(-rows.confidence, return_inverse=True)
    errors = np.bincount(group, ~rows.correct) / np.bincount(group)
    return np.cumsum(errors[np.sort(group)]) / np.arange(1, len(group) + 1)


def calibration_scores(rows: Outcomes) -> Scores:
    """Compute how well confidence and correctness agree.

    - `ece`: expected calibration error of the most likely class, the mean of |accuracy - confidence| over 15 bins of
      equal width, by their share of the rows (Guo et al., arXiv 1706.04599).
    - `nll`: mean negative log-likelihood of the labels, in nats.
    - `aurc`: area under the risk-coverage curve, the mean of `risk_coverage` (Geifman et al., arXiv 1805.08206).

    Args:
        rows: the outcomes of n rows.

    Returns:
        The three scores by name, lower is better; NaN without rows.

    Example:
        >>> scores = calibration_scores(outcomes(np.log([[0.75, 0.25], [0.75, 0.25]]), np.array([0, 1])))
        >>> {name: round(value, 3) for name, value in scores.items()}
        {'ece': 0.25, 'nll': 0.837, 'aurc': 0.5}
    """
    if not len(rows.confidence):
        return dict.fromkeys(("ece", "nll", "aurc"), float("nan"))
    bins = bin_by_confidence(rows)
    return {
        "ece": float(np.nansum(bins.share * np.abs(bins.accuracy - bins.confidence))),
        "nll": float(rows.surprise.mean()),
        "aurc": float(risk_coverage(rows).mean()),
    }


def selective_accuracy(rows: Outcomes, coverage: float) -> float:
    """Compute the accuracy on the most confident rows, `coverage` of them (rounded up); NaN without rows.

    Raises:
        ValueError: if `coverage` is not in (0, 1].

    Example:
        >>> selective_accuracy(Outcomes(np.array([0.9, 0.8, 0.7]), np.array([True, False, False]), np.zeros(3)), 0.5)
        0.5
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"selective_accuracy: expected coverage in (0, 1], got {coverage}")
    # Rounded first: 0.07 * 100 is a little more than 7 and must not become 8.
    count = math.ceil(round(coverage * len(rows.confidence), 6))
    return 1 - float(risk_coverage(rows)[count - 1]) if count else float("nan")


def calibration_view(evaluator: Evaluator, subsets: Iterable[Sequence[str]] | None = None) -> dict[str, View]:
    """Judge the model's confidence on subsets of the modalities, and what it is worth on the set as it is.

    Samples are seen as in `subset_view`, with the same predictions; those without a label or without a modality are
    left out.

    Args:
        evaluator: the model and the set.
        subsets: as in `subset_view`.

    Returns:
        The views `calibration` (`calibration_scores` by subset, and their "mean" over the subsets that have rows),
        `reliability` (`bin_by_confidence` by "audio+text@07", bins 01 to 10; with more than 15 subsets pooled by the
        number of modalities, "2of6@07") and `selective` (accuracy by coverage, each sample with what it has).

    Raises:
        ValueError: as `subset_view`.
    """
    patterns = subset_patterns(evaluator.modalities, subsets)
    judged = {label: _judge(evaluator, evaluator.present & pattern) for label, pattern in patterns.items()}
    scores = {label: calibration_scores(rows) for label, rows in judged.items()}
    columns = {name: np.array([one[name] for one in scores.values()]) for name in ("ece", "nll", "aurc")}
    scores["mean"] = {name: float(reduce_columns(column, "mean")) for name, column in columns.items()}
    clean = _judge(evaluator, evaluator.present)
    selective = {f"{coverage:.1f}": {"accuracy": selective_accuracy(clean, coverage)} for coverage in COVERAGES}
    diagrams = judged if len(judged) <= MOST_DIAGRAMS else _pool_by_size(judged, len(evaluator.modalities))
    return {"calibration": scores, "reliability": _reliability(diagrams), "selective": selective}


def _judge(evaluator: Evaluator, present: Tensor) -> Outcomes:
    rows = present.any(dim=1).nonzero().squeeze(1)
    if not len(rows):
        return Outcomes(np.empty(0), np.empty(0, dtype=np.bool_), np.empty(0))
    logits = evaluator.predict(rows, present[rows]).logits
    return outcomes(logits.numpy(), evaluator.data.label[rows].cpu().numpy())


def _pool_by_size(judged: dict[str, Outcomes], modalities: int) -> dict[str, Outcomes]:
    groups: dict[int, list[Outcomes]] = {}
    for label, rows in judged.items():
        groups.setdefault(label.count("+") + 1, []).append(rows)
    return {
        f"{size}of{modalities}": Outcomes(*map(np.concatenate, zip(*groups[size], strict=True)))
        for size in sorted(groups)
    }


def _reliability(diagrams: dict[str, Outcomes]) -> View:
    view = {}
    for label, rows in diagrams.items():
        for number, values in enumerate(zip(*bin_by_confidence(rows, RELIABILITY_BINS), strict=True), start=1):
            view[f"{label}@{number:02d}"] = dict(zip(Bins._fields, map(float, values), strict=True))
    return view
