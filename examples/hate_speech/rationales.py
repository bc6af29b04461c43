"""Token scores against what humans marked: words, plausibility as in ERASER and HateXplain, character spans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.metrics import auc, average_precision_score, precision_recall_curve

from benchmarks.robustness.metrics import auroc

from .posts import Post, Range

TOP = 5  # words of a hard rationale, as in the benchmark of HateXplain
OVERLAP = 0.5
THRESHOLDS = 60
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]+")


def words_of(post: Post) -> list[Range]:
    """Give the character ranges of the words of a post: the published tokens, or words and punctuation.

    Example:
        >>> words_of(Post("", "it's fine!", 0))
        [(0, 4), (5, 9), (9, 10)]
    """
    if post.words is None:
        return [match.span() for match in _WORD.finditer(post.text)]
    ranges, start = [], 0
    for word in post.words:
        ranges.append((start, start + len(word)))
        start += len(word) + 1
    return ranges


def marks_of(post: Post, words: Sequence[Range]) -> np.ndarray:
    """Tell for each word whether a human marked a character of it; bool ``(W,)``."""
    marked = post.rationale or ()
    return np.array([any(s < end and start < e for s, e in marked) for start, end in words], dtype=bool)


def word_scores(offsets: np.ndarray, scores: np.ndarray, words: Sequence[Range]) -> np.ndarray:
    """Give each word the highest score of its tokens; words that were cut off get the lowest of the text.

    Args:
        offsets: Character ranges of the tokens ``(T, 2)``; those of special tokens are empty.
        scores: Scores of the tokens ``(T,)``.
        words: Character ranges of the words.

    Returns:
        ``(W,)``.
    """
    if not len(words):
        return np.zeros(0)
    touches, real = _touches(offsets, words)
    scores = scores[real].astype(np.float64)
    lowest = scores.min(initial=np.inf) if len(scores) else 0.0
    return np.where(touches, scores, lowest).max(1, initial=lowest)


def pieces(offsets: np.ndarray, words: Sequence[Range]) -> np.ndarray:
    """Count the tokens of each word, 0 of one that was cut off, as float64 ``(W,)``."""
    return _touches(offsets, words)[0].sum(1).astype(np.float64) if len(words) else np.zeros(0)


def _touches(offsets: np.ndarray, words: Sequence[Range]) -> tuple[np.ndarray, np.ndarray]:
    """Tell which real tokens share characters with which words ``(W, T')``, and which tokens are real ``(T,)``."""
    real = offsets[:, 0] < offsets[:, 1]
    starts, ends = np.array(words).T[:, :, None]
    return (offsets[real, 0] < ends) & (starts < offsets[real, 1]), real


def top_words(scores: np.ndarray, count: int = TOP) -> np.ndarray:
    """Choose the words with the highest scores, the later of equal ones as the benchmark does; bool ``(W,)``."""
    chosen = np.zeros(len(scores), dtype=bool)
    chosen[np.argsort(scores, kind="stable")[-count:]] = True
    return chosen


class Plausibility(NamedTuple):
    """How well token scores agree with human rationales.

    Attributes:
        auprc: Area under the precision-recall curve of the scores, mean over posts, by the trapezoid rule as in ERASER:
            scores that are all equal have (1 + share of marked words) / 2.
        average_precision: The same area by steps, mean over posts: equal scores have the share of marked words.
        auroc: Area under the ROC curve, mean over the posts that have marked and unmarked words.
        token_f1: F1 of the five highest words, mean over posts.
        iou_f1: F1 of spans that overlap at least half, each of the five words a span of its own, as the benchmark has
            it.
        iou_f1_spans: The same with neighbours among the five words taken together.
        posts: Number of posts with a marked word; only these count.
    """

    auprc: float
    average_precision: float
    auroc: float
    token_f1: float
    iou_f1: float
    iou_f1_spans: float
    posts: float


def plausibility(scores: Sequence[np.ndarray], marks: Sequence[np.ndarray], top: int = TOP) -> Plausibility:
    """Compare scores of words with human marks, post by post.

    Args:
        scores: ``(W,)`` per post.
        marks: Bool ``(W,)`` per post.
        top: Number of words in a hard rationale.
    """
    pairs = [(score, mark) for score, mark in zip(scores, marks, strict=True) if mark.any()]
    if not pairs:
        return Plausibility(*[float("nan")] * 6, 0.0)
    curves, steps, areas, f1 = [], [], [], []
    for score, mark in pairs:
        precision, recall, _ = precision_recall_curve(mark, score)
        curves.append(auc(recall, precision))
        steps.append(average_precision_score(mark, score))
        areas.append(auroc(score[mark], score[~mark]))
        chosen = top_words(score, top)
        f1.append(2 * (chosen & mark).sum() / (chosen.sum() + mark.sum()))
    hard = [(top_words(score, top), mark) for score, mark in pairs]
    single = [([(i, i + 1) for i in np.flatnonzero(chosen)], runs(mark)) for chosen, mark in hard]
    joined = [(runs(chosen), runs(mark)) for chosen, mark in hard]
    known = [area for area in areas if not np.isnan(area)]
    return Plausibility(
        auprc=float(np.mean(curves)),
        average_precision=float(np.mean(steps)),
        auroc=float(np.mean(known)) if known else float("nan"),
        token_f1=float(np.mean(f1)),
        iou_f1=iou_f1(single),
        iou_f1_spans=iou_f1(joined),
        posts=len(pairs),
    )


def runs(marks: np.ndarray) -> list[Range]:
    """List the ranges of neighbouring True entries.

    Example:
        >>> runs(np.array([True, True, False, True]))
        [(0, 2), (3, 4)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def iou_f1(pairs: Sequence[tuple[Sequence[Range], Sequence[Range]]], overlap: float = OVERLAP) -> float:
    """Compute ERASER's partial-match F1: a predicted span is right if its best IOU is at least `overlap`.

    Precision and recall are means over posts, and F1 is that of the means. Args: pairs of (predicted, true) spans.
    """
    precision, recall = [], []
    for predicted, true in pairs:
        right = sum(max((_iou(one, other) for other in true), default=0.0) >= overlap for one in predicted)
        if predicted:
            precision.append(right / len(predicted))
        if true:
            recall.append(right / len(true))
    p, r = (float(np.mean(part)) if part else 0.0 for part in (precision, recall))
    return 2 * p * r / (p + r) if p and r else 0.0


def _iou(one: Range, other: Range) -> float:
    both = max(0, min(one[1], other[1]) - max(one[0], other[0]))
    return both / (one[1] - one[0] + other[1] - other[0] - both)


# --- characters


def marked_ranges(words: Sequence[Range], chosen: np.ndarray) -> list[Range]:
    """Turn chosen words into character ranges; what is between two chosen neighbours belongs to them.

    Example:
        >>> marked_ranges([(0, 2), (3, 6), (7, 9)], np.array([True, True, False]))
        [(0, 6)]
    """
    return [(words[start][0], words[end - 1][1]) for start, end in runs(chosen)]


def character_f1(predicted: Sequence[Range], true: Sequence[Range]) -> float:
    """Compute the F1 of two sets of characters, each given as ranges that do not overlap; 1 if both are empty.

    Example:
        >>> character_f1([(0, 4)], [(2, 6)])
        0.5
    """
    size = sum(end - start for ranges in (predicted, true) for start, end in ranges)
    if not size:
        return 1.0
    both = sum(max(0, min(a[1], b[1]) - max(a[0], b[0])) for a in predicted for b in true)
    return 2 * both / size


class Spans(NamedTuple):
    """Posts with scored words and true character ranges."""

    words: list[list[Range]]
    scores: list[np.ndarray]
    true: list[Sequence[Range]]

    def f1(self, threshold: float) -> float:
        """Return the mean character F1 of the words whose score is above a threshold."""
        rows = zip(self.words, self.scores, self.true, strict=True)
        f1 = [character_f1(marked_ranges(words, score > threshold), true) for words, score, true in rows]
        return float(np.mean(f1)) if f1 else float("nan")

    def best_threshold(self, count: int = THRESHOLDS) -> float:
        """Choose the threshold of the highest F1 among quantiles of all scores and one that marks nothing."""
        every = np.concatenate([*self.scores, np.zeros(0)])
        if not len(every):
            return 0.0
        # More of them where few words are marked, which is where the best one is.
        shares = 1 - np.geomspace(0.002, 1.0, count)
        return max([float(every.max()), *np.unique(np.quantile(every, shares)).tolist()], key=self.f1)
