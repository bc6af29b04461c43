"""Scores of one set of predictions: F1, accuracy, squared error of the score, and both combined."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Scores = dict[str, float]

LOWER_IS_BETTER = frozenset({"valence_mse", "ece", "nll", "aurc"})
MSE_SHARE = 0.25
EMPTY_SCORES: Scores = {"rows": 0.0} | dict.fromkeys(("accuracy", "macro_f1", "weighted_f1", "combined"), float("nan"))


def confusion_matrix(label: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count the rows of every (true class, predicted class), leaving out rows whose label is negative.

    Args:
        label: (N,) integer; negative means "no label".
        predicted: (N,) integer in [0, classes).
        classes: number of classes C.

    Returns:
        (C, C) counts, true classes down, predicted classes across.

    Raises:
        ValueError: if a label is not below `classes`; the message names the row.

    Example:
        >>> confusion_matrix(np.array([0, 1, 1, -1]), np.array([0, 1, 0, 1]), 2).tolist()
        [[1, 0], [1, 1]]
    """
    check_labels("confusion_matrix", label, classes)
    known = label >= 0
    flat = label[known] * classes + predicted[known]
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def check_labels(name: str, label: NDArray[np.int64], classes: int) -> None:
    """Raise ValueError, in the name of the function `name`, if a label is not below `classes`."""
    if (label >= classes).any():
        row = int(np.argmax(label >= classes))
        raise ValueError(f"{name}: expected label below {classes} classes, got {label[row]} in row {row}")


def classification_scores(confusion: NDArray[np.int64]) -> Scores:
    """Compute accuracy, macro F1 and weighted F1 from a confusion matrix.

    All C classes count: in the macro mean a class that is neither labelled nor predicted has F1 = 0, as in
    `sklearn.metrics.f1_score(labels=range(C), zero_division=0)`. Without any row every score is NaN.

    Args:
        confusion: (C, C) counts, true classes down.

    Returns:
        The three scores by name.

    Example:
        >>> {name: round(value, 3) for name, value in classification_scores(np.array([[1, 0], [1, 1]])).items()}
        {'accuracy': 0.667, 'macro_f1': 0.667, 'weighted_f1': 0.667}
    """
    rows = confusion.sum()
    if rows == 0:
        return dict.fromkeys(("accuracy", "macro_f1", "weighted_f1"), float("nan"))
    hits, support = np.diag(confusion), confusion.sum(axis=1)
    f1 = 2 * hits / np.maximum(support + confusion.sum(axis=0), 1)
    return {
        "accuracy": float(hits.sum() / rows),
        "macro_f1": float(f1.mean()),
        "weighted_f1": float((f1 * support).sum() / rows),
    }


def masked_mse(predicted: NDArray[np.floating], target: NDArray[np.floating]) -> float:
    """Average the squared error over the rows whose target is not NaN; without such a row the result is NaN.

    Args:
        predicted: (N,) floating.
        target: (N,) floating, NaN = no target.

    Returns:
        The mean squared error, computed in float64.

    Example:
        >>> masked_mse(np.array([1.0, 5.0, 2.0]), np.array([0.0, np.nan, 4.0]))
        2.5
    """
    known = ~np.isnan(target)
    error = predicted[known].astype(np.float64) - target[known]
    return float(np.mean(error**2)) if known.any() else float("nan")


def score_predictions(
    logits: NDArray[np.floating],
    label: NDArray[np.int64],
    values: NDArray[np.floating] | None = None,
    score: NDArray[np.floating] | None = None,
) -> Scores:
    """Score one model's outputs on one set of rows.

    `combined` = weighted F1 - 0.25 * MSE, the figure of the MER2023 challenge. Where nothing can be said about the
    score (no head, no target, or no row with a target) `combined` is the weighted F1 alone.

    Args:
        logits: (N, C) floating; the class is the first largest entry.
        label: (N,) integer; negative rows are left out of the classification scores.
        values: (N,) floating, the predicted score, or None.
        score: (N,) floating, the true score with NaN = none, or None.

    Returns:
        `rows` (labelled rows), `accuracy`, `macro_f1`, `weighted_f1`, `valence_mse` (only with values and score) and
        `combined`. With no labelled row the classification scores are NaN.

    Example:
        >>> score_predictions(np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([0, 0]))["accuracy"]
        0.5
    """
    confusion = confusion_matrix(label, logits.argmax(axis=1), logits.shape[1])
    scores = {"rows": float(confusion.sum()), **classification_scores(confusion)}
    scores["combined"] = scores["weighted_f1"]
    if values is not None and score is not None:
        scores["valence_mse"] = masked_mse(values, score)
        if not np.isnan(scores["valence_mse"]):
            scores["combined"] -= MSE_SHARE * scores["valence_mse"]
    return scores


def auroc(higher: NDArray[np.floating], lower: NDArray[np.floating]) -> float:
    """Compute the chance that an entry of `higher` exceeds one of `lower`, ties counting half.

    This is the area under the ROC curve of telling the two apart by their values alone, from the rank sum.

    Args:
        higher: (n,) floating, what should have the larger values.
        lower: (m,) floating.

    Returns:
        The area: 1 = apart, 0.5 = no difference; NaN if either is empty or has a NaN.

    Example:
        >>> auroc(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
        0.875
    """
    n, m = len(higher), len(lower)
    if not n or not m:
        return float("nan")
    ranks = rankdata(np.concatenate([higher, lower]))[:n]
    return float((ranks.sum() - n * (n + 1) / 2) / (n * m))


def average_scores(scores: list[Scores]) -> Scores:
    """Average each score over several evaluations (draws or rates).

    A NaN (nothing to evaluate) makes the average NaN: an average over fewer terms would not be comparable.

    Args:
        scores: at least one dictionary, all with the same names.

    Returns:
        The mean by name.

    Example:
        >>> average_scores([{"accuracy": 0.5}, {"accuracy": 1.0}])
        {'accuracy': 0.75}
    """
    return {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}
