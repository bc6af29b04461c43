"""Scores of predictions: accuracy, F1, AUROC, the confusion matrix, and bias by target group."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from benchmarks.robustness.metrics import auroc, classification_scores, confusion_matrix
from benchmarks.robustness.rows import View

NO_LABEL = -100
# The class that is no hate speech, by its name in the corpora.
NEUTRAL = ("normal", "neither", "not-hate")
# The ten most frequent groups of HateXplain, which its benchmark measures bias on.
GROUPS = (
    "African",
    "Islam",
    "Jewish",
    "Homosexual",
    "Women",
    "Refugee",
    "Arab",
    "Caucasian",
    "Asian",
    "Hispanic",
)
POWER = -5
GENERALIZED = "generalized mean"


class TextMetrics(nn.Module):
    """Validation metrics: accuracy, macro F1 and weighted F1 of the same confusion matrix as in the evaluation.

    Args:
        num_classes: Number of classes C.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.confusion = MulticlassConfusionMatrix(num_classes, ignore_index=NO_LABEL, validate_args=False)
        self.broken = SumMetric()

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits ``(B, C)``, labels ``(B,)``, -100 = none."""
        self.confusion.update(logits.float(), labels)
        self.broken.update((~logits.isfinite()).sum())

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics by name; macro F1 is NaN for a model with logits that are not finite."""
        scores = classification_scores(self.confusion.compute().cpu().numpy())
        # NaN logits have an argmax too: a model that diverged must not look like one that always says class 0.
        if self.broken.compute() > 0:
            scores["macro_f1"] = float("nan")
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in scores.items()}

    def reset(self) -> None:
        self.confusion.reset()
        self.broken.reset()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits ``(N, C)`` into probabilities."""
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def neutral_class(classes: Sequence[str]) -> int | None:
    """Find the class that is no hate speech; None without one."""
    return next((code for code, name in enumerate(classes) if name in NEUTRAL), None)


def toxicity(logits: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Give the probability of all classes but the neutral one ``(N,)``, which must be there."""
    neutral = neutral_class(classes)
    if neutral is None:
        raise ValueError(f"toxicity: expected one of {', '.join(NEUTRAL)} among the classes, got {', '.join(classes)}")
    return 1.0 - softmax(logits)[:, neutral]


def multiclass_auroc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Average the area under the ROC curve over all pairs of classes, as HateXplain does ("ovo", macro).

    Args:
        probabilities: ``(N, C)``.
        labels: ``(N,)``, negative = none.

    Returns:
        The area; for two classes the usual one. NaN where a class has no row.
    """
    areas = []
    for a, b in combinations(range(probabilities.shape[1]), 2):
        for one, other in ((a, b), (b, a)):
            areas.append(auroc(probabilities[labels == one, one], probabilities[labels == other, one]))
    return float(np.mean(areas)) if areas else float("nan")


def scores_of(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Give accuracy, macro and weighted F1, AUROC and the number of rows."""
    confusion = confusion_matrix(labels, logits.argmax(1), len(classes))
    scores = {"rows": float(confusion.sum()), **classification_scores(confusion)}
    return {**scores, "auroc": multiclass_auroc(softmax(logits), labels)}


def bias_view(toxic_probability: np.ndarray, toxic: np.ndarray, targets: Sequence[Sequence[str]]) -> View:
    """Measure bias by target group as the benchmark of HateXplain does (Borkan et al., arXiv:1903.04561).

    Posts that name none of the ten groups are left out; the background of a group are posts about the others.

    Args:
        toxic_probability: ``(N,)``.
        toxic: ``(N,)`` bool, the truth.
        targets: Groups that each post names.

    Returns:
        By group: ``subgroup`` (toxic against normal posts within the group), ``bpsn`` (toxic background, normal
        subgroup) and ``bnsp`` (normal background, toxic subgroup) AUC, NaN where one side has no post; and their
        generalized means of power -5 over the groups that have a value, and how many these are.
    """
    named = np.array([[group in one for group in GROUPS] for one in targets], dtype=bool).reshape(-1, len(GROUPS))
    counted = named.any(1)
    view: View = {}
    for code, group in enumerate(GROUPS):
        inside, outside = counted & named[:, code], counted & ~named[:, code]
        sides = {"subgroup": (inside, inside), "bpsn": (outside, inside), "bnsp": (inside, outside)}
        view[group] = {
            name: auroc(toxic_probability[positive & toxic], toxic_probability[negative & ~toxic])
            for name, (positive, negative) in sides.items()
        }
    names = ("subgroup", "bpsn", "bnsp")
    view[GENERALIZED] = {name: power_mean([view[group][name] for group in GROUPS]) for name in names}
    view[GENERALIZED]["groups"] = float(sum(not np.isnan(list(view[group].values())).any() for group in GROUPS))
    return view


def power_mean(values: Sequence[float], power: float = POWER) -> float:
    """Return ``(mean(v ** p)) ** (1 / p)`` of the values that are not NaN; a negative p leans to the lowest.

    Example:
        >>> round(power_mean([0.5, 1.0]), 3)
        0.571
    """
    known = np.array([value for value in values if not np.isnan(value)])
    if not len(known):
        return float("nan")
    if (known <= 0).any():
        return 0.0
    return float(np.mean(known**power) ** (1 / power))
