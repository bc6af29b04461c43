"""Scores of predictions: of the classes, of probabilities, of clusters, of telling unknown classes apart."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from benchmarks.robustness.metrics import auroc, classification_scores, confusion_matrix

NAN = float("nan")
ROWS_AT_ONCE = 2048


class Answers(NamedTuple):
    """What a model says of rows: ``logits (N, C)``, ``embedding (N, H)``, ``residual (N, C)`` or None, ``label``."""

    logits: np.ndarray
    embedding: np.ndarray | None
    residual: np.ndarray | None
    label: np.ndarray


class ClassMetrics(nn.Module):
    """Validation metrics: those of the confusion matrix, balanced accuracy, and the negative log-likelihood."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)
        self.nll = MeanMetric(nan_strategy="disable")

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Add a batch: logits ``(B, C)``, labels ``(B,)``."""
        self.confusion.update(logits.float(), label)
        self.nll.update(nn.functional.cross_entropy(logits.double(), label, reduction="none"))

    def compute(self) -> dict[str, float]:
        """Return the scores by name; all are NaN for a model that gives NaN."""
        nll = float(self.nll.compute())
        counts = self.confusion.compute().cpu().numpy()
        scores = {**classification_scores(counts), "balanced_accuracy": balanced_accuracy(counts), "nll": nll}
        # NaN logits have an argmax too: a model that diverged must not look like one that always says class 0.
        return scores if np.isfinite(nll) else dict.fromkeys(scores, NAN)

    def reset(self) -> None:
        self.confusion.reset()
        self.nll.reset()


def balanced_accuracy(confusion: np.ndarray) -> float:
    """Average the recall of the classes that have rows.

    Example:
        >>> balanced_accuracy(np.array([[1, 1, 0], [0, 4, 0], [0, 0, 0]]))
        0.75
    """
    support = confusion.sum(axis=1)
    there = support > 0
    return float((np.diag(confusion)[there] / support[there]).mean()) if there.any() else NAN


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def class_scores(logits: np.ndarray, label: np.ndarray, embedding: np.ndarray | None = None) -> dict[str, float]:
    """Score predictions of rows of known classes; other rows (label -1) are left out.

    Args:
        logits: ``(N, C)``.
        label: ``(N,)``.
        embedding: ``(N, H)``; its k-means clusters are compared with the classes too.

    Returns:
        rows, accuracy, balanced accuracy, macro and weighted F1, F1 of the second of two classes, AUROC (one class
        against the rest, mean over classes), NLL, ARI and NMI of predicted against true classes, ARI of clusters.
    """
    known = label >= 0
    logits, label = logits[known], label[known]
    if not len(label):
        return {"rows": 0.0}
    classes, said = logits.shape[1], logits.argmax(axis=1)
    confusion, logs = confusion_matrix(label, said, classes), log_softmax(logits)
    scores = {"rows": float(len(label)), **classification_scores(confusion)}
    scores["balanced_accuracy"] = balanced_accuracy(confusion)
    if classes == 2:
        scores["f1"] = float(2 * confusion[1, 1] / max(confusion[1].sum() + confusion[:, 1].sum(), 1))
    scores["auroc"] = mean_auroc(logs, label)
    scores["nll"] = float(-logs[np.arange(len(label)), label].mean())
    scores["ari"] = float(adjusted_rand_score(label, said))
    scores["nmi"] = float(normalized_mutual_info_score(label, said))
    if embedding is not None and len(label) >= classes:
        scores["ari_kmeans"] = cluster_ari(embedding[known], label, classes)
    return scores


def mean_auroc(logs: np.ndarray, label: np.ndarray) -> float:
    """Average over the classes the AUROC of a class against the rest; a class without rows is left out."""
    columns = range(logs.shape[1]) if logs.shape[1] > 2 else [1]
    # Of two classes p and 1 - p order the rows alike, where both are not rounded to 0 or 1: hence the difference.
    score = logs if logs.shape[1] > 2 else logs - logs[:, ::-1]
    areas = np.array([auroc(score[label == one, one], score[label != one, one]) for one in columns])
    return float(np.nanmean(areas)) if not np.isnan(areas).all() else NAN


def cluster_ari(embedding: np.ndarray, label: np.ndarray, classes: int) -> float:
    """Compare k-means clusters of embeddings, as many as classes, with the classes."""
    if len(np.unique(embedding, axis=0)) < classes:
        return 0.0  # fewer points than clusters: k-means would warn
    found = KMeans(classes, n_init=10, random_state=0).fit_predict(embedding)
    return float(adjusted_rand_score(label, found))


def open_scores(answers: Answers) -> dict[str, float]:
    """Measure how well rows of unknown classes (label -1) are told from the others.

    Returns:
        ``softmax``: AUROC of 1 - the largest probability; ``residual``: AUROC of the residual to the nearest class,
        for a head of subspaces; ``rows``: unknown rows.
    """
    strange = answers.label < 0
    doubt = {"softmax": -log_softmax(answers.logits).max(axis=1)}
    if answers.residual is not None:
        doubt["residual"] = answers.residual.min(axis=1)
    found = {name: auroc(score[strange], score[~strange]) for name, score in doubt.items()}
    return {"rows": float(strange.sum()), **found}


def rejection_scores(answers: Answers, threshold: float) -> dict[str, float]:
    """Score the rejection of rows whose residual to the nearest class is above a threshold.

    Returns:
        ``coverage``: share of the rows of known classes that are accepted; ``accuracy`` of these;
        ``rejected_unknown``: share of the rows of unknown classes that are rejected; the ``threshold``.
    """
    assert answers.residual is not None
    accepted, known = answers.residual.min(axis=1) <= threshold, answers.label >= 0
    right = answers.logits.argmax(axis=1) == answers.label
    return {
        "threshold": threshold,
        "coverage": _share(accepted[known]),
        "accuracy": _share(right[known & accepted]),
        "rejected_unknown": _share(~accepted[~known]),
    }


def _share(rows: np.ndarray) -> float:
    return float(rows.mean()) if len(rows) else NAN


def answer(task: nn.Module, batch: dict[str, Any], label: np.ndarray) -> Answers:
    """Ask a model for all rows, a part of them at a time: attention between features needs memory for each."""
    device, parts = next(task.parameters()).device, []
    task.eval()
    for start in range(0, max(len(label), 1), ROWS_AT_ONCE):
        with torch.no_grad():
            output, residual = task.answer(_part(batch, slice(start, start + ROWS_AT_ONCE), device))
        found = output.logits, output.embedding, residual
        parts.append([None if x is None else x.float().cpu().numpy() for x in found])
    logits, embedding, residual = (None if x[0] is None else np.concatenate(x) for x in zip(*parts, strict=True))
    assert logits is not None
    return Answers(logits, embedding, residual, label)


def _part(batch: dict[str, Any], rows: slice, device: torch.device) -> dict[str, Any]:
    inputs = {name: x[rows].to(device) for name, x in batch["inputs"].items()}
    return {"inputs": inputs, **{name: batch[name][rows].to(device) for name in ("present", "label")}}
