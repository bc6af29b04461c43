"""Words shaded by their scores, beside human rationales: an HTML page and a picture."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.robustness.drawing import WIDTH

from .saliency import ATTENTION, CHANGE, CONTRIBUTION, GATE, GRADIENT, MEANING

RED, BLUE, GREEN = (213, 94, 0), (0, 114, 178), (0, 158, 115)
SIGNED = (CONTRIBUTION, GRADIENT)
# The smallest spread (of signed scores: size) that is shaded in full; a share of the highest where no unit is given.
LEAST = {GATE: 0.05, CONTRIBUTION: 0.25, GRADIENT: 0.25}
LEAST_SHARE = {CHANGE: 0.1, ATTENTION: 0.1}
FAINT = 0.05  # less strength is not drawn
COLUMNS = 110  # letters in a line of the picture
LEFT = 26
FIGURE_WIDTH = WIDTH + 2.1
LETTER = FIGURE_WIDTH * 0.98 * 72 / (COLUMNS + LEFT) / 0.602  # points; 0.602 of them are the width of a letter
MOST_IN_PICTURE = 20
HUMAN = "human"
NO_WORD = "(no word)"
SCALE = (
    "The strength of a colour is scaled within each text and row; the numbers beside a row are its lowest and highest "
    "value. Rows of nearly equal values stay without colour, and single words have no more than half of it."
)
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.7 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
article {{ border-top: 1px solid #ddd; padding: .6rem 0; }} h2 {{ font-size: 1rem; margin: .3rem 0; }}
.row {{ display: flex; gap: .8rem; }} .row b {{ flex: 0 0 6rem; font-weight: 400; color: #777; }}
.row i {{ flex: 0 0 8rem; font-style: normal; color: #777; }} em {{ color: #777; }}
span span, li span {{ border-radius: .2rem; padding: .1rem .15rem; }} img {{ max-width: 100%; }}
</style></head><body><h1>{title}</h1><ul>{notes}</ul>
{articles}
{images}
</body></html>
"""
Look = tuple[tuple[int, int, int], float]


class Row(NamedTuple):
    """One row of a text: its name, the range of its values (or ""), and colour and strength of every word."""

    name: str
    range: str
    looks: list[Look]


class Shown(NamedTuple):
    """One text as it is shown.

    Attributes:
        title: Its name and classes.
        words: Its words, masked where they have to be.
        scores: Scores of the words `(W,)` by kind.
        marks: Which words humans marked `(W,)`; None = unknown.
        cut: How many words more the text has, which the model did not read.
    """

    title: str
    words: list[str]
    scores: dict[str, np.ndarray]
    marks: np.ndarray | None
    cut: int = 0

    def rows(self) -> list[Row]:
        """Give the rows to draw."""
        rows = [Row(name, range_of(scores), shades(name, scores)) for name, scores in self.scores.items()]
        if self.marks is not None:
            rows.append(Row(HUMAN, "", [(GREEN, 0.7 * float(mark)) for mark in self.marks]))
        return rows

    def rest(self) -> str:
        """Say what is missing behind the words, or instead of any."""
        if self.cut:
            return f"… {self.cut:,} more {'words' if self.cut > 1 else 'word'} not read"
        return "" if self.words else NO_WORD


def shades(name: str, scores: np.ndarray) -> list[Look]:
    """Give each word a colour and a strength in [0, 1]; signed scores have one colour for each sign.

    Scores without a sign are spread between the lowest and the highest of the text. Where these are about equal, as the
    gates of a calibration that is the same for all tokens, little or nothing is shaded. A single word, whose score
    cannot be large or small for its text, has at most half of the strength.
    """
    high = np.abs(scores).max(initial=0.0)
    least = max(LEAST.get(name, 0.0), LEAST_SHARE.get(name, 0.0) * high, 1e-6 * high, 1e-12)
    if name in SIGNED:
        scale = max(high, least) * (2 if len(scores) == 1 else 1)
        return [(RED if score > 0 else BLUE, float(abs(score) / scale)) for score in scores]
    low = scores.min(initial=np.inf)
    return [(RED, float((score - low) / max(scores.max() - low, least))) for score in scores]


