"""Validation metrics: weighted F1, macro F1, accuracy, squared error of the score where there is one, and combined."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection, SumMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

MSE_SHARE = 0.25


class MaskedSquaredError(Metric):
    """Mean squared error over the rows whose target is not NaN; NaN when there is no such row."""

    higher_is_better = False
    total: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Tensor, score: Tensor) -> None:
        known = ~score.isnan()
        self.total += torch.where(known, values.double() - score.nan_to_num().double(), 0.0).square().sum()
        self.rows += known.sum()

    def compute(self) -> Tensor:
        return (self.total / self.rows).float()


class FusionMetrics(nn.Module):
    """All metrics of one split.

    Args:
        num_classes: number of classes C.
        with_values: whether the model predicts a score beside the class.
        value_weight: weight of its squared error in the loss.
    """

    def __init__(self, num_classes: int, with_values: bool, value_weight: float = 1.0) -> None:
        super().__init__()
        self.value_weight = value_weight
        options = {"num_classes": num_classes, "ignore_index": -1, "validate_args": False}
        self.classes = MetricCollection(
            {
                "weighted_f1": MulticlassF1Score(average="weighted", **options),
                "macro_f1": MulticlassF1Score(average="macro", **options),
                "accuracy": MulticlassAccuracy(average="micro", **options),
            }
        )
        self.error = MaskedSquaredError() if with_values else None
        self.broken = SumMetric()
        # What is not a number is counted by `broken`, and says so in `compute`.
        self.surprise, self.rows = SumMetric("ignore"), SumMetric()

    def update(self, logits: Tensor, label: Tensor, values: Tensor | None = None, score: Tensor | None = None) -> None:
        """Add a batch: logits (B, C), label (B,) with -1 = none, values (B,), score (B,) with NaN = none."""
        self.classes.update(logits.float(), label)
        self.broken.update((~logits.isfinite()).sum())
        self.surprise.update(F.cross_entropy(logits.double(), label, ignore_index=-1, reduction="sum"))
        self.rows.update((label >= 0).sum())
        if self.error is not None and values is not None and score is not None:
            self.error.update(values, score)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics by name.

        `combined` is weighted F1 - 0.25 * MSE, or weighted F1 without known scores; `loss` the cross-entropy plus the
        weighted MSE. Both are NaN for a model with logits that are not finite.
        """
        result = dict(self.classes.compute())
        result["loss"] = (self.surprise.compute() / self.rows.compute()).float()
        result["combined"] = result["weighted_f1"]
        if self.error is not None and self.error.update_called:
            error = self.error.compute()
            result["valence_mse"] = error
            # Without a known score the error is 0 / 0; a NaN of the model's own stays and is never selected.
            known = self.error.rows > 0
            result["combined"] = result["combined"] - MSE_SHARE * torch.where(known, error, 0.0)
            result["loss"] = result["loss"] + self.value_weight * torch.where(known, error, 0.0)
        # NaN logits have an argmax too: a model that diverged must not look like one that always says class 0.
        for name in ("combined", "loss"):
            result[name] = result[name].where(self.broken.compute() == 0, torch.nan)
        return result

    def reset(self) -> None:
        self.classes.reset()
        for metric in (self.broken, self.surprise, self.rows):
            metric.reset()
        if self.error is not None:
            self.error.reset()
