"""Baselines of scikit-learn on texts: what they see, and that validation posts alone choose their settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from examples.hate_speech.batches import TextSet
from examples.hate_speech.classical import CLASSICAL, fit_classical, means
from examples.hate_speech.encoders import Tokens
from examples.hate_speech.posts import Post


def text_set(labels: np.ndarray, seed: int) -> TextSet:
    """Texts that name their class, and states whose mean tells it."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 6, len(labels))
    states = [rng.normal(size=(t, 4)) + 2.0 * np.eye(3, 4)[y] for t, y in zip(lengths, labels, strict=True)]
    posts = [Post(str(i), f"word{y} other{rng.integers(9)}", int(y)) for i, y in enumerate(labels)]
    tokens = Tokens([np.zeros(t, np.int64) for t in lengths], [np.zeros((t, 2), np.int64) for t in lengths], [])
    return TextSet(posts, tokens, [x.astype(np.float16) for x in states])


class Data:
    classes = ("a", "b", "c")

    def __init__(self) -> None:
        self.sets = {part: text_set(np.arange(60) % 3, seed) for seed, part in enumerate(("train", "val", "test"))}


@pytest.mark.parametrize("name", CLASSICAL)
def test_baselines_learn(name: str) -> None:
    data: Any = Data()
    found, chosen = fit_classical(name, data, seed=0)
    assert set(found) == {"val", "test"}
    for part, logs in found.items():
        np.testing.assert_allclose(np.exp(logs).sum(1), 1.0, rtol=1e-6)
        assert (logs.argmax(1) == data.sets[part].labels).mean() > 0.8
    assert "=" in chosen


@pytest.mark.parametrize("name", CLASSICAL)
def test_test_posts_choose_nothing(name: str) -> None:
    data, other = Data(), Data()
    rows = other.sets["test"]
    rows.labels[:] = 0
    rows.posts = [post._replace(text="nothing", label=0) for post in rows.posts]
    rows.states = [np.zeros_like(x) for x in rows.states or []]
    first, second = (fit_classical(name, one, seed=3) for one in (data, other))  # type: ignore[arg-type]
    assert first[1] == second[1]
    np.testing.assert_array_equal(first[0]["val"], second[0]["val"])


def test_a_class_without_training_posts_is_never_found() -> None:
    data: Any = Data()
    keep = data.sets["train"].labels < 2
    train = data.sets["train"]
    tokens = Tokens([x for x, k in zip(train.tokens.ids, keep, strict=True) if k], [], [])
    posts = [post for post, k in zip(train.posts, keep, strict=True) if k]
    data.sets["train"] = TextSet(posts, tokens, [x for x, k in zip(train.states, keep, strict=True) if k])
    found, _ = fit_classical("mean_logistic", data, seed=0)
    assert found["test"].shape == (60, 3)
    assert found["test"].argmax(1).max() == 1


def test_means_are_over_the_tokens_of_each_post() -> None:
    rows = text_set(np.array([0, 1]), 0)
    want = [np.mean(np.asarray(x, dtype=np.float64), axis=0) for x in rows.states or []]
    np.testing.assert_allclose(means(rows), want)
    assert rows.states is not None
    rows.states[1] = np.zeros((0, rows.states[1].shape[1]), np.float16)  # a text without a token
    np.testing.assert_array_equal(means(rows)[1], 0.0)
