"""Tables of what a robust model has to stand up to: specialists, knowing a spoilt modality, knowing its own errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd

from benchmarks.robustness.rows import Column
from benchmarks.robustness.statistics import Reduce, Summary
from benchmarks.robustness.tables import (
    NOTHING,
    Measure,
    argument_table,
    check_one_set,
    gap_columns,
    markdown,
    regret_columns,
    select_columns,
    summarize_measure,
    write_cell,
)

SHOWN = (0.5, 0.8, 1.0)  # coverages in the table
MARGIN = 0.01  # a regret within it is as good as the specialist
# What the cells of `yardstick_cells` are, for readers of a table of them.
YARDSTICKS = (
    f"Mean [95 % bootstrap interval]. A subset is counted where the lower end of its regret's interval is above "
    f"{MARGIN:.3f}, a corruption (shuffling left out) where the upper end of its gap's interval is below zero; with "
    "fewer than 5 folds or seeds the intervals are too narrow to count on."
)


def yardstick_table(frame: pd.DataFrame, score: str = "weighted_f1") -> str:
    """Write one line per configuration: how many of its runs have a regret, and `yardstick_cells`.

    Args:
        frame: rows of runs of one data set.
        score: the metric.

    Returns:
        A Markdown table; without gaps in the file, or without interval, their cells are dashes.

    Raises:
        ValueError: if the file has several data sets.
    """
    check_one_set(frame)
    regret = Measure("", regret_columns(frame, score), "mean")
    lines = [
        [str(config), str(summarize_measure(runs, regret).runs), *yardstick_cells(runs, score)]
        for config, runs in frame.groupby("config", sort=False)
    ]
    heads = ["mean regret", "worst subset regret", f"subsets with regret > {MARGIN:.3f}"]
    return markdown(["config", "runs", *heads, "mean gap", "worst gap", "corruptions with gap < 0"], lines)


def yardstick_cells(runs: pd.DataFrame, score: str) -> list[str]:
    """Write mean and worst regret and the subsets lost, then mean and worst gap and the gaps below zero.

    A subset counts as lost where the whole bootstrap interval of its regret is above `MARGIN`, a gap as below zero
    where its whole interval is. What the runs do not have is a dash.
    """
    regret, gap = regret_columns(runs, score), gap_columns(runs, score)
    return [
        _cell(runs, regret, "mean"),
        _cell(runs, regret, "highest"),
        _count(runs, regret, lambda one: one.low > MARGIN),
        _cell(runs, gap, "mean"),
        _cell(runs, gap, "lowest"),
        _count(runs, gap, lambda one: one.high < 0),
    ]


def _cell(runs: pd.DataFrame, columns: tuple[str, ...], how: Reduce) -> str:
    measure = Measure("", columns, how)
    return write_cell(summarize_measure(runs, measure), measure, spread=False)


def _count(runs: pd.DataFrame, columns: Sequence[str], lost: Callable[[Summary], bool]) -> str:
    summaries = [summarize_measure(runs, Measure("", (column,), "mean")) for column in columns]
    known = [summary for summary in summaries if not math.isnan(summary.low)]
    return f"{sum(map(lost, known))} of {len(known)}" if known else NOTHING


def auroc_sources(frame: pd.DataFrame) -> dict[str, str]:
    """Say for each configuration what its spoilt rows are told by: "std", or "weight" where it has no std.

    Example:
        >>> auroc_sources(pd.DataFrame({"config": ["a"], "auroc[audio:zeros].weight": [0.9]}))
        {'a': 'weight'}
    """
    columns = select_columns(frame, "auroc", "std")
    return {
        str(config): "std" if runs[columns].notna().any(axis=None) else "weight"
        for config, runs in frame.groupby("config", sort=False)
    }


def auroc_table(frame: pd.DataFrame) -> str:
    """Write one line per corruption and one column per configuration: how well spoilt rows are told from clean ones.

    Args:
        frame: rows of runs of one data set.

    Returns:
        A Markdown table of mean [interval] of the area under the ROC curve of `auroc_sources`, whose "weight" is
        named in the head where others have a std.

    Raises:
        ValueError: if the file has several data sets.
    """
    sources = auroc_sources(frame)
    mixed = len(set(sources.values())) > 1
    heads = {
        config: f"{config} (weight)" if mixed and source == "weight" else config for config, source in sources.items()
    }
    return argument_table(frame, "auroc", sources, heads=heads, spread=False)


def calibration_measures(frame: pd.DataFrame) -> list[Measure]:
    """List the measures of confidence for `summary_table`; only what the file has."""
    means = {
        f"{name.upper()} (lower is better)": Column("calibration", "mean", name) for name in ("ece", "nll", "aurc")
    }
    picked = {f"accuracy at coverage {c:.1f}": Column("selective", f"{c:.1f}", "accuracy") for c in SHOWN}
    columns = means | picked
    return [Measure(title, (str(c),), "mean") for title, c in columns.items() if str(c) in frame.columns]