def range_of(scores: np.ndarray) -> str:
    """Write the lowest and the highest of some scores.

    Example:
        >>> range_of(np.array([0.25, -0.5])), range_of(np.array([0.0012, 0.0031])), range_of(np.zeros(0))
        ('-0.500 to 0.250', '1.2e-03 to 3.1e-03', '')
    """
    if not len(scores):
        return ""
    form = ".3f" if np.abs(scores).max() >= 0.01 or not scores.any() else ".1e"
    return f"{scores.min():{form}} to {scores.max():{form}}"


def legend(shown: Sequence[Shown], toward: str) -> list[tuple[tuple[int, int, int], str, str]]:
    """List what colours mean: colour, its name, and meaning."""
    kinds = dict.fromkeys(name for one in shown for name in one.scores)
    found = []
    for name in kinds:
        if name in SIGNED:
            found.append((RED, "orange", f"{name}: the word speaks for {toward}"))
            found.append((BLUE, "blue", f"{name}: the word speaks against {toward}"))
        else:
            found.append((RED, "orange", f"{name}: the higher the stronger, without colour the lowest of the text"))
    if any(one.marks is not None for one in shown):
        found.append((GREEN, "green", "human: annotators marked the word"))
    return found


# --- the page


def page(title: str, shown: Sequence[Shown], notes: Sequence[str], images: Sequence[Path], toward: str) -> str:
    """Write the HTML page; pictures are taken from beside it, and `toward` is what signed scores speak for."""
    kinds = dict.fromkeys(name for one in shown for name in one.scores)
    lines = [f"<b>{name}</b>: {MEANING[name]}" for name in kinds]
    lines += [f"{_span(name, color, 0.7)} {html.escape(text)}" for color, name, text in legend(shown, toward)]
    lines += [html.escape(note) for note in (SCALE, *notes)]
    return PAGE.format(
        title=html.escape(title),
        notes="".join(f"<li>{line}</li>" for line in lines),
        articles="\n".join(_article(one) for one in shown),
        images="\n".join(f'<p><img src="{path.name}" alt="{path.stem}"></p>' for path in images),
    )


def _article(one: Shown) -> str:
    rows = []
    for row in one.rows():
        spans = [_span(word, *look) for word, look in zip(one.words, row.looks, strict=True)]
        spans += [f"<em>{one.rest()}</em>"] if one.rest() else []
        rows.append(f'<div class="row"><b>{row.name}</b><i>{row.range}</i><span>{" ".join(spans)}</span></div>')
    return f"<article><h2>{html.escape(one.title)}</h2>{''.join(rows)}</article>"


def _span(word: str, color: tuple[int, int, int], strength: float) -> str:
    shade = f"rgba({color[0]}, {color[1]}, {color[2]}, {strength:.2f})"
    style = f' style="background: {shade}"' if strength >= FAINT else ""
    return f"<span{style}>{html.escape(word)}</span>"


# --- the picture


def plot_words(shown: Sequence[Shown], toward: str) -> Figure:
    """Draw the first texts with their words shaded, below what the colours mean."""
    blocks = [(one, [(row, _wrap(one, row.looks)) for row in one.rows()]) for one in shown[:MOST_IN_PICTURE]]
    colors = legend(shown[:MOST_IN_PICTURE], toward)
    lines = len(colors) + 2.6 + sum(1.6 + sum(len(wrapped) + 0.25 for _, wrapped in rows) for _, rows in blocks)
    figure = Figure(figsize=(FIGURE_WIDTH, 0.24 * lines + 0.3))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(-LEFT, COLUMNS)
    axes.set_ylim(lines, -0.5)
    axes.axis("off")
    down = _draw_legend(axes, colors)
    for one, rows in blocks:
        _write(axes, -LEFT, down, one.title, fontsize=9, fontweight="bold")
        down += 1.1
        for row, wrapped in rows:
            _write(axes, -LEFT, down, f"{row.name}  {row.range}", fontsize=8, color="#777777")
            for line in wrapped:
                for column, word, look in line:
                    _draw_word(axes, column, down, word, look)
                down += 1.0
            down += 0.25
        down += 0.5
    return figure


