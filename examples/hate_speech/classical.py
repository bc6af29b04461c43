"""Baselines of scikit-learn on the same posts: counts of words, and the mean of the encoder's token states."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .batches import TextSet
from .data import TextData
from .metrics import scores_of

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
DECAYS = (1e-4, 1e-2, 1.0)
HIDDEN, EPOCHS = 256, 20


class Candidate(NamedTuple):
    """A fitted model, and what it was fitted with."""

    model: Any
    settings: str


def fit_tfidf(train: Any, labels: np.ndarray, seed: int) -> Iterator[Candidate]:
    vectors = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    for c in PENALTIES:
        model = make_pipeline(copy.deepcopy(vectors), LogisticRegression(C=c, max_iter=1000))
        yield Candidate(model.fit(train, labels), f"C={c:g}")


def fit_mean_logistic(train: Any, labels: np.ndarray, seed: int) -> Iterator[Candidate]:
    for c in PENALTIES:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
        yield Candidate(model.fit(train, labels), f"C={c:g}")


def fit_mean_mlp(train: Any, labels: np.ndarray, seed: int) -> Iterator[Candidate]:
    scaler = StandardScaler().fit(train)
    x, classes = scaler.transform(train), np.unique(labels)
    for decay in DECAYS:
        model = MLPClassifier((HIDDEN,), alpha=decay, batch_size=min(64, len(x)), random_state=seed)
        for epoch in range(EPOCHS):
            model.partial_fit(x, labels, classes=classes)
            yield Candidate(make_pipeline(scaler, copy.deepcopy(model)), f"decay={decay:g}, epoch {epoch + 1}")


CLASSICAL: dict[str, Callable[[Any, np.ndarray, int], Iterator[Candidate]]] = {
    "tfidf": fit_tfidf,
    "mean_logistic": fit_mean_logistic,
    "mean_mlp": fit_mean_mlp,
}
MEANING = {
    "tfidf": "TF-IDF of words and pairs of words, logistic regression; no chance in it, runs of a fold are equal",
    "mean_logistic": "the mean of the frozen token states, logistic regression; the same",
    "mean_mlp": f"the mean of the frozen token states, one hidden layer of {HIDDEN}",
}


def fit_classical(name: str, data: TextData, seed: int) -> tuple[dict[str, np.ndarray], str]:
    """Fit a baseline, its settings chosen by macro F1 on validation posts; unweighted cross entropy.

    Returns:
        Log-probabilities of the validation and test posts ``(N, C)``, and the settings.
    """
    table = texts if name == "tfidf" else means
    x = {part: table(data.sets[part]) for part in ("train", "val", "test")}
    best, highest, chosen = None, -1.0, ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for candidate in CLASSICAL[name](x["train"], data.sets["train"].labels, seed):
            found = _log_probabilities(candidate.model, x["val"], len(data.classes))
            score = scores_of(found, data.sets["val"].labels, data.classes)["macro_f1"]
            if score > highest:
                best, highest, chosen = candidate.model, score, candidate.settings
    return {part: _log_probabilities(best, x[part], len(data.classes)) for part in ("val", "test")}, chosen


def texts(rows: TextSet) -> list[str]:
    return [post.text for post in rows.posts]


def means(rows: TextSet) -> np.ndarray:
    """Average the states of each post's tokens ``(N, H)``, as the networks pool them: zeros without a token."""
    assert rows.states is not None
    return np.stack([np.asarray(one, dtype=np.float64).sum(0) / max(len(one), 1) for one in rows.states])


def _log_probabilities(model: Any, x: Any, classes: int) -> np.ndarray:
    found = np.full((len(x), classes), 1e-12)
    found[:, model.classes_] = model.predict_proba(x)
    return np.log(np.maximum(found, 1e-12))
