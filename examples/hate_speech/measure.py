"""All that is measured of a trained model: classification, rationales, bias by target group, character spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.robustness.rows import View
from examples.pipeline.reports import class_view, confusion_view

from .batches import TextSet
from .cli import corpus_of
from .data import TextData, cut_notes
from .encoders import Tokens
from .metrics import bias_view, neutral_class, scores_of, toxicity
from .posts import Post, Range
from .rationales import Spans, marks_of, pieces, plausibility, word_scores, words_of
from .readers import read_corpus
from .saliency import ATTENTION, PIECES, RANDOM, Scores, attention_scores, faithfulness, predict, token_scores
from .task import HateTask

Views = dict[str, View]


class Wanted(NamedTuple):
    """What to measure beside the classification, bias and plausibility.

    Attributes:
        faithfulness: Comprehensiveness and sufficiency, which encode every toxic post twice per kind of score.
        attention: The attention of the encoder as one more kind of score.
        spans: Folder of a corpus with character spans; "" = none.
    """

    faithfulness: bool = True
    attention: bool = False
    spans: str = ""


def measure(task: HateTask, data: TextData, wanted: Wanted) -> Views:
    """Measure a trained model on the validation and test posts of its corpus."""
    task.to("cuda" if torch.cuda.is_available() else "cpu")
    logits = {part: predict(task, data.sets[part]) for part in ("val", "test")}
    views = classification_views(logits, data)
    rows, neutral = data.sets["test"], neutral_class(data.classes)
    if neutral is not None and any(post.rationale for post in rows.posts):
        marked = [i for i, post in enumerate(rows.posts) if post.label != neutral and post.rationale]
        views["rationale"] = rationale_view(task, data, subset(rows, marked), logits["test"][marked], wanted)
    if wanted.spans:
        views["spans"] = span_view(task, data, wanted)
    return views


def classification_views(logits: Mapping[str, np.ndarray], data: TextData) -> Views:
    """Measure the logits ``(N, C)`` of the parts val and test; bias where the corpus names target groups."""
    views: Views = {
        part: {"": scores_of(found, data.sets[part].labels, data.classes)} for part, found in logits.items()
    }
    rows, test, neutral = data.sets["test"], logits["test"], neutral_class(data.classes)
    views["class"] = class_view(test, rows.labels, data.classes)
    views["confusion"] = confusion_view(test, rows.labels, data.classes)
    if neutral is not None and any(post.targets for post in rows.posts):
        targets = [post.targets for post in rows.posts]
        views["bias"] = bias_view(toxicity(test, data.classes), rows.labels != neutral, targets)
    return views


def subset(rows: TextSet, index: Sequence[int]) -> TextSet:
    """Take some posts of a set with their tokens and states."""
    tokens = Tokens(*([column[i] for i in index] for column in rows.tokens))
    states = None if rows.states is None else [rows.states[i] for i in index]
    return TextSet([rows.posts[i] for i in index], tokens, states, rows.pad_id)


def all_scores(task: HateTask, data: TextData, rows: TextSet, *, attention: bool) -> Scores:
    """Give every kind of token score, and the attention of the encoder if wanted and there."""
    found = token_scores(task, rows)
    if attention:
        model = data.encoder.model if task.model.encoder is None else task.model.encoder
        received = attention_scores(data.encoder, model, rows.posts)
        if received is not None:
            found[ATTENTION] = received
    return found


def rationale_view(task: HateTask, data: TextData, rows: TextSet, logits: np.ndarray, wanted: Wanted) -> View:
    """Compare token scores with human rationales, a line per kind of score; `logits` are those of the rows."""
    words = [words_of(post) for post in rows.posts]
    marks = [marks_of(post, ranges) for post, ranges in zip(rows.posts, words, strict=True)]
    view: View = {}
    for name, of_words in scores_of_words(task, data, rows, words, attention=wanted.attention).items():
        view[name] = dict(plausibility(of_words, marks)._asdict())
        if wanted.faithfulness:
            view[name] |= faithfulness(task, data, rows, words, of_words, logits)
    return view


def span_view(task: HateTask, data: TextData, wanted: Wanted) -> View:
    """Measure character spans of another corpus; thresholds are chosen on its validation posts."""
    found: dict[str, dict[str, Spans]] = {}
    for part, rows in span_sets(data, wanted.spans).items():
        words, true = [words_of(post) for post in rows.posts], [post.rationale or () for post in rows.posts]
        for name, scores in scores_of_words(task, data, rows, words, attention=wanted.attention).items():
            found.setdefault(name, {})[part] = Spans(words, scores, true)
    view: View = {}
    for name, spans in found.items():
        threshold = spans["val"].best_threshold()
        f1 = {"val_f1": spans["val"].f1(threshold), "f1": spans["test"].f1(threshold)}
        view[name] = {**f1, "threshold": threshold}
    return view


def span_posts(root: str) -> dict[str, list[Post]]:
    """Read the validation and test posts of a corpus with character spans; without a folder there are none."""
    found, corpus = {}, read_corpus(root) if root else None
    for part in ("val", "test") if corpus is not None else ():
        found[part] = [post for post in corpus.splits[part] if post.rationale is not None]
        if not found[part]:
            raise ValueError(f"{root}: expected posts with character spans in {part}, found none")
    return found


def span_sets(data: TextData, root: str) -> dict[str, TextSet]:
    """Cut these posts into tokens, and compute their states."""
    return {part: data.text_set(posts, cache=data.cache) for part, posts in span_posts(root).items()}


def notes_of(data: TextData, root: str) -> list[str]:
    """Say what to know about the data, and about the posts with character spans."""
    spans = {part: data.encoder.encode(posts) for part, posts in span_posts(root).items()}
    return [*data.notes, *cut_notes(spans, data.max_tokens, of=f" of {corpus_of(root)}")]


def scores_of_words(
    task: HateTask, data: TextData, rows: TextSet, words: Sequence[Sequence[Range]], *, attention: bool
) -> dict[str, list[np.ndarray]]:
    """Give every kind of score for words, ``(W,)`` per post, and two that know nothing of the model."""
    found = {}
    for name, scores in all_scores(task, data, rows, attention=attention).items():
        triples = zip(rows.tokens.offsets, scores, words, strict=True)
        found[name] = [word_scores(offsets, one, ranges) for offsets, one, ranges in triples]
    rng = np.random.default_rng(0)
    found[RANDOM] = [rng.random(len(ranges)) for ranges in words]
    found[PIECES] = [pieces(offsets, ranges) for offsets, ranges in zip(rows.tokens.offsets, words, strict=True)]
    return found
