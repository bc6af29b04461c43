"""Markdown tables of a CSV of runs: one line per configuration, and differences against a reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import pandas as pd

from benchmarks.robustness.metrics import LOWER_IS_BETTER
from benchmarks.robustness.rows import Column, parse_column, parse_corruption
from benchmarks.robustness.statistics import Reduce, Summary, clusters_of, compare, pair_runs, summarize

NOTHING = "–"
LINES_OF = {"missing": "missing rate", "corrupt": "corruption"}  # what the lines of a view's table are; else subsets
MIN_CLUSTERS = 5  # with fewer the interval covers too little: see `statistics.interval`


class Measure(NamedTuple):
    """One column of a table: which columns of the CSV it reads and how it reduces them."""

    title: str
    columns: tuple[str, ...]
    how: Reduce


def select_columns(frame: pd.DataFrame, view: str, metric: str, keep: Callable[[str], bool] = bool) -> list[str]:
    """List the columns `view[argument].metric` whose argument passes `keep`, in the order of the file."""
    parsed = [column for column in map(parse_column, frame.columns) if column is not None]
    return [str(c) for c in parsed if c.view == view and c.metric == metric and keep(c.argument)]


def standard_measures(frame: pd.DataFrame, score: str = "weighted_f1", clean: str = "test") -> list[Measure]:
    """List the measures of the summary: clean, subsets, missing rates, corruption, regret; only what the file has.

    Args:
        frame: rows of runs (`read_rows`).
        score: the metric.
        clean: name of the clean view.

    Returns:
        The measures with at least one column.
    """
    worst: Reduce = "highest" if score in LOWER_IS_BETTER else "lowest"
    subsets = select_columns(frame, "subset", score)
    spoilt = select_columns(frame, "corrupt", score, lambda label: parse_corruption(label).kind != "clean")
    regret = select_columns(frame, "regret", score, lambda label: label not in ("mean", "worst"))
    measures = [
        Measure("clean", (str(Column(clean, "", score)),), "mean"),
        Measure("mean over subsets", tuple(subsets), "mean"),
        Measure("worst subset", tuple(subsets), worst),
        Measure("mean over missing rates", (str(Column("missing", "mean", score)),), "mean"),
        Measure("mean over corruptions", tuple(spoilt), "mean"),
        Measure("worst corruption", tuple(spoilt), worst),
        Measure("mean regret", tuple(regret), "mean"),
        Measure("worst regret", tuple(regret), "highest"),
    ]
    return [measure for measure in measures if measure.columns and set(measure.columns) <= set(frame.columns)]


def summary_table(
    frame: pd.DataFrame, score: str = "weighted_f1", clean: str = "test", measures: list[Measure] | None = None
) -> str:
    """Write one line per configuration: mean ± standard deviation over runs [bootstrap interval of the mean].

    Args:
        frame: rows of runs of one data set.
        score: the metric.
        clean: name of the clean view.
        measures: the columns; None = `standard_measures`.

    Returns:
        A Markdown table; the worst subset and corruption are named.

    Raises:
        ValueError: if the file has several data sets or no column with this metric.
    """
    measures = _checked(frame, score, clean, measures)
    lines = []
    for config, runs in frame.groupby("config", sort=False):
        summaries = [summarize_measure(runs, measure) for measure in measures]
        cells = [_cell(summary, measure) for summary, measure in zip(summaries, measures, strict=True)]
        lines.append([str(config), str(len(runs)), *cells])
    return markdown(["config", "runs", *(measure.title for measure in measures)], lines)


def summarize_measure(runs: pd.DataFrame, measure: Measure, *, level: float = 0.95) -> Summary:
    """Summarise one measure over the runs of one configuration."""
    return summarize(runs[list(measure.columns)].to_numpy(float), clusters_of(runs), how=measure.how, level=level)


def difference_table(
    frame: pd.DataFrame,
    reference: str,
    score: str = "weighted_f1",
    clean: str = "test",
    measures: list[Measure] | None = None,
) -> str:
    """Write one line per configuration: mean paired difference to the reference [bootstrap interval].

    Runs are paired by seed and fold. An interval of at least 5 clusters that excludes zero is set in bold.

    Args:
        frame: rows of runs of one data set.
        reference: the configuration compared with.
        score: the metric.
        clean: name of the clean view.
        measures: the columns; None = `standard_measures`.

    Returns:
        A Markdown table without the reference's own line.

    Raises:
        ValueError: as `summary_table`, or if `reference` is unknown or shares no run with a configuration.
    """
    measures = _checked(frame, score, clean, measures)
    lines = []
    for config in frame["config"].unique():
        compared = [compare_measure(frame, config, reference, measure) for measure in measures]
        if config != reference:
            pairs = max(summary.runs for summary in compared)
            lines.append([str(config), str(pairs), *map(_difference_cell, compared)])
    return markdown(["config", "pairs", *(measure.title for measure in measures)], lines)


def compare_measure(
    frame: pd.DataFrame, config: str, reference: str, measure: Measure, *, level: float = 0.95
) -> Summary:
    """Summarise the paired difference of one measure, `config` minus `reference`."""
    values, others, clusters = pair_runs(frame, config, reference, measure.columns)
    return compare(values, others, clusters, how=measure.how, level=level)


def view_table(frame: pd.DataFrame, score: str = "weighted_f1", view: str = "subset") -> str:
    """Write one line per subset, missing rate or corruption of a view and one column per configuration.

    Args:
        frame: rows of runs of one data set.
        score: the metric.
        view: "subset", "specialist", "regret", "missing" or "corrupt".

    Returns:
        A Markdown table of mean ± standard deviation [interval], without the view's own mean and worst.
    """
    _check_one_set(frame)
    columns = select_columns(frame, view, score, lambda label: label not in ("mean", "worst"))
    configs = list(frame["config"].unique())
    lines = []
    for column in columns:
        measure = Measure(column, (column,), "mean")
        cells = [_cell(summarize_measure(frame[frame["config"] == config], measure), measure) for config in configs]
        lines.append([column.partition("[")[2].partition("]")[0], *cells])
    return markdown([LINES_OF.get(view, "subset"), *map(str, configs)], lines)


def markdown(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Write a Markdown table; the first column is text, the others figures.

    Example:
        >>> print(markdown(["config", "clean"], [["baseline", "0.5"]]))
        | config | clean |
        |:--|--:|
        | baseline | 0.5 |
    """
    header = list(header)
    rows = [header, *map(list, lines)]
    texts = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([texts[0], "|:--|" + "--:|" * (len(header) - 1), *texts[1:]])


