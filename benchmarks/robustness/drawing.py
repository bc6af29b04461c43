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
from benchmarks.robustness.rows import Column, write_atomically
from benchmarks.robustness.statistics import clusters_of, summarize

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


def label_ends(axes: Axes, x: float, ends: dict[str, tuple[float, str]]) -> None:
    """Name each line at its right end, in its colour, moving names apart where lines end close together."""
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
            (x + 0.035, place),
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


def tidy_axes(axes: Axes) -> None:
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def title_of(score: str) -> str:
    name = TITLES.get(score, score)
    return f"{name} (lower is better)" if score in LOWER_IS_BETTER else name


def caption(frame: pd.DataFrame, note: str) -> str:
    return f"{frame['data'].iloc[0]} · {note}"
