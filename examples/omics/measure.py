"""All that is measured of a trained model on validation and test rows."""

from __future__ import annotations

import pandas as pd

from benchmarks.robustness.rows import View
from examples.pipeline.reports import class_view, confusion_view

from .data import OmicsData
from .history import verdict
from .metrics import (
    Answers,
    answer,
    class_scores,
    open_scores,
    rejection_scores,
)
from .sets import OmicsSet
from .task import OmicsTask

Views = dict[str, View]


def answers_of(task: OmicsTask, rows: OmicsSet, without: str | None = None) -> Answers:
    """Ask for all rows; ``without`` a branch that is hidden from the model."""
    batch = rows.batch(slice(None))
    if without is not None:
        column = list(rows.features).index(without)
        batch["present"] = batch["present"].clone()
        batch["present"][:, column] = False
    return answer(task, batch, rows.label.numpy())


def measure(task: OmicsTask, data: OmicsData) -> Views:
    """Measure a trained model on the validation and test rows of its data."""
    val = answers_of(task, data.sets["val"])
    return {"val": {"": class_scores(val.logits, val.label)}, **measure_test(task, data.sets["test"])}


def measure_test(task: OmicsTask, rows: OmicsSet) -> Views:
    """Measure a trained model on any rows: also without each branch, and with rejection."""
    test = answers_of(task, rows)
    views: Views = {"test": {"": class_scores(test.logits, test.label, test.embedding)}}
    if len(rows.features) > 1:
        hidden = {name: answers_of(task, rows, name) for name in rows.features}
        views["without"] = {name: class_scores(one.logits, one.label) for name, one in hidden.items()}
    if task.prototypes is not None:
        views["rejection"] = {"": rejection_scores(test, float(task.prototypes.threshold))}
    views["class"] = class_view(test.logits, test.label, task.classes)
    views["confusion"] = confusion_view(test.logits, test.label, task.classes)
    if (test.label < 0).any():
        views["open"] = {"unknown": open_scores(test)}
    return views


def fit_facts(lines: list[dict[str, float]]) -> tuple[str, View]:
    """Say whether a run over- or underfits, for its row: the kind of verdict and the figures at the best epoch."""
    frame = pd.DataFrame(lines)
    found = verdict(frame)
    best = frame.iloc[found.best]
    figures = {name: float(best[name]) for name in ("train_loss", "val_loss", "train_accuracy", "val_accuracy")}
    return found.kind, {"": figures}
