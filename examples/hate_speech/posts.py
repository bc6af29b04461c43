"""A post, and what the readers share: labels, lists and character ranges checked and turned."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from examples.pipeline.errors import DataError

Range = tuple[int, int]


class Post(NamedTuple):
    """A text with what humans said about it.

    Attributes:
        id: Its name in the corpus, or part and number.
        text: The text; HateXplain's is its tokens joined by spaces.
        label: Number of its class; -100 = none.
        words: HateXplain's published tokens; ``None`` elsewhere.
        rationale: Character ranges ``[start, end)`` of the text that humans marked; ``()`` = nothing marked, ``None`` =
            unknown.
        targets: Target groups that at least two annotators named, in alphabetical order.
    """

    id: str
    text: str
    label: int
    words: tuple[str, ...] | None = None
    rationale: tuple[Range, ...] | None = None
    targets: tuple[str, ...] = ()


def label_code(cell: Any, size: int, where: str, name: str = "label") -> int:
    """Turn ``"1"``, ``1`` or ``"1.0"`` into a number from 0 to ``size`` - 1."""
    text = "" if isinstance(cell, bool) else str(cell).strip().removesuffix(".0")
    if not (text.isascii() and text.isdigit() and int(text) < size):
        raise DataError(f"{where}: expected a {name} of {', '.join(map(str, range(size)))}, got {cell!r}")
    return int(text)


def parse_list(value: Any, expected: str) -> list[Any]:
    """Return ``value`` if it is a list, or raise with what was expected."""
    if not isinstance(value, list):
        raise DataError(f"{expected}, got {'no list' if value is None else type(value).__name__}")
    return value


def ranges_from_offsets(offsets: Collection[int]) -> tuple[Range, ...]:
    """Turn single character offsets into the fewest ranges.

    Example:
        >>> ranges_from_offsets({3, 4, 5, 9})
        ((3, 6), (9, 10))
    """
    ranges: list[Range] = []
    for offset in sorted(offsets):
        if ranges and ranges[-1][1] == offset:
            ranges[-1] = (ranges[-1][0], offset + 1)
        else:
            ranges.append((offset, offset + 1))
    return tuple(ranges)


def ranges_from_words(words: Sequence[str], marked: Sequence[int]) -> tuple[Range, ...]:
    """Turn marks of words joined by single spaces into character ranges; neighbours become one range.

    Example:
        >>> ranges_from_words(["some", "plain", "words", "here"], [0, 1, 1, 0])
        ((5, 16),)
    """
    ranges: list[Range] = []
    start, before = 0, False
    for word, mark in zip(words, marked, strict=True):
        end = start + len(word)
        if mark and before:
            ranges[-1] = (ranges[-1][0], end)
        elif mark:
            ranges.append((start, end))
        start, before = end + 1, bool(mark)
    return tuple(ranges)


def plural(number: int, noun: str) -> str:
    """Count things.

    Example:
        >>> plural(1, "text"), plural(1200, "text")
        ('1 text', '1,200 texts')
    """
    return f"{number:,} {noun}" + "s" * (number != 1)
