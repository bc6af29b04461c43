"""Scores of predictions, and regret to specialists."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle

from benchmarks.robustness import regret_view, score_predictions


@pytest.mark.parametrize("classes", [2, 6])
def test_scores_equal_sklearn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    logits, label = rng.normal(size=(200, classes)), rng.integers(-1, classes - 1, size=200)  # the last never occurs
    scores = score_predictions(logits, label)
    known, guess = label >= 0, logits.argmax(1)
    options = {"labels": range(classes), "zero_division": 0}
    assert scores["rows"] == known.sum()
    assert scores["accuracy"] == pytest.approx(oracle.accuracy_score(label[known], guess[known]))
    for average in ("macro", "weighted"):
        expected = oracle.f1_score(label[known], guess[known], average=average, **options)
        assert scores[f"{average}_f1"] == pytest.approx(expected)
    assert scores["combined"] == scores["weighted_f1"] and "valence_mse" not in scores


def test_combined_score_subtracts_a_quarter_of_the_known_errors() -> None:
    logits, label = np.eye(2)[[0, 1, 1]], np.array([0, 1, 1])
    scores = score_predictions(logits, label, np.array([1.0, 9.0, 2.0]), np.array([3.0, np.nan, 2.0]))
    assert scores["valence_mse"] == 2.0 and scores["combined"] == pytest.approx(1.0 - 0.25 * 2.0)
    without = score_predictions(logits, label, np.zeros(3), np.full(3, np.nan))  # test3 of MER2023: no valence at all
    assert np.isnan(without["valence_mse"]) and without["combined"] == 1.0


def test_label_out_of_range_names_the_row() -> None:
    with pytest.raises(ValueError, match=r"label below 2 classes, got 2 in row 1"):
        score_predictions(np.eye(2), np.array([0, 2]))


def test_regret_is_positive_where_the_specialist_is_better() -> None:
    robust = {"a": {"accuracy": 0.7, "valence_mse": 2.0, "rows": 9.0}, "a+b": {"accuracy": 0.9, "valence_mse": 1.0}}
    special = {"a": {"accuracy": 0.8, "valence_mse": 1.5, "rows": 9.0}, "a+b": {"accuracy": 0.85, "valence_mse": 1.1}}
    view = regret_view(robust, special)
    assert view["a"] == pytest.approx({"accuracy": 0.1, "valence_mse": 0.5})
    assert view["a+b"] == pytest.approx({"accuracy": -0.05, "valence_mse": -0.1})
    assert view["mean"] == pytest.approx({"accuracy": 0.025, "valence_mse": 0.2})
    assert view["worst"] == pytest.approx({"accuracy": 0.1, "valence_mse": 0.5})


def test_regret_leaves_out_empty_subsets_and_refuses_unequal_ones() -> None:
    empty = {"rows": 0.0, "accuracy": float("nan")}
    full = {"rows": 5.0, "accuracy": 0.5}
    assert regret_view({"a": full, "b": empty}, {"a": full, "b": empty})["mean"] == {"accuracy": 0.0}
    with pytest.raises(ValueError, match="got no b; unknown c"):
        regret_view({"a": full, "b": full}, {"a": full, "c": full})
    with pytest.raises(ValueError, match=r"same rows for both models in subset a, got 5.0 and 4.0"):
        regret_view({"a": full}, {"a": {"rows": 4.0, "accuracy": 0.5}})
