"""Pictures of runs: scores, differences, dimensions, missing branches, confusion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.robustness.drawing import COLORS, MARKERS, WIDTH, save_figure, tidy_axes
from benchmarks.robustness.rows import parse_column
from benchmarks.robustness.statistics import Summary
from benchmarks.robustness.tables import Measure, compare_measure, select_columns, summarize_measure

SCORE = "balanced_accuracy"
TITLE = "balanced accuracy"
MOST_PANELS = 12
DIMENSION = re.compile(r"(?P<base>.*)\+dim\d+")


def write_pictures(frame: pd.DataFrame, folder: Path, reference: str | None, prefix: str = "") -> list[Path]:
    """Write the pictures for which the runs of one data set have columns."""
    figures = {"confusion": plot_confusion(frame)}
    if f"test.{SCORE}" in frame:
        figures = {"scores": plot_scores(frame), **figures}
        if reference is not None:
            figures["differences"] = plot_differences(frame, reference)
        dims = dimensions(frame)
        if len(dims) > 2:
            figures["dimensions"] = plot_dimensions(frame, dims)
    if select_columns(frame, "without", SCORE):
        figures["without"] = plot_without(frame)
    if select_columns(frame, "open", "residual", lambda name: name == "mean"):
        figures["open"] = plot_open(frame)
    paths = [folder / f"{prefix}{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        save_figure(figure, path)
    return paths


def plot_scores(frame: pd.DataFrame) -> Figure:
    """Draw the score on validation and test rows: mean and interval of every configuration."""
    figure, axes, _ = _lines(frame)
    columns = {"validation": f"val.{SCORE}", "test": f"test.{SCORE}"}
    _series(axes, frame, {name: column for name, column in columns.items() if column in frame})
    axes.set_xlabel(TITLE.capitalize())
    return figure


def plot_differences(frame: pd.DataFrame, reference: str) -> Figure:
    """Draw paired differences of the test score to a reference."""
    others = frame[frame["config"] != reference]
    figure, axes, configs = _lines(others)
    measure = Measure("", (f"test.{SCORE}",), "mean")
    summaries = [compare_measure(frame, config, reference, measure) for config in configs]
    axes.axvline(0.0, color="#777777", linewidth=0.8)
    _intervals(axes, np.arange(len(configs)), summaries, COLORS[1], "o", "")
    axes.set_xlabel(f"Test {TITLE}, difference to {reference}")
    return figure


def plot_without(frame: pd.DataFrame) -> Figure:
    """Draw the test score with all branches and without each."""
    figure, axes, _ = _lines(frame)
    columns = {f"without {argument_of(column)}": column for column in select_columns(frame, "without", SCORE)}
    _series(axes, frame, {"all branches": f"test.{SCORE}", **columns})
    axes.set_xlabel(f"Test {TITLE}")
    return figure


def plot_open(frame: pd.DataFrame) -> Figure:
    """Draw how well classes that were left out are told apart, by residual and by softmax."""
    some = frame[frame["open[mean].softmax"].notna()]
    figure, axes, _ = _lines(some)
    _series(axes, some, {"residual": "open[mean].residual", "maximum softmax": "open[mean].softmax"})
    axes.set_xlabel("AUROC of telling rows of a class that was left out from the others")
    return figure


def dimensions(frame: pd.DataFrame) -> dict[int, str]:
    """Find the configurations that differ in the dimension of the class subspaces: dimension -> name."""
    if "size.subspace_dim" not in frame:
        return {}
    dims = frame.groupby("config", sort=False)["size.subspace_dim"].first().dropna()
    bases = {match["base"] for match in map(DIMENSION.fullmatch, map(str, dims.index)) if match}
    names = [name for name in map(str, dims.index) if name in bases or DIMENSION.fullmatch(name)]
    return dict(sorted((int(dims[name]), name) for name in names))


def plot_dimensions(frame: pd.DataFrame, dims: dict[int, str]) -> Figure:
    """Draw the score on validation and test rows against the dimension of the class subspaces."""
    figure = Figure(figsize=(WIDTH * 0.7, 4.0), layout="constrained")
    axes = figure.add_subplot()
    places = np.array(list(dims))
    for index, (part, name) in enumerate((("val", "validation"), ("test", "test"))):
        if f"{part}.{SCORE}" not in frame:
            continue
        measure = Measure("", (f"{part}.{SCORE}",), "mean")
        found = [summarize_measure(frame[frame["config"] == config], measure) for config in dims.values()]
        color, marker = COLORS[1 + index], MARKERS[index]
        axes.plot(places, [one.mean for one in found], color=color, marker=marker, label=name)
        axes.fill_between(places, [one.low for one in found], [one.high for one in found], color=color, alpha=0.12)
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, list(map(str, places)))
    axes.set_xlabel("Basis vectors per class")
    axes.set_ylabel(TITLE.capitalize())
    axes.set_title(f"{frame['data'].iloc[0]} · mean and 95 % bootstrap interval", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    tidy_axes(axes)
    return figure


def plot_confusion(frame: pd.DataFrame) -> Figure:
    """Draw the confusion matrix of every configuration, in shares of the true class, added up over runs."""
    classes = confusion_classes(frame)
    groups = [(str(name), runs) for name, runs in frame.groupby("config", sort=False)][:MOST_PANELS]
    across = min(3, len(groups))
    down = -(-len(groups) // across)
    size = 2.2 + 0.28 * len(classes)
    figure = Figure(figsize=(size * across, 0.6 + (size - 0.3) * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    for axes in panels.flat[len(groups) :]:
        axes.set_visible(False)
    for axes, (config, runs) in zip(panels.flat, groups, strict=False):
        counts = np.array([[runs[f"confusion[{a} > {b}].rows"].sum() for b in classes] for a in classes])
        draw_confusion(axes, counts, classes)
        axes.set_title(config, fontsize=9)
    figure.supxlabel("predicted", fontsize=9)
    figure.supylabel("true", fontsize=9)
    return figure


def confusion_classes(frame: pd.DataFrame) -> list[str]:
    parsed = [column for column in map(parse_column, frame.columns) if column and column.view == "confusion"]
    return list(dict.fromkeys(column.argument.split(" > ")[0] for column in parsed))


def draw_confusion(axes: Axes, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Draw counts ``(C, C)`` as shares of the true class."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    small = 8 if len(classes) <= 6 else 6
    axes.set_xticks(range(len(classes)), classes, fontsize=small, rotation=30, ha="right")
    axes.set_yticks(range(len(classes)), classes, fontsize=small)
    for i, j in np.ndindex(shares.shape):
        if shares[i, j] >= 0.005:
            color = "white" if shares[i, j] > 0.6 else "black"
            axes.text(j, i, f"{shares[i, j]:.2f}", ha="center", va="center", color=color, fontsize=small - 1)


def _lines(frame: pd.DataFrame) -> tuple[Figure, Axes, list[str]]:
    """Make axes with one line per configuration, the first on top."""
    configs = list(map(str, frame["config"].unique()))
    figure = Figure(figsize=(WIDTH, 1.4 + 0.38 * len(configs)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_yticks(range(len(configs)), configs)
    axes.set_ylim(len(configs) - 0.5, -0.5)
    tidy_axes(axes)
    note = "mean and 95 % bootstrap interval" if frame.groupby("config").size().max() > 1 else "one run each"
    axes.set_title(f"{frame['data'].iloc[0]} · {note}", loc="left", fontsize=10)
    return figure, axes, configs


def _series(axes: Axes, frame: pd.DataFrame, columns: dict[str, str]) -> None:
    groups = [runs for _, runs in frame.groupby("config", sort=False)]
    for index, (name, column) in enumerate(columns.items()):
        shift = 0.5 * (index / max(len(columns) - 1, 1) - 0.5)
        summaries = [summarize_measure(runs, Measure("", (column,), "mean")) for runs in groups]
        look = COLORS[(index + 1) % len(COLORS)], MARKERS[index % len(MARKERS)]
        _intervals(axes, np.arange(len(groups)) + shift, summaries, *look, name)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _intervals(
    axes: Axes, places: np.ndarray, summaries: Sequence[Summary], color: str, marker: str, label: str
) -> None:
    axes.plot([one.mean for one in summaries], places, marker, linestyle="", color=color, markersize=5, label=label)
    for place, one in zip(places, summaries, strict=True):
        if not np.isnan(one.low):
            axes.plot([one.low, one.high], [place, place], color=color, linewidth=1.6)


def argument_of(column: str) -> str:
    """Return what is in the brackets of a column name.

    Example:
        >>> argument_of("without[mrna].accuracy")
        'mrna'
    """
    parsed = parse_column(column)
    return parsed.argument if parsed else ""