def _checked(frame: pd.DataFrame, score: str, clean: str, measures: list[Measure] | None) -> list[Measure]:
    _check_one_set(frame)
    measures = standard_measures(frame, score, clean) if measures is None else measures
    if not measures:
        found = sorted({column.metric for column in map(parse_column, frame.columns) if column})
        raise ValueError(f"summary_table: expected a score among {', '.join(found)}, got {score!r}")
    return measures


def _check_one_set(frame: pd.DataFrame) -> None:
    sets = list(map(str, frame["data"].unique()))
    if len(sets) != 1:
        raise ValueError(f"summary_table: expected runs of one data set, got {', '.join(sets) or 'no run'}")


def _cell(summary: Summary, measure: Measure) -> str:
    if math.isnan(summary.mean):
        return NOTHING
    spread = "" if math.isnan(summary.sd) else f" ± {summary.sd:.3f}"
    name = "" if summary.column is None else f" ({measure.columns[summary.column].partition('[')[2].partition(']')[0]})"
    return f"{summary.mean:.3f}{spread}{_interval(summary, '.3f')}{name}"


def _difference_cell(summary: Summary) -> str:
    if math.isnan(summary.mean):
        return NOTHING
    cell = f"{summary.mean:+.3f}{_interval(summary, '+.3f')}"
    excludes_zero = summary.low > 0 or summary.high < 0
    return f"**{cell}**" if excludes_zero and summary.clusters >= MIN_CLUSTERS else cell


def _interval(summary: Summary, form: str) -> str:
    return "" if math.isnan(summary.low) else f" [{summary.low:{form}}, {summary.high:{form}}]"
