"""What all pictures share: looks, names, bands, labels, and writing the file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.robustness.metrics import LOWER_IS_BETTER
from benchmarks.robustness.rows import Column, parse_column, write_atomically
from benchmarks.robustness.statistics import clusters_of, summarize

WIDTH = 9.0  # inches; at 110 dpi about the width of a README
# Okabe and Ito's colours without the yellow, then two of Tol's: told apart with any colour vision. Line style and
# marker repeat the distinction for print in grey.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933", "#777777")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
TITLES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "weighted_f1": "Weighted F1",
    "valence_mse": "Valence MSE",
    "combined": "Weighted F1 − 0.25 · MSE",
    "weight": "Fusion weight\nof the spoilt modality",
    "std": "Mean std of latent\nof the spoilt modality",
}


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, as a whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def required(frame: pd.DataFrame, view: str, score: str, columns: list[str]) -> list[str]:
    if not columns:
        raise ValueError(f"plot: expected columns such as {Column(view, '...', score)}, got none of them")
    sets = list(map(str, frame["data"].unique()))
    if len(sets) != 1:
        raise ValueError(f"plot: expected runs of one data set, got {', '.join(sets)}")
    return columns


def looks(frame: pd.DataFrame, configs: Sequence[str] | None) -> dict[str, dict[str, str]]:
    """Give every configuration of the file its look, the same in all pictures, then keep the wanted ones."""
    known = list(map(str, frame["config"].unique()))
    for name in configs or ():
        if name not in known:
            raise ValueError(f"plot: expected a config among {', '.join(known)}, got {name!r}")
    return {
        name: {
            "color": COLORS[index % len(COLORS)],
            "linestyle": STYLES[(index + index // len(COLORS)) % len(STYLES)],
            "marker": MARKERS[index % len(MARKERS)],
        }
        for index, name in enumerate(known)
        if configs is None or name in configs
    }


def bands(runs: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Compute mean, low and high of each column: (3, S)."""
    clusters = clusters_of(runs)
    values = runs[columns].to_numpy(float)
    summaries = [summarize(values[:, [column]], clusters) for column in range(len(columns))]
    return np.array([(summary.mean, summary.low, summary.high) for summary in summaries]).T


def plot_curves(
    frame: pd.DataFrame, columns: list[str], labels: tuple[str, str], configs: Sequence[str] | None
) -> Figure:
    """Draw columns of one metric against the numbers that are their arguments: a line and a band per configuration.

    Args:
        frame: rows of runs of one data set.
        columns: the columns, from left to right.
        labels: what stands along the two axes.
        configs: configurations to draw; None = all.

    Returns:
        The figure.
    """
    places = np.array([float(parse_column(column).argument) for column in columns])
    figure = Figure(figsize=(WIDTH, 5.0), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)
    axes = figure.add_subplot()
    ends = {}
    for config, look in looks(frame, configs).items():
        mean, low, high = bands(frame[frame["config"] == config], columns)
        axes.plot(places, mean, linewidth=1.8, markersize=4, **look)
        axes.fill_between(places, low, high, color=look["color"], alpha=0.12, linewidth=0)
        ends[config] = (mean[-1], look["color"])
    label_ends(axes, places[-1], ends, offset=0.039 * (np.ptp(places) or 1.0))
    axes.set_xticks(places)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(caption(frame, "band: 95 % bootstrap interval over runs"), loc="left", fontsize=10)
    tidy_axes(axes)
    return figure


def label_ends(axes: Axes, x: float, ends: dict[str, tuple[float, str]], *, offset: float = 0.035) -> None:
    """Name each line at its right end, `offset` beside it, in its colour; names move apart where lines end close."""
    ends = {name: end for name, end in ends.items() if not np.isnan(end[0])}
    order = sorted(ends, key=lambda name: ends[name][0])
    low, high = axes.get_ylim()
    gap = (high - low) * 0.048
    places = spread(np.array([ends[name][0] for name in order]), gap)
    if order:
        axes.set_ylim(min(low, places[0] - gap / 2), max(high, places[-1] + gap / 2))
    for name, place in zip(order, places, strict=True):
        value, color = ends[name]
        axes.annotate(
            name,
            (x, value),
            (x + offset, place),
            color=color,
            va="center",
            fontsize=9,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 1, "relpos": (0, 0.5)},
        )


def spread(values: np.ndarray, gap: float) -> np.ndarray:
    """Move sorted values as little as possible (least squares) so that neighbours are at least `gap` apart.

    Example:
        >>> spread(np.array([0.0, 0.0, 5.0]), 1.0).tolist()
        [-0.5, 0.5, 5.0]
    """
    # Less i * gap the condition is "not falling": the classic pooling of adjacent violators solves it exactly.
    blocks: list[list[float]] = []
    for index, value in enumerate(values):
        blocks.append([float(value) - index * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    level = [float(np.mean(block)) for block in blocks for _ in block]
    return np.array(level) + np.arange(len(values)) * gap


def name_configs(figure: Figure, grid: np.ndarray, order: list[str]) -> None:
    """Name every configuration that some panel shows."""
    handles = {}
    for axes in grid.flat:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = [name for name in order if name in handles]
    shown = [handles[name] for name in labels]
    figure.legend(shown, labels, loc="outside lower center", ncols=min(5, len(labels)) or 1, frameon=False, fontsize=9)


def tidy_axes(axes: Axes) -> None:
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def title_of(score: str) -> str:
    name = TITLES.get(score, score)
    return f"{name} (lower is better)" if score in LOWER_IS_BETTER else name


def caption(frame: pd.DataFrame, note: str) -> str:
    return f"{frame['data'].iloc[0]} · {note}"
