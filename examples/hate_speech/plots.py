"""Pictures of runs: scores, differences, confusion, rationales; of a model: its feature space and similarities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from benchmarks.robustness.drawing import COLORS, MARKERS, WIDTH, save_figure, tidy_axes
from benchmarks.robustness.rows import parse_column
from benchmarks.robustness.tables import Measure, compare_measure, summarize_measure

BINS = 60
PERPLEXITY = 30.0
MOST_PANELS = 12


def write_pictures(frame: pd.DataFrame, folder: Path, reference: str | None) -> list[Path]:
    """Write the pictures for which the runs of one corpus have columns."""
    figures = {"scores": plot_scores(frame), "confusion": plot_confusion(frame)}
    if reference is not None:
        figures["differences"] = plot_differences(frame, reference)
    if any(column.startswith("rationale[") and column.endswith("].average_precision") for column in frame):
        figures["rationales"] = plot_rationales(frame)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        save_figure(figure, paths[-1])
    return paths


def plot_scores(frame: pd.DataFrame) -> Figure:
    """Draw macro F1 on validation and test, side by side: mean and interval of every configuration."""
    figure, axes, configs = _lines(frame)
    for part, column, shift in (("validation", "val.macro_f1", -0.13), ("test", "test.macro_f1", 0.13)):
        summaries = [summarize_measure(runs, Measure("", (column,), "mean")) for _, runs in _groups(frame)]
        color, marker = (COLORS[1], "o") if part == "validation" else (COLORS[2], "s")
        _intervals(axes, np.arange(len(configs)) + shift, summaries, color, marker, part)
    axes.set_xlabel("Macro F1")
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure


def plot_differences(frame: pd.DataFrame, reference: str) -> Figure:
    """Draw paired differences of test macro F1 to a reference."""
    others = frame[frame["config"] != reference]
    figure, axes, configs = _lines(others)
    measure = Measure("", ("test.macro_f1",), "mean")
    summaries = [compare_measure(frame, config, reference, measure) for config in configs]
    axes.axvline(0.0, color="#777777", linewidth=0.8)
    _intervals(axes, np.arange(len(configs)), summaries, COLORS[1], "o", "")
    axes.set_xlabel(f"Test macro F1, difference to {reference}")
    return figure


def _groups(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(name), runs) for name, runs in frame.groupby("config", sort=False)]


def _lines(frame: pd.DataFrame) -> tuple[Figure, Axes, list[str]]:
    """Make axes with one line per configuration, the first on top."""
    configs = [name for name, _ in _groups(frame)]
    figure = Figure(figsize=(WIDTH, 1.4 + 0.38 * len(configs)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_yticks(range(len(configs)), configs)
    axes.set_ylim(len(configs) - 0.5, -0.5)
    tidy_axes(axes)
    runs = frame.groupby("config").size().max()
    note = "mean and 95 % bootstrap interval" if runs > 1 else "one run each"
    axes.set_title(f"{frame['data'].iloc[0]} · {note}", loc="left", fontsize=10)
    return figure, axes, configs


def _intervals(axes: Axes, places: np.ndarray, summaries: Sequence, color: str, marker: str, label: str) -> None:
    means = np.array([summary.mean for summary in summaries])
    axes.plot(means, places, marker, color=color, markersize=5, label=label)
    for place, one in zip(places, summaries, strict=True):
        if not np.isnan(one.low):
            axes.plot([one.low, one.high], [place, place], color=color, linewidth=1.6)


def plot_confusion(frame: pd.DataFrame) -> Figure:
    """Draw the confusion matrix of every configuration, in shares of the true class, added up over runs."""
    parsed = [column for column in map(parse_column, frame.columns) if column and column.view == "confusion"]
    classes = list(dict.fromkeys(column.argument.split(" > ")[0] for column in parsed))
    groups = _groups(frame)[:MOST_PANELS]
    across = min(3, len(groups))
    down = -(-len(groups) // across)
    figure = Figure(figsize=(3.2 * across, 0.6 + 2.8 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    for axes in panels.flat[len(groups) :]:
        axes.set_visible(False)
    for axes, (config, runs) in zip(panels.flat, groups, strict=False):
        counts = np.array([[runs[f"confusion[{a} > {b}].rows"].sum() for b in classes] for a in classes])
        _matrix(axes, counts / np.maximum(counts.sum(1, keepdims=True), 1), classes)
        axes.set_title(config, fontsize=9)
    figure.supxlabel("predicted", fontsize=9)
    figure.supylabel("true", fontsize=9)
    return figure


def _matrix(axes: Axes, shares: np.ndarray, classes: Sequence[str]) -> None:
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(classes)), classes, fontsize=8, rotation=20)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    for i, j in np.ndindex(shares.shape):
        color = "white" if shares[i, j] > 0.6 else "black"
        axes.text(j, i, f"{shares[i, j]:.2f}", ha="center", va="center", color=color, fontsize=8)


def plot_rationales(frame: pd.DataFrame) -> Figure:
    """Draw the average precision of every kind of token score."""
    figure, axes, configs = _lines(frame)
    columns = [column for column in map(parse_column, frame.columns) if column and column.view == "rationale"]
    methods = [column.argument for column in columns if column.metric == "average_precision"]
    for index, method in enumerate(methods):
        measure = Measure("", (f"rationale[{method}].average_precision",), "mean")
        summaries = [summarize_measure(runs, measure) for _, runs in _groups(frame)]
        shift = 0.6 * (index / max(len(methods) - 1, 1) - 0.5)
        look = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        _intervals(axes, np.arange(len(configs)) + shift, summaries, *look, method)
    axes.set_xlabel("Average precision against human rationales")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


# --- one model


def plot_space(before: np.ndarray, after: np.ndarray | None, labels: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw pooled vectors before and after the calibration, by PCA and by t-SNE.

    Args:
        before: `(N, H)`, means of the encoder's states.
        after: `(N, H)`, means of the calibrated ones; None without a calibration.
        labels: `(N,)`.
        classes: Their names.
    """
    stages = _stages(before, after)
    figure = Figure(figsize=(WIDTH, 4.0 * len(stages)), layout="constrained")
    panels = figure.subplots(len(stages), 2, squeeze=False)
    for down, (when, vectors) in enumerate(stages.items()):
        neighbours = min(PERPLEXITY, max((len(vectors) - 1) / 3, 1.0))
        flat = PCA(min(50, *vectors.shape), random_state=0).fit_transform(vectors)
        near = TSNE(2, perplexity=neighbours, init="random", random_state=0).fit_transform(flat)
        for axes, name, points in zip(panels[down], ("PCA", "t-SNE"), (flat, near), strict=True):
            for code, label in enumerate(classes):
                rows = labels == code
                look = {"s": 9, "alpha": 0.6, "linewidths": 0, "color": COLORS[1 + code % (len(COLORS) - 1)]}
                axes.scatter(points[rows, 0], points[rows, 1], marker=MARKERS[code % len(MARKERS)], label=label, **look)
            axes.set_title(f"{when}, {name}", fontsize=10, loc="left")
            axes.set_xticks([])
            axes.set_yticks([])
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(classes), frameon=False, markerscale=2)
    return figure


