"""Markdown tables of a CSV of runs: one line per configuration, and differences against a reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import pandas as pd

from benchmarks.robustness.metrics import LOWER_IS_BETTER
from benchmarks.robustness.rows import Column, parse_column, parse_corruption
from benchmarks.robustness.statistics import Reduce, Summary, clusters_of, compare, pair_runs, summarize

NOTHING = "–"
# What the lines of a view's table are; else subsets.
LINES_OF = {"missing": "missing rate", **dict.fromkeys(("corrupt", "gap", "auroc"), "corruption")}
SUMMARIES = ("mean", "worst")  # what a view has besides its arguments
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


def regret_columns(frame: pd.DataFrame, score: str) -> tuple[str, ...]:
    """List the columns of regret, one per subset."""
    return tuple(select_columns(frame, "regret", score, lambda label: label not in SUMMARIES))


def corruption_columns(frame: pd.DataFrame, view: str, score: str, *, shuffle: bool) -> tuple[str, ...]:
    """List the columns of "corrupt" or "gap", one per corruption; "clean" is none, `shuffle` says if "shuffle" is."""
    kinds = ("clean",) if shuffle else ("clean", "shuffle")
    return tuple(select_columns(frame, view, score, lambda label: parse_corruption(label).kind not in kinds))


def gap_columns(frame: pd.DataFrame, score: str) -> tuple[str, ...]:
    """List the columns of gaps that count: no model can see that rows were shuffled."""
    return corruption_columns(frame, "gap", score, shuffle=False)


def standard_measures(frame: pd.DataFrame, score: str = "weighted_f1", clean: str = "test") -> list[Measure]:
    """List the measures of the summary, from the clean view to the ECE; only what the file has.

    Args:
        frame: rows of runs (`read_rows`).
        score: the metric.
        clean: name of the clean view.

    Returns:
        The measures with at least one column; none if the file does not have the metric.
    """
    worst: Reduce = "highest" if score in LOWER_IS_BETTER else "lowest"
    subsets = select_columns(frame, "subset", score)
    spoilt = corruption_columns(frame, "corrupt", score, shuffle=True)
    regret, gap = regret_columns(frame, score), gap_columns(frame, score)
    measures = [
        Measure("clean", (str(Column(clean, "", score)),), "mean"),
        Measure("mean over subsets", tuple(subsets), "mean"),
        Measure("worst subset", tuple(subsets), worst),
        Measure("mean over missing rates", (str(Column("missing", "mean", score)),), "mean"),
        Measure("mean over corruptions", spoilt, "mean"),
        Measure("worst corruption", spoilt, worst),
        Measure("mean regret", regret, "mean"),
        Measure("worst regret", regret, "highest"),
        Measure("mean gap", gap, "mean"),
        Measure("worst gap", gap, "lowest"),
    ]
    known = set(frame.columns)
    found = [measure for measure in measures if measure.columns and known.issuperset(measure.columns)]
    ece = Measure("ECE", (str(Column("calibration", "mean", "ece")),), "mean")  # beside any metric, not in its place
    return [*found, ece] if found and known.issuperset(ece.columns) else found


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
        cells = [write_cell(summary, measure) for summary, measure in zip(summaries, measures, strict=True)]
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
            lines.append([str(config), str(pairs), *map(write_difference, compared)])
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
        view: "subset", "specialist", "regret", "missing", "corrupt" or "gap".

    Returns:
        A Markdown table of mean ± standard deviation [interval], without the view's own mean and worst.
    """
    return argument_table(frame, view, dict.fromkeys(map(str, frame["config"].unique()), score))


def argument_table(
    frame: pd.DataFrame,
    view: str,
    metrics: Mapping[str, str],
    *,
    heads: Mapping[str, str] | None = None,
    spread: bool = True,
) -> str:
    """Write one line per argument of a view and one column per configuration, each with a metric of its own.

    Args:
        frame: rows of runs of one data set.
        view: the view.
        metrics: the metric by configuration.
        heads: what stands over the column of a configuration; None = its name.
        spread: write the standard deviation too.

    Returns:
        A Markdown table of mean ± standard deviation [interval], without the view's own mean and worst.
    """
    check_one_set(frame)
    wanted = set(metrics.values())
    parsed = [column for column in map(parse_column, frame.columns) if column is not None]
    found = [c.argument for c in parsed if c.view == view and c.metric in wanted and c.argument not in SUMMARIES]
    runs = {config: frame[frame["config"] == config] for config in metrics}
    lines = []
    for argument in dict.fromkeys(found):
        columns = {config: str(Column(view, argument, metric)) for config, metric in metrics.items()}
        cells = [_column_cell(runs[config], column, spread) for config, column in columns.items()]
        lines.append([argument, *cells])
    return markdown([LINES_OF.get(view, "subset"), *(metrics if heads is None else map(heads.get, metrics))], lines)


def _column_cell(runs: pd.DataFrame, column: str, spread: bool) -> str:
    measure = Measure(column, (column,), "mean")
    return write_cell(summarize_measure(runs, measure), measure, spread=spread) if column in runs else NOTHING


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
    check_one_set(frame)
    measures = standard_measures(frame, score, clean) if measures is None else measures
    check_measures(frame, score, measures)
    return measures


def check_measures(frame: pd.DataFrame, score: str, measures: list[Measure]) -> None:
    """Raise ValueError if the file has none of the measures, which is because it does not have the score."""
    if not measures:
        found = sorted({column.metric for column in map(parse_column, frame.columns) if column})
        raise ValueError(f"summary_table: expected a score among {', '.join(found)}, got {score!r}")


def check_one_set(frame: pd.DataFrame) -> None:
    """Raise ValueError unless all runs are of one data set."""
    sets = list(map(str, frame["data"].unique()))
    if len(sets) != 1:
        raise ValueError(f"summary_table: expected runs of one data set, got {', '.join(sets) or 'no run'}")


def write_cell(summary: Summary, measure: Measure, *, spread: bool = True) -> str:
    """Write mean ± standard deviation [interval] and, for a worst, its name; `spread` = False leaves out the second."""
    if math.isnan(summary.mean):
        return NOTHING
    sd = f" ± {summary.sd:.3f}" if spread and not math.isnan(summary.sd) else ""
    name = "" if summary.column is None else f" ({measure.columns[summary.column].partition('[')[2].partition(']')[0]})"
    return f"{summary.mean:.3f}{sd}{_interval(summary, '.3f')}{name}"


def write_difference(summary: Summary) -> str:
    if math.isnan(summary.mean):
        return NOTHING
    cell = f"{summary.mean:+.3f}{_interval(summary, '+.3f')}"
    excludes_zero = summary.low > 0 or summary.high < 0
    return f"**{cell}**" if excludes_zero and summary.clusters >= MIN_CLUSTERS else cell


def _interval(summary: Summary, form: str) -> str:
    return "" if math.isnan(summary.low) else f" [{summary.low:{form}}, {summary.high:{form}}]"
