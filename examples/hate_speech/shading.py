"""Words shaded by their scores, beside human rationales: an HTML page and a picture."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.robustness.drawing import WIDTH

from .saliency import MEANING

RED, BLUE, GREEN = (213, 94, 0), (0, 114, 178), (0, 158, 115)
SIGNED = ("contribution", "gradient")
COLUMNS = 110  # letters in a line of the picture
LEFT = 15
MOST_IN_PICTURE = 20
HUMAN = "human"
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.7 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
article {{ border-top: 1px solid #ddd; padding: .6rem 0; }} h2 {{ font-size: 1rem; margin: .3rem 0; }}
.row {{ display: flex; gap: .8rem; }} .row b {{ flex: 0 0 7rem; font-weight: 400; color: #777; }}
.row span span {{ border-radius: .2rem; padding: .1rem .15rem; }} img {{ max-width: 100%; }}
</style></head><body><h1>{title}</h1><ul>{notes}</ul>
{articles}
{images}
</body></html>
"""


class Shown(NamedTuple):
    """One text as it is shown.

    Attributes:
        title: Its name and classes.
        words: Its words, masked where they have to be.
        scores: Scores of the words `(W,)` by kind.
        marks: Which words humans marked `(W,)`; None = unknown.
    """

    title: str
    words: list[str]
    scores: dict[str, np.ndarray]
    marks: np.ndarray | None

    def rows(self) -> list[tuple[str, list[tuple[tuple[int, int, int], float]]]]:
        """Give the rows to draw: name, and colour and strength of every word."""
        rows = [(name, shades(name, scores)) for name, scores in self.scores.items()]
        if self.marks is not None:
            rows.append((HUMAN, [(GREEN, 0.7 * float(mark)) for mark in self.marks]))
        return rows


def shades(name: str, scores: np.ndarray) -> list[tuple[tuple[int, int, int], float]]:
    """Give each word a colour and a strength in [0, 1]; signed scores have one colour for each sign.

    Scores without a sign are spread between the lowest and the highest of the text. Where all are equal, as the gates
    of a calibration that is the same for all tokens, nothing is shaded.
    """
    if name in SIGNED:
        largest = max(np.abs(scores).max(initial=0.0), 1e-12)
        return [(RED if score > 0 else BLUE, float(abs(score) / largest)) for score in scores]
    low, high = scores.min(initial=np.inf), scores.max(initial=-np.inf)
    if not high - low > 1e-6 * max(abs(high), 1e-12):
        return [(RED, 0.0)] * len(scores)
    return [(RED, float((score - low) / (high - low))) for score in scores]


def page(title: str, shown: Sequence[Shown], notes: Sequence[str], images: Sequence[Path]) -> str:
    """Write the HTML page; pictures are taken from beside it."""
    kinds = dict.fromkeys(name for one in shown for name in one.scores)
    lines = [f"<b>{name}</b>: {MEANING[name]}" for name in kinds] + [html.escape(note) for note in notes]
    return PAGE.format(
        title=html.escape(title),
        notes="".join(f"<li>{line}</li>" for line in lines),
        articles="\n".join(_article(one) for one in shown),
        images="\n".join(f'<p><img src="{path.name}" alt="{path.stem}"></p>' for path in images),
    )


def _article(one: Shown) -> str:
    rows = []
    for name, looks in one.rows():
        spans = [_span(word, *look) for word, look in zip(one.words, looks, strict=True)]
        rows.append(f'<div class="row"><b>{name}</b><span>{" ".join(spans) or "(no word)"}</span></div>')
    return f"<article><h2>{html.escape(one.title)}</h2>{''.join(rows)}</article>"


def _span(word: str, color: tuple[int, int, int], strength: float) -> str:
    style = f' style="background: rgba({color[0]}, {color[1]}, {color[2]}, {strength:.2f})"' if strength >= 0.01 else ""
    return f"<span{style}>{html.escape(word)}</span>"


def plot_words(shown: Sequence[Shown]) -> Figure:
    """Draw the first texts with their words shaded."""
    blocks = [(one, [(name, _wrap(one.words, looks)) for name, looks in one.rows()]) for one in shown[:MOST_IN_PICTURE]]
    lines = sum(1.6 + sum(len(wrapped) + 0.25 for _, wrapped in rows) for _, rows in blocks)
    figure = Figure(figsize=(WIDTH + 1.5, 0.24 * lines + 0.3))
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(-LEFT, COLUMNS)
    axes.set_ylim(lines, -0.5)
    axes.axis("off")
    down = 0.0
    for one, rows in blocks:
        axes.text(-LEFT, down, one.title, fontsize=9, fontweight="bold", va="center", parse_math=False)
        down += 1.1
        for name, wrapped in rows:
            axes.text(-LEFT, down, name, fontsize=8, color="#777777", va="center")
            for line in wrapped:
                _draw(axes, down, line)
                down += 1.0
            down += 0.25
        down += 0.5
    return figure


def _wrap(words: Sequence[str], looks: Sequence[tuple]) -> list[list[tuple[int, str, tuple]]]:
    """Break words into lines of (column, word, look); what is longer than a line is cut."""
    lines: list[list[tuple[int, str, tuple]]] = [[]]
    column = 0
    for word, look in zip(words, looks, strict=True):
        word = word if len(word) < COLUMNS else word[: COLUMNS - 2] + "…"
        if column and column + len(word) > COLUMNS:
            lines.append([])
            column = 0
        lines[-1].append((column, word, look))
        column += len(word) + 1
    return lines


def _draw(axes: Axes, down: float, line: Sequence[tuple[int, str, tuple]]) -> None:
    for column, word, (color, strength) in line:
        if strength >= 0.01:
            shade = tuple(part / 255 for part in color)
            box = (column - 0.3, down - 0.45), len(word) + 0.6, 0.9
            axes.add_patch(Rectangle(*box, facecolor=shade, alpha=min(strength, 1.0) * 0.8, linewidth=0))
        for place, letter in enumerate(word):
            # One by one, as no font has all letters of equal width.
            axes.text(
                column + place + 0.5,
                down,
                letter,
                fontsize=9,
                family="monospace",
                ha="center",
                va="center",
                parse_math=False,
            )
