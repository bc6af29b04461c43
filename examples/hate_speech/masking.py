"""Offensive words in pictures and pages: which they are, and what stands in their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from .posts import Post, Range
from .rationales import marks_of, words_of
from .tables import read_lines

LEAST_USES = 2
LEAST_SHARE = 0.3
INSIDE = 4  # listed words of at least so many letters are found inside others too, as in plurals


def lexicon(posts: Iterable[Post]) -> frozenset[str]:
    """List the words that humans marked in more than three tenths of their uses, at least twice."""
    uses, marked = Counter[str](), Counter[str]()
    for post in posts:
        if post.rationale is None:
            continue
        words = words_of(post)
        plain = [plain_word(post.text[start:end]) for start, end in words]
        uses.update(plain)
        marked.update(word for word, mark in zip(plain, marks_of(post, words), strict=True) if mark)
    often = {word for word, count in marked.items() if count >= LEAST_USES and count > LEAST_SHARE * uses[word]}
    return frozenset(often - {""})


def read_list(path: Path) -> frozenset[str]:
    """Read words to mask, one a line."""
    return frozenset(plain_word(line) for line in read_lines(path)) - {""}


def plain_word(word: str) -> str:
    """Leave the letters and digits of a word, in lower case."""
    return "".join(letter for letter in word.lower() if letter.isalnum())


def hidden_words(post: Post, words: Sequence[Range], listed: frozenset[str], *, rationale: bool) -> np.ndarray:
    """Tell which words to mask: those listed, and with `rationale` those that humans marked; bool `(W,)`."""
    longer = [word for word in listed if len(word) >= INSIDE]
    plain = [plain_word(post.text[start:end]) for start, end in words]
    found = np.array([word in listed or any(one in word for one in longer) for word in plain], dtype=bool)
    return found | marks_of(post, words) if rationale else found


def mask_word(word: str) -> str:
    """Leave the first letter.

    Example:
        >>> mask_word("weather")
        'w******'
    """
    return word[:1] + "*" * (len(word) - 1)