def _stages(before: np.ndarray, after: np.ndarray | None) -> dict[str, np.ndarray]:
    if after is None:
        return {"no calibration": before}
    return {"before the calibration": before, "after the calibration": after}


def plot_similarity(before: np.ndarray, after: np.ndarray | None, labels: np.ndarray) -> Figure:
    """Draw how similar pairs of samples are, of one class and of two, before and after the calibration."""
    stages = _stages(before, after)
    figure = Figure(figsize=(WIDTH * len(stages) / 2, 3.6), layout="constrained")
    panels = figure.subplots(1, len(stages), sharex=True, sharey=True, squeeze=False)[0]
    pairs = np.triu_indices(len(labels), 1)
    same = labels[pairs[0]] == labels[pairs[1]]
    for axes, (when, vectors) in zip(panels, stages.items(), strict=True):
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        cosine = (unit @ unit.T)[pairs]
        gap = 0.0
        for name, rows, color in (("same class", same, COLORS[1]), ("other class", ~same, COLORS[2])):
            if rows.any():
                axes.hist(
                    cosine[rows], bins=BINS, density=True, histtype="step", linewidth=1.6, color=color, label=name
                )
        if same.any() and (~same).any():
            gap = cosine[same].mean() - cosine[~same].mean()
        axes.set_title(f"{when}: means differ by {gap:.3f}", fontsize=10, loc="left")
        axes.set_xlabel("Cosine similarity of two samples")
        tidy_axes(axes)
    panels[0].set_ylabel("Density")
    panels[0].legend(frameon=False, fontsize=9)
    return figure
