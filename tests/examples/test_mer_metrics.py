"""The validation metrics against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score, log_loss

from examples.mer.metrics import FusionMetrics


class TestMetrics:
    def test_equal_scikit_learn_over_batches(self, rng: np.random.Generator) -> None:
        logits, label = rng.standard_normal((50, 3)), rng.integers(-1, 3, 50)
        values, score = rng.standard_normal(50), np.where(rng.random(50) < 0.3, np.nan, rng.standard_normal(50))
        metrics = FusionMetrics(3, with_values=True, value_weight=0.3)
        for rows in np.split(np.arange(50), [7, 30]):
            metrics.update(*(torch.from_numpy(x[rows]) for x in (logits, label, values, score)))
        known, predicted = label >= 0, logits.argmax(1)
        truth, answer = label[known], predicted[known]
        weighted = f1_score(truth, answer, average="weighted")
        error = np.nanmean((values - score) ** 2)
        found = {name: float(value) for name, value in metrics.compute().items()}
        assert found == pytest.approx(
            {
                "weighted_f1": weighted,
                "macro_f1": f1_score(truth, answer, average="macro"),
                "accuracy": accuracy_score(truth, answer),
                "valence_mse": error,
                "combined": weighted - 0.25 * error,
                "loss": log_loss(truth, softmax(logits[known], axis=1), labels=range(3)) + 0.3 * error,
            },
            rel=1e-5,
        )

    def test_combined_is_weighted_f1_without_known_scores_and_nan_for_a_model_that_diverged(self) -> None:
        metrics = FusionMetrics(2, with_values=True)
        logits, label = torch.eye(2), torch.tensor([0, 0])
        metrics.update(logits, label, torch.zeros(2), torch.full((2,), torch.nan))
        assert metrics.compute()["combined"] == metrics.compute()["weighted_f1"] > 0
        metrics.update(logits * torch.nan, label, torch.zeros(2), torch.zeros(2))
        assert metrics.compute()["combined"].isnan() and metrics.compute()["loss"].isnan()
        metrics.reset()
        metrics.update(logits, label)
        assert metrics.compute()["combined"] == metrics.compute()["weighted_f1"]
