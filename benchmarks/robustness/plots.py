"""Pictures of a CSV of runs; each function returns a figure that `drawing.save_figure` writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from benchmarks.robustness.drawing import (
    WIDTH,
    bands,
    caption,
    looks,
    name_configs,
    plot_curves,
    required,
    tidy_axes,
    title_of,
)
from benchmarks.robustness.rows import parse_column, parse_corruption
from benchmarks.robustness.tables import select_columns

MOST_NUMBERS = 16
WEIGHT_TOLERANCE = 1e-3  # by how much rounding may take a share of the fusion out of 0 to 1
MOST_WEIGHT = 1.25  # sum over modalities of the mean weights of a model whose weights are shares


def plot_missing(frame: pd.DataFrame, score: str = "weighted_f1", configs: Sequence[str] | None = None) -> Figure:
    """Draw the score against the missing rate: the mean over runs and its bootstrap interval as a band.

    Args:
        frame: rows of runs of one data set.
        score: the metric.
        configs: configurations to draw; None = all.

    Returns:
        The figure.

    Raises:
        ValueError: if no run has such a column.
    """
    columns = required(frame, "missing", score, select_columns(frame, "missing", score, lambda rate: rate != "mean"))
    labels = ("Missing rate (probability that a modality is missing)", title_of(score))
    return plot_curves(frame, columns, labels, configs)


def plot_subsets(
    frame: pd.DataFrame, score: str = "weighted_f1", view: str = "subset", configs: Sequence[str] | None = None
) -> Figure:
    """Draw a heat map of the mean score of each configuration on each subset of the modalities.

    Args:
        frame: rows of runs of one data set.
        score: the metric.
        view: "subset", "specialist" or "regret".
        configs: configurations to draw; None = all.

    Returns:
        The figure.

    Raises:
        ValueError: if no run has such a column.
    """
    columns = select_columns(frame, view, score, lambda label: label not in ("mean", "worst"))
    columns = sorted(required(frame, view, score, columns), key=lambda column: column.count("+"))
    values = {name: bands(frame[frame["config"] == name], columns)[0] for name in looks(frame, configs)}
    values = {name: line for name, line in values.items() if not np.isnan(line).all()}
    subsets = [parse_column(column).argument.split("+") for column in columns]
    modalities = list(dict.fromkeys(name for subset in reversed(subsets) for name in subset))
    heights = [0.34 * len(values) + 0.1, 0.24 * len(modalities) + 0.1]
    figure = Figure(figsize=(WIDTH, 1.2 + sum(heights)), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    _draw_heat_map(upper, list(values), np.array(list(values.values())), score, view)
    upper.set_title(caption(frame, "mean over runs"), loc="left", fontsize=10)
    _draw_members(lower, subsets, modalities)
    return figure


def _draw_heat_map(axes: Axes, names: list[str], values: np.ndarray, score: str, view: str) -> None:
    limit = float(np.nanmax(np.abs(values))) or 1.0
    colors = {"cmap": "PuOr_r", "vmin": -limit, "vmax": limit} if view == "regret" else {"cmap": "cividis"}
    image = axes.imshow(values, aspect="auto", **colors)
    axes.set_yticks(range(len(names)), names)
    if values.shape[1] <= MOST_NUMBERS:
        _write_numbers(axes, values, image)
    title = f"Regret, {title_of(score)}\n(positive: specialist better)" if view == "regret" else title_of(score)
    axes.figure.colorbar(image, ax=axes, label=title, fraction=0.04, pad=0.02)
    axes.tick_params(length=0, labelbottom=False)
    axes.spines[:].set_visible(False)


def _draw_members(axes: Axes, subsets: list[list[str]], modalities: list[str]) -> None:
    """Mark with a filled dot which modalities each column of the heat map has: readable for any number of subsets."""
    size = 45 if len(subsets) <= MOST_NUMBERS else 14
    for place, name in enumerate(modalities):
        has = np.array([name in subset for subset in subsets])
        axes.scatter(np.flatnonzero(has), np.full(has.sum(), place), s=size, color="#222222")
        axes.scatter(np.flatnonzero(~has), np.full((~has).sum(), place), s=size, color="#e4e4e4")
    axes.set_yticks(range(len(modalities)), modalities)
    axes.set_ylim(len(modalities) - 0.5, -0.5)
    axes.set_xlabel("Modalities given to the model (dark = given)")
    axes.tick_params(length=0, labelbottom=False)
    axes.spines[:].set_visible(False)


def plot_corruption(
    frame: pd.DataFrame, quantities: Sequence[str] = ("weight", "std"), configs: Sequence[str] | None = None
) -> Figure:
    """Draw quantities of the spoilt modality against the corruption: a column per modality, a row per quantity.

    Args:
        frame: rows of runs of one data set.
        quantities: "weight" and "std" of the spoilt modality, or a metric of the whole model such as "weighted_f1".
        configs: configurations to draw; None = all.

    Returns:
        The figure; the bars are bootstrap intervals over runs. Quantities that no run has are left out, and so are
        weights that are no shares beside those that are, as the caption then says.

    Raises:
        ValueError: if none of the quantities is there.
    """
    found = {quantity: _corruption_columns(frame, quantity) for quantity in quantities}
    found = {quantity: columns for quantity, columns in found.items() if columns}
    required(frame, "corrupt", ", ".join(quantities), list(found))
    modalities = list(dict.fromkeys(name for columns in found.values() for name in columns))
    across = len(modalities) if len(modalities) <= 4 else 3
    down = -(-len(modalities) // across)
    figure = Figure(figsize=(WIDTH, 1.3 + 2.4 * len(found) * down), layout="constrained")
    grid = figure.subplots(len(found) * down, across, squeeze=False)
    names = looks(frame, configs)
    unbounded = _unbounded_weights(frame, found.get("weight", {}), list(names))
    for line, (quantity, columns) in enumerate(found.items()):
        block = grid[line * down : (line + 1) * down]
        shown = {name: look for name, look in names.items() if quantity != "weight" or name not in unbounded}
        for axes, modality in zip_longest(block.flat, modalities):
            _draw_corruption(axes, modality, frame, columns, shown)
        if quantity == "std":  # from 1 to a hundred
            for axes in block.flat:
                axes.set_yscale("log")
        _share_scale(block, title_of(quantity))
    name_configs(figure, grid, list(names))
    notes = ["one modality spoilt, the model not told; noise levels are signal-to-noise ratios", *unbounded.values()]
    figure.suptitle(caption(frame, "\n".join(notes)), x=0.01, ha="left", fontsize=10)
    return figure


def _unbounded_weights(frame: pd.DataFrame, found: dict[str, dict[str, str]], configs: Sequence[str]) -> dict[str, str]:
    """Say, for each configuration whose mean weights are no shares, why it is left out: it would flatten the others.

    Shares are not negative and sum to 1 over the modalities, their means to a little more where samples lack some of
    them: each is over the samples that have the modality. Nothing is left out where no configuration has such weights.
    """
    columns = [column for labels in found.values() for column in labels.values()]
    means = frame.groupby("config", sort=False)[columns].mean().loc[list(configs)].dropna(how="all")
    lowest, highest = means.min(axis=1), means.max(axis=1)
    outside = (lowest < -WEIGHT_TOLERANCE) | (_most_weight(frame, list(means.index)) > MOST_WEIGHT)
    if not len(means) or outside.all():
        return {}
    spans = {name: f"{lowest[name]:.2f} to {highest[name]:.2f}".replace("-", "−") for name in means.index[outside]}
    return {
        name: f"left out: the weights of {name}, which are not normalised (means of {span})"
        for name, span in spans.items()
    }


def _most_weight(frame: pd.DataFrame, configs: list[str]) -> pd.Series:
    """Return the largest sum of the mean weights over the modalities, by configuration."""
    columns = [str(column) for column in filter(None, map(parse_column, frame.columns)) if column.view == "weight"]
    means = frame.groupby("config", sort=False)[columns].mean().loc[configs]
    return means.T.groupby([column.partition("]")[0] for column in columns]).sum().max()


def _share_scale(block: np.ndarray, title: str) -> None:
    """Give all panels of one quantity the same vertical scale, written at the left only."""
    low, high = zip(*(axes.get_ylim() for axes in block.flat if axes.get_visible()), strict=True)
    for axes in block.flat:
        axes.set_ylim(min(low), max(high))
        axes.tick_params(labelleft=False)
    for axes in block[:, 0]:
        axes.set_ylabel(title)
        axes.tick_params(labelleft=True)


def _corruption_columns(frame: pd.DataFrame, quantity: str) -> dict[str, dict[str, str]]:
    """Find, for each spoilt modality, the column of each corruption."""
    view = quantity if quantity in ("weight", "std") else "corrupt"
    found: dict[str, dict[str, str]] = {}
    for column in filter(None, map(parse_column, frame.columns)):
        if column.view != view:
            continue
        label = parse_corruption(column.argument)
        if column.metric == (label.modality if view == quantity else quantity):
            found.setdefault(label.modality, {})[column.argument.partition(":")[2]] = str(column)
    return found


def _draw_corruption(
    axes: Axes,
    modality: str | None,
    frame: pd.DataFrame,
    found: dict[str, dict[str, str]],
    looks: dict[str, dict[str, str]],
) -> None:
    if modality not in found:
        axes.set_visible(False)
        return
    names, columns = list(found[modality]), list(found[modality].values())
    # Clean and the levels of noise are a scale and get a line; the other corruptions stand apart, as points.
    scale = sum(name == "clean" or "@" in name for name in names)
    places = np.arange(len(names)) + np.where(np.arange(len(names)) < scale, 0.0, 0.6)
    for index, (config, look) in enumerate(looks.items()):
        mean, low, high = bands(frame[frame["config"] == config], columns)
        if np.isnan(mean).all():
            continue
        x = places + (index - (len(looks) - 1) / 2) * min(0.1, 0.5 / len(looks))
        bars = np.nan_to_num(np.abs(np.stack([mean - low, high - mean])))
        points = {"fmt": look["marker"], "markersize": 4, "elinewidth": 0.8}
        axes.errorbar(x, mean, bars, color=look["color"], label=config, **points)
        axes.plot(x[:scale], mean[:scale], linewidth=1.2, linestyle=look["linestyle"], color=look["color"])
    labels = [name.removeprefix("noise@").replace("dB", " dB").replace("-", "−") for name in names]
    axes.set_xticks(places, labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_title(f"{modality} spoilt", fontsize=10)
    tidy_axes(axes)


def _write_numbers(axes: Axes, values: np.ndarray, image: AxesImage) -> None:
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            text = re.sub(r"^(−?)0\.", r"\1.", f"{round(value, 2) + 0.0:.2f}".replace("-", "−"))
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
