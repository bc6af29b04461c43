"""One configuration on several data sets: `python -m benchmarks.robustness.overview RUNS.csv ... --config NAME`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from benchmarks.robustness.rows import Column, parse_corruption, read_rows, write_atomically
from benchmarks.robustness.tables import (
    NOTHING,
    Measure,
    compare_measure,
    gap_columns,
    markdown,
    regret_columns,
    select_columns,
    summarize_measure,
    write_cell,
    write_difference,
)
from benchmarks.robustness.yardsticks import count_below_zero, count_lost

SINGLE = ("residual", "mahalanobis", "nearest")
DETECTED = ("noise@0dB", "noise@-5dB", "zeros")  # what a std has to notice


def differences_table(frames: Sequence[pd.DataFrame], config: str, score: str) -> str:
    """Write one line per data set and other configuration: paired differences of `config` to it."""
    lines = []
    for frame in frames:
        for other in [name for name in frame["config"].unique() if name != config]:
            cells = [
                write_difference(compare_measure(frame, config, other, measure)) if measure.columns else NOTHING
                for measure in _measures(frame, score)
            ]
            lines.append([f"{_name(frame)}, to {other}", *cells])
    return markdown(["", *(measure.title for measure in _measures(frames[0], score))], lines)


def _measures(frame: pd.DataFrame, score: str) -> list[Measure]:
    spoilt = select_columns(
        frame, "corrupt", score, lambda label: parse_corruption(label).kind not in ("clean", "shuffle")
    )
    return [
        Measure("clean", (str(Column("test" if f"test.{score}" in frame else "test1", "", score)),), "mean"),
        Measure("mean over subsets", tuple(select_columns(frame, "subset", score)), "mean"),
        Measure("mean over corruptions", tuple(spoilt), "mean"),
        Measure("ECE", ("calibration[mean].ece",), "mean"),
    ]


def standing_table(frames: Sequence[pd.DataFrame], config: str, score: str) -> str:
    """Write one line per data set: regret, gap and detection of `config`, and the best single statistic of novelty."""
    lines = []
    for frame in frames:
        runs = frame[frame["config"] == config]
        regret, gap = regret_columns(frame, score), gap_columns(frame, score)
        cells = [_cell(runs, regret, "mean"), _cell(runs, regret, "highest"), count_lost(runs, regret)]
        cells += [_cell(runs, gap, "mean"), _cell(runs, gap, "lowest"), count_below_zero(runs, gap)]
        lines.append([_name(frame), *cells])
    heads = ["mean regret", "worst regret", "subsets lost", "mean gap", "worst gap", "gaps below zero"]
    return markdown(["", *heads], lines)


def detection_table(frames: Sequence[pd.DataFrame], config: str) -> str:
    """Write one line per data set and modality: AUROC of the std, and of the best of three statistics by itself."""
    lines = []
    for frame in frames:
        runs = frame[frame["config"] == config]
        labels = [column[6:-5] for column in select_columns(frame, "auroc", "std")]
        for modality in dict.fromkeys(label.rpartition(":")[0] for label in labels):
            cells = [_pair(runs, f"{modality}:{kind}") for kind in (*DETECTED, "replace", "shuffle")]
            lines.append([f"{_name(frame)}, {modality}", *cells])
    return markdown(["std / best statistic", *DETECTED, "replace", "shuffle"], lines)


def _pair(runs: pd.DataFrame, label: str) -> str:
    """Write the mean AUROC of the std, and of the best statistic, which may speak by being high or by being low."""
    own = runs[f"auroc[{label}].std"].mean() if f"auroc[{label}].std" in runs else math.nan
    means = [runs[name].mean() for name in (f"detector[{label}].{one}" for one in SINGLE) if name in runs]
    best = max((max(mean, 1.0 - mean) for mean in means), default=math.nan)
    return " / ".join(NOTHING if math.isnan(value) else f"{value:.3f}" for value in (own, best))


def _cell(runs: pd.DataFrame, columns: Sequence[str], how: str) -> str:
    measure = Measure("", tuple(columns), how)  # type: ignore[arg-type]
    return write_cell(summarize_measure(runs, measure), measure, spread=False) if columns else NOTHING


def _name(frame: pd.DataFrame) -> str:
    return str(frame["data"].iloc[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables of all files into one; exit status 1 and one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness.overview", description=__doc__)
    parser.add_argument("csv", nargs="+", help="rows of runs, one file for each data set")
    parser.add_argument("--config", required=True, help="the configuration that the tables are about")
    parser.add_argument("--score", default="weighted_f1", help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="the Markdown file")
    given = parser.parse_args(arguments)
    try:
        frames = [read_rows(path).dropna(axis=1, how="all") for path in given.csv]
        for path, frame in zip(given.csv, frames, strict=True):
            if given.config not in set(frame["config"]):
                raise ValueError(
                    f"{path}: expected runs of {given.config!r}, got {', '.join(frame['config'].unique())}"
                )
        tables = [
            ("Beside its specialists", standing_table(frames, given.config, given.score)),
            ("Beside the other configurations", differences_table(frames, given.config, given.score)),
            ("Telling spoilt rows from clean ones", detection_table(frames, given.config)),
        ]
        text = "\n\n".join(f"### {title}\n\n{table}" for title, table in tables)
        write_atomically(given.out, text + "\n")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
