"""Tables of what a robust model has to stand up to: specialists, knowing a spoilt modality, knowing its own errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd

from benchmarks.robustness.rows import Column
from benchmarks.robustness.statistics import Summary
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


def yardstick_table(frame: pd.DataFrame, score: str = "weighted_f1") -> str:
    """Write one line per configuration: how it stands beside the specialists.

    A subset counts as lost where the whole bootstrap interval of its regret is above `MARGIN`, a corruption where the
    whole interval of its gap is below zero.

    Args:
        frame: rows of runs of one data set.
        score: the metric.

    Returns:
        A Markdown table; without gaps in the file, or without interval, their cells are dashes.

    Raises:
        ValueError: if the file has several data sets.
    """
    check_one_set(frame)
    regret, gap = regret_columns(frame, score), gap_columns(frame, score)
    columns: dict[str, Callable[[pd.DataFrame], str]] = {
        "mean regret": lambda runs: _summary(runs, Measure("", regret, "mean")),
        "worst subset regret": lambda runs: _summary(runs, Measure("", regret, "highest")),
        f"subsets with regret > {MARGIN:.3f}": lambda runs: count_lost(runs, regret),
        "mean gap": lambda runs: _summary(runs, Measure("", gap, "mean")),
        "worst gap": lambda runs: _summary(runs, Measure("", gap, "lowest")),
        "corruptions with gap < 0": lambda runs: count_below_zero(runs, gap),
    }
    lines = [
        [str(config), str(len(runs)), *(write(runs) for write in columns.values())]
        for config, runs in frame.groupby("config", sort=False)
    ]
    return markdown(["config", "runs", *columns], lines)


def _summary(runs: pd.DataFrame, measure: Measure) -> str:
    return write_cell(summarize_measure(runs, measure), measure, spread=False) if measure.columns else NOTHING


def count_lost(runs: pd.DataFrame, regret: Sequence[str]) -> str:
    """Say how many regrets lie above `MARGIN` with their whole interval."""
    return _count(runs, regret, lambda one: one.low > MARGIN)


def count_below_zero(runs: pd.DataFrame, gap: Sequence[str]) -> str:
    """Say how many gaps lie below zero with their whole interval."""
    return _count(runs, gap, lambda one: one.high < 0)


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