def _draw_legend(axes: Axes, colors: Sequence[tuple[tuple[int, int, int], str, str]]) -> float:
    """Draw what the colours mean; return the line below."""
    for down, (color, _, text) in enumerate(colors):
        _shade(axes, -LEFT + 0.5, down, 2, (color, 0.7))
        _write(axes, -LEFT + 3.5, down, text, fontsize=8)
    middle = SCALE.index(". ") + 2
    for down, text in enumerate((SCALE[:middle], SCALE[middle:]), len(colors)):
        _write(axes, -LEFT, down, text, fontsize=8, color="#777777")
    return len(colors) + 2.6


def _write(axes: Axes, column: float, down: float, text: str, **look: object) -> None:
    known = "".join(letter if font_with(letter) else "□" for letter in text)
    fonts = dict.fromkeys(["sans-serif", *(font_with(letter) for letter in known)])
    axes.text(column, down, known, va="center", parse_math=False, family=list(fonts), **look)


def _wrap(one: Shown, looks: Sequence[Look]) -> list[list[tuple[int, str, Look]]]:
    """Break words into lines of (column, word, look); what is longer than a line is cut."""
    lines: list[list[tuple[int, str, Look]]] = [[]]
    column = 0
    for word, look in [*zip(one.words, looks, strict=True), *((word, (RED, 0.0)) for word in one.rest().split())]:
        while width_of(word) > COLUMNS:
            word = word[: (len(word) - 1) * COLUMNS // width_of(word) - 1] + "…"
        width = width_of(word)
        if column and column + width > COLUMNS:
            lines.append([])
            column = 0
        lines[-1].append((column, word, look))
        column += width + 1
    return lines


def _shade(axes: Axes, column: float, down: float, width: float, look: Look) -> None:
    if look[1] >= FAINT:
        color = (*(part / 255 for part in look[0]), min(look[1], 1.0) * 0.8)
        axes.add_patch(Rectangle((column - 0.3, down - 0.45), width + 0.6, 0.9, facecolor=color, linewidth=0))


def _draw_word(axes: Axes, column: float, down: float, word: str, shade: Look) -> None:
    _shade(axes, column, down, width_of(word), shade)
    # One by one where widths differ: no font has all letters of equal width.
    plain = word.isascii() and word.isprintable()
    for letter, width in [(word, len(word))] if plain and word else letters_of(word):
        font = font_with(letter[0])
        if font is None:
            box = (column + 0.15, down - 0.32), width - 0.3, 0.64
            axes.add_patch(Rectangle(*box, fill=False, edgecolor="#222222", linewidth=0.7))
        else:
            look = {"fontsize": LETTER, "family": ["monospace", font], "ha": "center", "parse_math": False}
            axes.text(column + width / 2, down + 0.23, letter, **look)
        column += width


def width_of(word: str) -> int:
    """Count the columns of a word.

    Example:
        >>> width_of("weather"), width_of("天气"), width_of("e\u0301")
        (7, 4, 1)
    """
    return sum(width for _, width in letters_of(word))


def letters_of(word: str) -> Iterator[tuple[str, int]]:
    """Yield the letters of a word, with the marks on them, and the columns of each; what cannot be seen is left out."""
    letters: list[str] = []
    for one in word:
        kind = unicodedata.category(one)
        if kind in ("Mn", "Me") and letters:
            letters[-1] += one if font_with(one) else ""
        elif kind not in ("Cc", "Cf", "Cs", "Mn", "Me"):
            letters.append(one)
    for letter in letters:
        yield letter, 2 if unicodedata.east_asian_width(letter[0]) in "WF" else 1


@lru_cache(maxsize=4096)
def font_with(letter: str) -> str | None:
    """Name the first installed font that has a letter; None without one."""
    return next((name for name, path in _fonts().items() if _has(path, letter)), None)


@lru_cache(maxsize=1)
def _fonts() -> dict[str, str]:
    """Give name and file of the fonts to look in; the last resort has a box for everything, which is no letter."""
    found = {"monospace": font_manager.findfont("monospace")}
    for one in sorted(font_manager.fontManager.ttflist, key=lambda one: (one.name, one.style != "normal", one.fname)):
        if one.size == "scalable" and not one.name.startswith(("Last Resort", "cm")):
            found.setdefault(one.name, one.fname)
    return found


def _has(path: str, letter: str) -> bool:
    try:
        font = font_manager.get_font(path)
    except (OSError, RuntimeError):
        return False
    return bool(letter and font.scalable and font.get_char_index(ord(letter)))
