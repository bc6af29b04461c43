"""Baselines of scikit-learn on the same split: the branches side by side, scaled as for the networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from examples.pipeline.reports import class_view, confusion_view

from .data import OmicsData
from .measure import Views
from .metrics import class_scores
from .sets import OmicsSet

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
RATES = (0.03, 0.1)
MOST_FEATURES = 500  # for boosting, whose time grows with features x classes


class Fitted(NamedTuple):
    """A model, the settings that were chosen, and the log-probabilities by which they were."""

    model: Any
    chosen: str
    val: np.ndarray


def fit_logistic(data: OmicsData, seed: int) -> Fitted:
    """Choose C by the NLL of the validation rows; the training rows train, as in the networks."""
    return _choose(data, {f"C={c:g}": _logistic(c) for c in PENALTIES})


def fit_logistic_all(data: OmicsData, seed: int) -> Fitted:
    """Choose C as above, then train on the validation rows as well: what one would deploy."""
    found = fit_logistic(data, seed)
    model = _logistic(float(found.chosen.removeprefix("C=")))
    both = [table(data, data.sets[part]) for part in ("train", "val")]
    model.fit(np.concatenate(both), np.concatenate([data.sets[part].label.numpy() for part in ("train", "val")]))
    return found._replace(model=model)


def fit_boosting(data: OmicsData, seed: int) -> Fitted:
    """Choose learning rate and number of trees by the NLL of the validation rows."""
    keep = min(MOST_FEATURES, table(data, data.sets["train"]).shape[1])
    models = {
        f"rate={rate:g}, trees={trees}": make_pipeline(
            SelectKBest(f_classif, k=keep),
            HistGradientBoostingClassifier(
                learning_rate=rate, max_iter=trees, min_samples_leaf=5, early_stopping=False, random_state=seed
            ),
        )
        for rate in RATES
        for trees in (30, 100)
    }
    return _choose(data, models)


CLASSICAL: dict[str, Callable[[OmicsData, int], Fitted]] = {
    "logistic_regression": fit_logistic,
    "logistic_regression_all": fit_logistic_all,
    "boosting": fit_boosting,
}
MEANING = {
    "logistic_regression": "scikit-learn, C by validation NLL, on the training rows",
    "logistic_regression_all": "the same, then trained on training and validation rows; validation scores from before",
    "boosting": f"HistGradientBoosting on the {MOST_FEATURES} features of the highest F, settings by validation NLL",
}


def measure_classical(name: str, data: OmicsData, seed: int) -> tuple[Views, str]:
    """Fit a baseline and measure it as networks are measured; also return what validation chose."""
    fitted = CLASSICAL[name](data, seed)
    rows = data.sets["test"]
    logs = log_probabilities(fitted.model, table(data, rows))
    label = rows.label.numpy()
    views: Views = {
        "val": {"": class_scores(fitted.val, data.sets["val"].label.numpy())},
        "test": {"": class_scores(logs, label)},
    }
    if len(rows.features) > 1:
        views["without"] = {
            branch: class_scores(log_probabilities(fitted.model, table(data, rows, without=branch)), label)
            for branch in rows.features
        }
    views["class"] = class_view(logs, label, data.classes)
    views["confusion"] = confusion_view(logs, label, data.classes)
    return views, fitted.chosen


def table(data: OmicsData, rows: OmicsSet, without: str | None = None) -> np.ndarray:
    """Put branches side by side; absent ones are zero, which after z-scores is their mean.

    A branch whose features are all in another one of the same place, as the most variable genes are, is left out: it
    would count them twice. Where that other one is missing, the features that both have are still known.
    """
    columns = []
    for name in distinct(data):
        values = rows.features[name].numpy()
        columns.append(np.where(_elsewhere(data, name), values, 0.0) if name == without else values)
    return np.concatenate(columns, axis=1)


def _elsewhere(data: OmicsData, name: str) -> np.ndarray:
    """Tell which features of a branch another branch of the same place has too: bool ``(D,)``."""
    branches = data.preparation.branches
    others = [other for other in branches if other != name and data.branches[other] == data.branches[name]]
    known = {feature for other in others for feature in branches[other].names}
    return np.array([feature in known for feature in branches[name].names])


def distinct(data: OmicsData) -> list[str]:
    """Name the branches that are not part of another one."""
    kept: list[str] = []
    by_width = sorted(data.in_features, key=lambda name: -data.in_features[name])
    for name in by_width:
        names = set(data.preparation.branches[name].names)
        same = [other for other in kept if data.branches[other] == data.branches[name]]
        if not any(names <= set(data.preparation.branches[other].names) for other in same):
            kept.append(name)
    return [name for name in data.in_features if name in kept]


def log_probabilities(model: ClassifierMixin, values: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(model.predict_proba(values), 1e-12))


def _logistic(c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=2000)


def _choose(data: OmicsData, models: dict[str, Any]) -> Fitted:
    train, val = data.sets["train"], data.sets["val"]
    x, other = table(data, train), table(data, val)
    best, lowest = None, np.inf
    for chosen, model in models.items():
        model.fit(x, train.label.numpy())
        found = Fitted(model, chosen, log_probabilities(model, other))
        nll = class_scores(found.val, val.label.numpy())["nll"]
        if best is None or nll < lowest:
            best, lowest = found, nll
    assert best is not None
    return best
