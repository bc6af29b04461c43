"""Scores of the hate-speech pipeline against scikit-learn and definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support, roc_auc_score

from examples.hate_speech.metrics import (
    GENERALIZED,
    GROUPS,
    TextMetrics,
    bias_view,
    multiclass_auroc,
    neutral_class,
    power_mean,
    scores_of,
    softmax,
    toxicity,
)
from examples.pipeline.reports import class_view, confusion_view

CLASSES = ("hatespeech", "normal", "offensive")


@pytest.fixture
def logits(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((60, 3))


@pytest.fixture
def labels(rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(np.arange(60) % 3)


def test_scores_are_those_of_scikit_learn(logits: np.ndarray, labels: np.ndarray) -> None:
    scores, said = scores_of(logits, labels, CLASSES), logits.argmax(1)
    assert scores["rows"] == 60
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, said))
    assert scores["macro_f1"] == pytest.approx(f1_score(labels, said, average="macro"))
    assert scores["weighted_f1"] == pytest.approx(f1_score(labels, said, average="weighted"))
    assert scores["auroc"] == pytest.approx(roc_auc_score(labels, softmax(logits), multi_class="ovo"))


def test_auroc_of_two_classes_is_the_usual_one(logits: np.ndarray, labels: np.ndarray) -> None:
    two, binary = softmax(logits[:, :2]), (labels > 0).astype(int)
    assert multiclass_auroc(two, binary) == pytest.approx(roc_auc_score(binary, two[:, 1]))


def test_auroc_without_a_class_is_not_a_number(logits: np.ndarray, labels: np.ndarray) -> None:
    assert np.isnan(multiclass_auroc(softmax(logits), np.minimum(labels, 1)))


def test_rows_without_label_do_not_count(logits: np.ndarray, labels: np.ndarray) -> None:
    some = labels.copy()
    some[:10] = -100
    assert scores_of(logits, some, CLASSES) == scores_of(logits[10:], labels[10:], CLASSES)


def test_classes_and_confusion(logits: np.ndarray, labels: np.ndarray) -> None:
    said = logits.argmax(1)
    expected = precision_recall_fscore_support(labels, said)
    view = class_view(logits, labels, CLASSES)
    for code, name in enumerate(CLASSES):
        assert list(view[name].values()) == pytest.approx([part[code] for part in expected[:3]])
    confusion = confusion_view(logits, labels, CLASSES)
    assert confusion["normal > offensive"]["rows"] == ((labels == 1) & (said == 2)).sum()
    assert sum(cell["rows"] for cell in confusion.values()) == 60


def test_class_that_is_never_predicted_has_zeros() -> None:
    view = class_view(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]), ("a", "b"))
    assert view["b"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_validation_metrics_agree_with_the_evaluation(logits: np.ndarray, labels: np.ndarray) -> None:
    metrics, expected = TextMetrics(3), scores_of(logits, labels, CLASSES)
    for part in np.array_split(np.arange(60), 4):
        metrics.update(torch.from_numpy(logits[part]), torch.from_numpy(labels[part]))
    for name, value in metrics.compute().items():
        assert float(value) == pytest.approx(expected[name])


def test_validation_metrics_of_a_diverged_model_are_not_a_number() -> None:
    metrics = TextMetrics(2)
    metrics.update(torch.tensor([[float("nan"), 0.0]]), torch.tensor([0]))
    assert metrics.compute()["macro_f1"].isnan()
    metrics.reset()
    metrics.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert metrics.compute()["accuracy"] == 1


def test_neutral_class_and_toxicity(logits: np.ndarray) -> None:
    assert [neutral_class(names) for names in (CLASSES, ("hate", "offensive", "neither"), ("not-hate", "hate"))] == [
        1,
        2,
        0,
    ]
    assert neutral_class(("a", "b")) is None
    np.testing.assert_allclose(toxicity(logits, CLASSES), softmax(logits)[:, [0, 2]].sum(1))
    with pytest.raises(ValueError, match="toxicity: expected one of normal, neither, not-hate among the classes"):
        toxicity(logits, ("a", "b", "c"))


def test_bias_is_that_of_the_benchmark(rng: np.random.Generator) -> None:
    score, toxic = rng.random(80), np.arange(80) % 3 == 0
    targets = [("Women",), ("Islam", "Women"), ("Islam",), (), ("Other",)] * 16
    view = bias_view(score, toxic, targets)
    women = np.array(["Women" in one for one in targets])
    others = np.array([not {"Women"} & set(one) and bool({"Islam"} & set(one)) for one in targets])
    for name, rows in {
        "subgroup": women,
        "bpsn": (others & toxic) | (women & ~toxic),
        "bnsp": (others & ~toxic) | (women & toxic),
    }.items():
        assert view["Women"][name] == pytest.approx(roc_auc_score(toxic[rows], score[rows]))
        both = [view[group][name] for group in ("Women", "Islam")]
        assert view[GENERALIZED][name] == pytest.approx(np.mean(np.array(both) ** -5.0) ** -0.2)
    assert view[GENERALIZED]["groups"] == 2
    assert all(np.isnan(view[group]["subgroup"]) for group in GROUPS if group not in ("Women", "Islam"))


def test_power_mean() -> None:
    assert power_mean([0.7, 0.7, float("nan")]) == pytest.approx(0.7)
    assert power_mean([0.0, 1.0]) == 0
    assert np.isnan(power_mean([]))
