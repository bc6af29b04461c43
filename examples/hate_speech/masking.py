"""Offensive words in pictures and pages: which they are, and what stands in their place.

The list is learnt from training posts in which humans marked words. Whole phrases are marked, neutral words among
them, so each mark is shared by the words next to each other that have one: a word marked alone gets 1, one of five gets
1/5. With marks in at least 5 of its uses a word is listed if its shares come to more than .12 per use, or to more than
.07 where more than .62 of the posts with it are toxic; all of these are lower bounds, which few uses keep low. Groups
and faiths, by the names they give themselves, are not listed.

A listed word of 4 letters or more whose uses are marked in more than .3 and whose posts are toxic in more than .62 is a
stem. It is masked with an ending, such as a plural's; beside a stem or any other word of the training posts, as in
compounds; and anywhere inside a word if that is borne out: most uses of the other words with it inside are marked, or
it has 5 letters and is marked in most uses itself. Of words that are known as neutral nothing is masked.

A listed word may still be harmless, as one that is part of a fixed phrase, and an offensive one that is rare or rarely
marked may be left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import sqrt
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np

from .posts import Post, Range
from .rationales import marks_of, runs, words_of
from .tables import read_lines

LEAST_MARKED = 5
LEAST_SHARE, LEAST_SHARE_IF_TOXIC, LEAST_TOXIC = 0.12, 0.07, 0.62
LEAST_MARKED_SHARE = 0.3  # of a word whose other forms are masked too
LEAST_INSIDE = 0.6  # share of marked uses among other words with a stem inside
LEAST_OTHERS = 3  # so many of these words and of their marked uses
MOST, MOST_TOXIC = 0.5, 0.75  # marked uses and toxic posts of a long stem that is found inside any word
STEM, LONG_STEM = 4, 5  # letters
PART, LEAST_POSTS = 4, 3  # letters and posts of a word that makes a compound with a stem
KNOWN, KNOWN_MARKED = 8, 0.35  # uses of a word that make it known; at most so many of a neutral one's are marked
ENDINGS = ("s", "es", "z", "ed", "er", "ers", "ing", "in")
GROUPS = """
african africans arab arabs asian asians black blacks christian christians communist communists gay gays girl girls
hispanic hispanics immigrant immigrants indian indians islam islamic jew jewish jews judaism latino latinos lesbian
lesbians man men mexican mexicans migrant migrants muslim muslims queer refugee refugees white whites woman women
"""
NAMES = frozenset(GROUPS.split())


class Lexicon(NamedTuple):
    """Words to mask.

    Attributes:
        words: Masked as they are.
        stems: Masked with an ending, and beside another word too.
        inside: Masked anywhere inside a word.
        others: Words that make compounds with stems.
        neutral: Not masked for the stems in them.
    """

    words: frozenset[str]
    stems: frozenset[str] = frozenset()
    inside: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()
    neutral: frozenset[str] = frozenset()

    def hides(self, word: str) -> bool:
        """Tell whether a plain word is to be masked."""
        if word in self.words or word in self.neutral:
            return word in self.words
        forms = [word, *(word.removesuffix(ending) for ending in ENDINGS if word.endswith(ending))]
        ended = any(form in self.stems or self._joins(form) for form in forms)
        return ended or any(stem in word for stem in self.inside)

    def _joins(self, word: str) -> bool:
        halves = ((word[:place], word[place:]) for place in range(STEM, len(word) - STEM + 1))
        return any(
            (one in self.stems and (other in self.others or other in self.stems))
            or (other in self.stems and one in self.others)
            for one, other in halves
        )


class Uses:
    """How training posts use words.

    Attributes:
        known: Uses in posts of which it is known what humans marked.
        marked: How many of these were marked.
        shares: Parts in the marks, 1 / n for each of n words that were marked next to each other.
        posts: Posts with the word.
        toxic: How many of these are toxic.
    """

    def __init__(self, posts: Iterable[Post], is_toxic: Callable[[Post], bool]):
        self.known, self.marked, self.posts, self.toxic = (Counter[str]() for _ in range(4))
        self.shares: dict[str, float] = {}
        for post in posts:
            words = words_of(post)
            plain = [plain_word(post.text[start:end]) for start, end in words]
            self.posts.update(set(plain))
            if is_toxic(post):
                self.toxic.update(set(plain))
            if post.rationale is None:
                continue
            self.known.update(plain)
            for start, end in runs(marks_of(post, words)):
                together = [word for word in plain[start:end] if word]
                self.marked.update(together)
                for word in together:
                    self.shares[word] = self.shares.get(word, 0.0) + 1 / len(together)
        del self.known[""]

    def share_at_least(self, word: str) -> float:
        return lower_bound(self.shares.get(word, 0.0), self.known[word])

    def toxic_at_least(self, word: str) -> float:
        return lower_bound(self.toxic[word], self.posts[word])

    def are_marked(self, word: str, uses: float, posts: float) -> bool:
        """Tell whether more than a share of its uses is marked, and more than a share of its posts toxic."""
        return lower_bound(self.marked[word], self.known[word]) > uses and self.toxic_at_least(word) > posts

    def is_neutral(self, word: str) -> bool:
        known = self.known[word]
        return known >= KNOWN and self.marked[word] < KNOWN_MARKED * known and self.toxic_at_least(word) < LEAST_TOXIC


def lexicon(posts: Sequence[Post], neutral: int | None) -> Lexicon:
    """Learn the words to mask from training posts; see the rule above.

    Args:
        posts: Training posts; none are listed without any that has a rationale.
        neutral: Label of posts that are not toxic; None = without marks a post is not toxic.
    """
    uses = Uses(posts, lambda post: bool(post.rationale) if neutral is None else post.label != neutral)
    words = {word for word in uses.marked if _is_listed(word, uses)} - NAMES
    stems = {word for word in words if len(word) >= STEM and uses.are_marked(word, LEAST_MARKED_SHARE, LEAST_TOXIC)}
    long = {word for word in stems if len(word) >= LONG_STEM and uses.are_marked(word, MOST, MOST_TOXIC)}
    inside = long | {stem for stem in stems if _is_borne_out(stem, uses)}
    others = {word for word, count in uses.posts.items() if len(word) >= PART and count >= LEAST_POSTS}
    neutral_words = {word for word in uses.known if uses.is_neutral(word)} | NAMES
    return Lexicon(*map(frozenset, (words, stems, inside, others, neutral_words - words)))


def _is_listed(word: str, uses: Uses) -> bool:
    if len(word) < 2 or word.isdigit() or uses.marked[word] < LEAST_MARKED:
        return False
    share = uses.share_at_least(word)
    return share > LEAST_SHARE or (share > LEAST_SHARE_IF_TOXIC and uses.toxic_at_least(word) > LEAST_TOXIC)


def _is_borne_out(stem: str, uses: Uses) -> bool:
    """Tell whether most uses of the other words with a stem inside are marked."""
    forms = {stem, *(stem + ending for ending in ENDINGS)}
    others = [word for word in uses.known if stem in word and word not in forms]
    marked = sum(uses.marked[word] for word in others)
    enough = len(others) >= LEAST_OTHERS and marked >= LEAST_OTHERS
    return enough and marked > LEAST_INSIDE * sum(uses.known[word] for word in others)


def lower_bound(part: float, whole: float) -> float:
    """Give the lower end of Wilson's interval of one standard error for a share; 0 of nothing.

    Example:
        >>> [round(lower_bound(n, n), 2) for n in (0, 1, 10, 100)]
        [0.0, 0.5, 0.91, 0.99]
    """
    if not whole:
        return 0.0
    share = part / whole
    return (share + 0.5 / whole - sqrt(share * (1 - share) / whole + 0.25 / whole**2)) / (1 + 1 / whole)


def read_list(path: Path) -> Lexicon:
    """Read words to mask, one a line; those of 4 letters or more with endings and joined, of 5 inside any word too."""
    words = frozenset(plain_word(line) for line in read_lines(path)) - {""}
    stems, inside = (frozenset(word for word in words if len(word) >= least) for least in (STEM, LONG_STEM))
    return Lexicon(words, stems, inside)


def plain_word(word: str) -> str:
    """Leave the letters and digits of a word, in lower case, without accents and in their usual width."""
    return "".join(letter for letter in normalize("NFKD", word.lower()) if letter.isalnum())


def hidden_words(post: Post, words: Sequence[Range], listed: Lexicon, *, rationale: bool) -> np.ndarray:
    """Tell which words to mask: those listed, and with `rationale` those that humans marked; bool `(W,)`."""
    found = np.array([listed.hides(plain_word(post.text[start:end])) for start, end in words], dtype=bool)
    return found | marks_of(post, words) if rationale else found


def mask_word(word: str) -> str:
    """Leave the first letter.

    Example:
        >>> mask_word("weather")
        'w******'
    """
    return word[:1] + "*" * (len(word) - 1)
