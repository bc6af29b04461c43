"""Pictures of the confidence in a CSV of runs: reliability diagrams and selective accuracy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest
from textwrap import wrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.robustness.drawing import WIDTH, caption, looks, name_configs, plot_curves, required, tidy_axes
from benchmarks.robustness.rows import Column, parse_column
from benchmarks.robustness.tables import select_columns

MOST_ACROSS = 5
LARGEST_PANEL = 3.5  # inches
LETTER = 0.08  # width of a letter of the titles, in inches
RARE = 0.01  # a bin with a smaller share of the rows is no point: its accuracy is mostly noise


def plot_selective(frame: pd.DataFrame, configs: Sequence[str] | None = None) -> Figure:
    """Draw the accuracy on the most confident rows against their share: mean over runs and bootstrap interval.

    Args:
        frame: rows of runs of one data set.
        configs: configurations to draw; None = all.

    Returns:
        The figure.

    Raises:
        ValueError: if no run has such a column.
    """
    columns = required(frame, "selective", "accuracy", select_columns(frame, "selective", "accuracy"))
    labels = ("Coverage (share of the rows that are answered, the most confident ones)", "Accuracy on these rows")
    return plot_curves(frame, columns, labels, configs)


def plot_reliability(frame: pd.DataFrame, configs: Sequence[str] | None = None) -> Figure:
    """Draw accuracy against confidence: a panel per subset (or number of modalities), a line per configuration.

    The rows of all runs are pooled. Bins with less than 1 % of the rows are left out; the larger the marker, the more
    rows.

    Args:
        frame: rows of runs of one data set.
        configs: configurations to draw; None = all.

    Returns:
        The figure.

    Raises:
        ValueError: if no run has such a column.
    """
    columns = required(frame, "reliability", "share", select_columns(frame, "reliability", "share"))
    panels: dict[str, list[str]] = {}
    for argument in (parse_column(column).argument for column in columns):
        panels.setdefault(argument.partition("@")[0], []).append(argument)
    names = sorted(panels, key=lambda name: name.count("+"))
    down = -(-len(names) // MOST_ACROSS)
    across = -(-len(names) // down)
    side = min((WIDTH - 0.6) / across, LARGEST_PANEL)
    figure = Figure(figsize=(WIDTH, (side + 0.2) * down + 1.3), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    shown = looks(frame, configs)
    for index, (axes, name) in enumerate(zip_longest(grid.flat, names)):
        _draw_reliability(axes, name, frame, panels.get(name, []), shown)
        _label_panel(axes, name or "", int(side / LETTER), left=not index % across, last=index + across >= len(names))
    name_configs(figure, grid, list(shown))
    note = (
        "confidence: largest softmax probability; below the diagonal: too sure\nmarker: share of the rows, runs pooled"
    )
    figure.suptitle(caption(frame, note), x=0.01, ha="left", fontsize=10)
    return figure


def _draw_reliability(
    axes: Axes, name: str | None, frame: pd.DataFrame, arguments: list[str], looks: dict[str, dict[str, str]]
) -> None:
    if name is None:
        axes.set_visible(False)
        return
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    for config, look in looks.items():
        confidence, accuracy, share = pool_bins(frame[frame["config"] == config], arguments)
        some = share >= RARE
        x, y, sizes = confidence[some], accuracy[some], 6 + 90 * share[some]
        axes.plot(x, y, color=look["color"], linestyle=look["linestyle"], linewidth=1.2)
        axes.scatter(x, y, sizes, color=look["color"], marker=look["marker"], alpha=0.7, linewidths=0, clip_on=False)
        axes.plot([], [], markersize=5, linewidth=1.2, label=config, **look)
    tidy_axes(axes)


def _label_panel(axes: Axes, name: str, letters: int, *, left: bool, last: bool) -> None:
    """Write title and scales of a panel; `last` is the lowest of its column."""
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    name = re.sub(r"^(\d+)of(\d+)$", r"\1 of \2 modalities", name)
    axes.set_title("\n".join(wrap(name.replace("+", "+ "), letters)).replace("+ ", "+"), fontsize=9)
    ticks = {0.0: "0", 0.5: "0.5", 1.0: "1"}
    axes.set_xticks(list(ticks), list(ticks.values()) if last else [""] * 3)
    axes.set_yticks(list(ticks), list(ticks.values()) if left else [""] * 3)
    axes.set_xlabel("Confidence" if last else "")
    axes.set_ylabel("Accuracy" if left else "")


def pool_bins(runs: pd.DataFrame, arguments: Sequence[str]) -> NDArray[np.float64]:
    """Average reliability bins over runs, each run by its share of rows in the bin: (3, bins).

    Returns:
        Mean confidence and accuracy (NaN where no run has a row) and mean share.

    Example:
        >>> runs = pd.DataFrame({"reliability[a@01].share": [0.1, 0.3], "reliability[a@01].confidence": [0.06, 0.1],
        ...                      "reliability[a@01].accuracy": [0.0, 1.0]})
        >>> pool_bins(runs, ["a@01"]).round(3).tolist()
        [[0.09], [0.75], [0.2]]
    """
    parts = [
        [str(Column("reliability", one, name)) for one in arguments] for name in ("confidence", "accuracy", "share")
    ]
    confidence, accuracy, share = (np.nan_to_num(runs.reindex(columns=columns).to_numpy(float)) for columns in parts)
    total = share.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.stack([(confidence * share).sum(0) / total, (accuracy * share).sum(0) / total, total / len(runs)])
