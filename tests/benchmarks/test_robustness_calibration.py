"""Confidence: calibration, selective accuracy, and how well std and weight betray a spoilt modality."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from benchmarks.robustness import (
    Evaluator,
    Outcomes,
    Prediction,
    auroc,
    bin_by_confidence,
    calibration_scores,
    calibration_view,
    corruption_view,
    evaluate_views,
    outcomes,
    risk_coverage,
    selective_accuracy,
    subset_view,
)
from tests.benchmarks.test_robustness import Recorder, Toy, toy


def made(confidence: list[float], correct: list[int]) -> Outcomes:
    return Outcomes(np.array(confidence), np.array(correct, dtype=bool), np.zeros(len(confidence)))


def random_logits(classes: int, rows: int = 500, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(classes)
    logits = (rng.normal(size=(rows, classes)) * scale).astype(np.float32)
    return logits, rng.integers(-1, classes, size=rows)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_ece_and_nll_equal_torchmetrics_and_torch(classes: int) -> None:
    logits, label = random_logits(classes)
    scores = calibration_scores(outcomes(logits, label))
    known = torch.from_numpy(label >= 0)
    inputs, target = torch.from_numpy(logits).double()[known], torch.from_numpy(label)[known]
    ece = MulticlassCalibrationError(classes, n_bins=15, norm="l1")(inputs.softmax(1), target)
    assert scores["ece"] == pytest.approx(float(ece), abs=1e-5) and scores["ece"] > 0.02
    assert scores["nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(inputs, target)), abs=1e-9)


def test_ece_by_hand_and_certainty_belongs_to_the_last_bin() -> None:
    # Bins of 1/15: [0.8, 0.867) has 0.8 right and 0.84 wrong; the last has 0.95 right and 1.0 wrong.
    rows = made([0.8, 0.84, 0.95, 1.0], [1, 0, 1, 0])
    assert calibration_scores(rows)["ece"] == pytest.approx(0.5 * (0.82 - 0.5) + 0.5 * (0.975 - 0.5))
    bins = bin_by_confidence(rows, 10)
    assert bins.share.tolist() == [0.0] * 8 + [0.5, 0.5]
    assert np.isnan(bins.accuracy[:8]).all() and np.isnan(bins.confidence[:8]).all()
    assert bins.confidence[8:] == pytest.approx([0.82, 0.975]) and bins.accuracy[8:].tolist() == [0.5, 0.5]


def test_overconfident_logits_do_not_overflow() -> None:
    rows = outcomes(np.array([[1e4, -1e4], [1e4, -1e4]], dtype=np.float32), np.array([0, 1]))
    assert rows.confidence.tolist() == [1.0, 1.0] and rows.surprise.tolist() == [0.0, 2e4]
    assert calibration_scores(rows) == {"ece": 0.5, "nll": 1e4, "aurc": 0.5}


def test_risk_coverage_by_hand() -> None:
    rows = made([0.6, 0.9, 0.8, 0.7], [1, 1, 0, 1])
    assert risk_coverage(rows) == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4])
    assert calibration_scores(rows)["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_ties_count_as_the_mean_over_all_their_orders() -> None:
    confidence, correct = np.array([0.9, 0.5, 0.5, 0.5, 0.3]), np.array([1, 0, 1, 1, 0])
    risks = [
        np.cumsum(1 - correct[[0, *tied, 4]]) / np.arange(1, 6)  # by hand: the three in the middle change places
        for tied in permutations([1, 2, 3])
    ]
    for order in permutations(range(5)):
        rows = made(confidence[list(order)].tolist(), correct[list(order)].tolist())
        assert risk_coverage(rows) == pytest.approx(np.mean(risks, axis=0))


def test_constant_confidence_knows_nothing() -> None:
    rows = made([0.7] * 10, [1, 0, 1, 1, 0, 1, 1, 1, 0, 1])
    assert calibration_scores(rows)["aurc"] == pytest.approx(0.3)
    assert [selective_accuracy(rows, coverage) for coverage in (0.1, 0.5, 1.0)] == pytest.approx([0.7] * 3)


def test_one_class_is_certain_and_right() -> None:
    rows = outcomes(np.array([[0.3], [-2.0]]), np.array([0, 0]))
    assert calibration_scores(rows) == {"ece": 0.0, "nll": 0.0, "aurc": 0.0}


def test_no_labelled_row_is_no_score() -> None:
    rows = outcomes(np.zeros((3, 2)), np.full(3, -1))
    assert np.isnan(list(calibration_scores(rows).values())).all() and np.isnan(selective_accuracy(rows, 0.5))
    assert bin_by_confidence(rows, 4).share.tolist() == [0.0] * 4


def test_selective_accuracy_keeps_the_most_confident_rounded_up() -> None:
    rows = made([0.1 * i for i in range(1, 11)], [0, 0, 0, 1, 0, 1, 1, 1, 1, 1])
    assert selective_accuracy(rows, 0.5) == 1.0 and selective_accuracy(rows, 1.0) == pytest.approx(0.6)
    assert selective_accuracy(rows, 0.7) == pytest.approx(6 / 7)
    best = made([i / 100 for i in range(100)], [0] * 93 + [1] * 7)
    assert selective_accuracy(best, 0.07) == 1.0  # 0.07 * 100 is 7.000000000000001
    assert selective_accuracy(made([0.9, 0.8, 0.7], [1, 0, 1]), 0.5) == 0.5
    for coverage in (0.0, 1.1):
        with pytest.raises(ValueError, match=rf"coverage in \(0, 1\], got {coverage}"):
            selective_accuracy(rows, coverage)


def test_label_out_of_range_names_the_row() -> None:
    with pytest.raises(ValueError, match="outcomes: expected label below 2 classes, got 2 in row 1"):
        outcomes(np.eye(2), np.array([0, 2]))


class Unsure(Recorder):
    """Sure of what it sees in modality `a` (logits of 2), undecided and wrong without it."""

    def __call__(self, features: dict[str, Tensor], present: Tensor, masks: dict[str, Tensor]) -> Prediction:
        prediction = super().__call__(features, present, masks)
        return prediction._replace(logits=prediction.logits * torch.where(present[:, :1], 2.0, 1e-3))


SURE = np.exp(2) / (np.exp(2) + 2)


def test_view_leaves_out_rows_without_label_or_modality_and_asks_for_nothing_new() -> None:
    data, model = toy(natural=True), Unsure()  # ten rows without `a`, one of them without anything
    data.label[20:25] = -1
    evaluator = Evaluator(model, data)
    subset_view(evaluator)
    asked = model.rows
    views = calibration_view(evaluator)
    assert model.rows == asked
    calibration = views["calibration"]
    assert calibration["a"] == pytest.approx({"ece": 1 - SURE, "nll": -np.log(SURE), "aurc": 0.0})
    third = 1 / (1 + 2 * np.exp(-1e-3))  # undecided: always class 0, which no row is
    assert calibration["b+c"]["ece"] == pytest.approx(third, abs=1e-6) and calibration["b+c"]["aurc"] == 1.0
    # 15 labelled rows have `a` and are right, 9 have only others, are wrong and less confident.
    risks = [0.0] * 15 + [k / (15 + k) for k in range(1, 10)]
    assert calibration["a+b"]["aurc"] == pytest.approx(np.mean(risks))
    reliability = views["reliability"]
    assert len(reliability) == 70
    assert reliability["a+b@08"] == pytest.approx({"confidence": SURE, "accuracy": 1.0, "share": 15 / 24})
    assert reliability["a+b@04"] == pytest.approx({"confidence": third, "accuracy": 0.0, "share": 9 / 24}, abs=1e-6)
    assert reliability["a+b@05"]["share"] == 0.0 and np.isnan(reliability["a+b@05"]["accuracy"])
    accuracy = {coverage: scores["accuracy"] for coverage, scores in views["selective"].items()}
    expected = {"0.5": 1.0, "0.6": 1.0, "0.7": 15 / 17, "0.8": 15 / 20, "0.9": 15 / 22, "1.0": 15 / 24}
    assert accuracy == pytest.approx(expected)


def test_mean_is_over_the_subsets_that_have_rows() -> None:
    data = toy()
    data.present[:, 1:] = False
    calibration = calibration_view(Evaluator(Unsure(), data))["calibration"]
    assert np.isnan(calibration["b+c"]["nll"]) and calibration["mean"] == pytest.approx(calibration["a"])
    data.label[:] = -1
    assert np.isnan(list(calibration_view(Evaluator(Unsure(), data))["calibration"]["mean"].values())).all()


def wide(modalities: int) -> Toy:
    """Make a set whose later modalities are noise."""
    data = toy()
    names = ["a", *(f"m{index}" for index in range(1, modalities))]
    features = {name: data.features["a" if name == "a" else "b"] for name in names}
    return Toy(features, torch.ones(30, modalities, dtype=torch.bool), data.label)


def test_more_than_fifteen_subsets_are_pooled_by_size() -> None:
    assert len(calibration_view(Evaluator(Unsure(), wide(4)))["reliability"]) == 150
    views = calibration_view(Evaluator(Unsure(), wide(5)))
    assert len(views["calibration"]) == 32
    labels = [f"{size}of5@{number:02d}" for size in range(1, 6) for number in range(1, 11)]
    assert list(views["reliability"]) == labels
    # Of the 10 pairs, 4 have `a`.
    assert views["reliability"]["2of5@08"] == pytest.approx({"confidence": SURE, "accuracy": 1.0, "share": 0.4})
    assert views["reliability"]["2of5@04"]["share"] == pytest.approx(0.6)


def test_one_modality_and_named_subsets() -> None:
    alone = evaluate_views(Unsure(), wide(1), views=["calibration"])
    assert list(alone) == ["test", "calibration", "reliability", "selective"]
    assert list(alone["calibration"]) == ["a", "mean"] and len(alone["reliability"]) == 10
    named = evaluate_views(Unsure(), toy(), views=["subset", "calibration"], subsets=iter([["b", "a"]]))
    assert list(named["subset"]) == ["a+b"] and list(named["calibration"]) == ["a+b", "mean"]


def test_auroc_equals_sklearn_with_ties() -> None:
    rng = np.random.default_rng(0)
    higher, lower = rng.integers(0, 6, size=40).astype(float), rng.integers(0, 5, size=70).astype(float)
    expected = roc_auc_score(np.repeat([1, 0], [40, 70]), np.concatenate([higher, lower]))
    assert auroc(higher, lower) == pytest.approx(expected) and expected > 0.55
    assert auroc(np.ones(3), np.ones(2)) == 0.5 and auroc(np.full(2, np.inf), np.ones(2)) == 1.0
    assert np.isnan(auroc(np.empty(0), lower)) and np.isnan(auroc(np.array([np.nan, 1.0]), lower))


class Watchful(Recorder):
    """A model whose std is the mean size of the features, and whose weights follow from it."""

    parts = ("weights", "std")

    def __call__(self, features: dict[str, Tensor], present: Tensor, masks: dict[str, Tensor]) -> Prediction:
        std = torch.stack([x.abs().mean(1) for x in features.values()], dim=1)
        weights = torch.where(present, 1 / (1 + std), 0.0)
        prediction = super().__call__(features, present, masks)._replace(weights=weights, std=std)
        return prediction._replace(**{part: None for part in ("weights", "std") if part not in self.parts})


def test_spoilt_rows_are_told_from_the_same_rows_clean() -> None:
    data = toy(200, natural=True)
    views = corruption_view(Evaluator(Watchful(), data))
    found = views["auroc"]
    assert list(found) == [label for label in views["corrupt"] if not label.endswith(":clean")]
    assert found["b:zeros"] == {"std": 0.0, "weight": 0.0}  # nothing is smaller than zeros
    assert found["b:shuffle"] == {"std": 0.5, "weight": 0.5}  # the same rows in another order
    rows = data.present[:, 1]
    clean = data.features["b"][rows]
    spoilt: list[Tensor] = []

    class Listening(Watchful):
        def __call__(self, features: dict[str, Tensor], present: Tensor, masks: dict[str, Tensor]) -> Prediction:
            spoilt.append(features["b"])
            return super().__call__(features, present, masks)

    corruption_view(Evaluator(Listening(), data))
    # Calls: seven and a clean one for `a`, the clean one for `b`, then its seven; -5 dB is the fourth.
    sizes = [x.abs().mean(1).numpy() for x in (spoilt[8 + 4], clean)]
    expected = roc_auc_score(np.repeat([1, 0], [int(rows.sum())] * 2), np.concatenate(sizes))
    assert found["b:noise@-5dB"] == pytest.approx({"std": expected, "weight": expected}) and expected > 0.6


@pytest.mark.parametrize("parts", [("std",), ("weights",), ()])
def test_what_a_model_does_not_tell_has_no_auroc(parts: tuple[str, ...]) -> None:
    model = Watchful()
    model.parts = parts
    views = corruption_view(Evaluator(model, toy()))
    names = {"std": "std", "weights": "weight"}
    assert all(list(scores) == [names[part] for part in parts] for scores in views.get("auroc", {}).values())
    assert ("auroc" in views) == bool(parts)
