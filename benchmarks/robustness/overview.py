"""One configuration on several data sets: `python -m benchmarks.robustness.overview RUNS.csv ... --config NAME ...`.

Of several configurations each data set gets the one with the best validation score, the mean of `val.select` over its
runs; nothing of a test part is read for that.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from benchmarks.robustness.rows import Column, read_rows, write_atomically
from benchmarks.robustness.tables import (
    NOTHING,
    Measure,
    check_measures,
    check_one_set,
    compare_measure,
    corruption_columns,
    markdown,
    select_columns,
    write_difference,
)
from benchmarks.robustness.yardsticks import YARDSTICKS, yardstick_cells

SINGLE = ("residual", "mahalanobis", "energy", "nearest")
VALIDATION = "val.select"
DETECTED = ("noise@0dB", "noise@-5dB", "zeros")  # what a std has to notice
DETECTION = (
    "Telling spoilt rows from clean ones: AUROC of the std, and an upper bound (statistic and direction picked per "
    "cell on the test rows)"
)


class Chosen(NamedTuple):
    """The runs of one data set, the configuration that the tables are about, and what it is compared in."""

    frame: pd.DataFrame
    measures: list[Measure]
    config: str
    validation: dict[str, float]

    @property
    def name(self) -> str:
        return str(self.frame["data"].iloc[0])

    @property
    def runs(self) -> pd.DataFrame:
        return self.frame[self.frame["config"] == self.config]


def choose(frame: pd.DataFrame, candidates: Sequence[str], score: str) -> Chosen:
    """Choose one of the candidates by validation.

    Raises:
        ValueError: if there are several data sets or none with the score, or a candidate has no runs or, of several,
            no validation score.
    """
    check_one_set(frame)
    measures = _measures(frame, score)
    known = list(map(str, frame["config"].unique()))
    for candidate in candidates:
        if candidate not in known:
            raise ValueError(f"expected runs of {candidate!r}, got {', '.join(known)}")
    if len(candidates) == 1:
        return Chosen(frame, measures, candidates[0], {})
    if VALIDATION not in frame:
        raise ValueError(f"expected a column {VALIDATION} to choose by")
    found = {one: float(frame.loc[frame["config"] == one, VALIDATION].mean()) for one in candidates}
    return Chosen(frame, measures, max(found, key=lambda one: found[one]), found)


def differences_table(sets: Sequence[Chosen], candidates: Sequence[str]) -> str:
    """Write one line per data set and other configuration: paired differences of the chosen one to it.

    A measure that a set does not have is a dash there, and no column if no set has it.
    """
    titles, lines = dict.fromkeys(measure.title for one in sets for measure in one.measures), []
    for one in sets:
        known = {measure.title: measure for measure in one.measures}
        for other in [name for name in one.frame["config"].unique() if name not in candidates]:
            cells = [
                write_difference(compare_measure(one.frame, one.config, other, known[title]))
                if title in known
                else NOTHING
                for title in titles
            ]
            lines.append([f"{one.name}, to {other}", *cells])
    return markdown(["", *titles], lines)


def _measures(frame: pd.DataFrame, score: str) -> list[Measure]:
    clean = str(Column("test" if f"test.{score}" in frame else "test1", "", score))
    spoilt = corruption_columns(frame, "corrupt", score, shuffle=False)
    measures = [
        Measure("clean", (clean,) if clean in frame else (), "mean"),
        Measure("mean over subsets", tuple(select_columns(frame, "subset", score)), "mean"),
        Measure("mean over corruptions without shuffle", spoilt, "mean"),
    ]
    found = [measure for measure in measures if measure.columns]
    check_measures(frame, score, found)
    ece = Measure("ECE (lower is better)", (str(Column("calibration", "mean", "ece")),), "mean")
    return [*found, ece] if ece.columns[0] in frame else found


def standing_table(sets: Sequence[Chosen], score: str) -> str:
    """Write one line per data set: what was chosen, by which validation scores, and its `yardstick_cells`."""
    lines = []
    for one in sets:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in one.validation.items())
        chosen = f"{one.config} ({scores})" if scores else one.config
        lines.append([one.name, chosen, *yardstick_cells(one.runs, score)])
    heads = ["mean regret", "worst regret", "subsets lost", "mean gap", "worst gap", "gaps below zero"]
    return markdown(["", "chosen (validation)", *heads], lines)


def detection_table(sets: Sequence[Chosen]) -> str:
    """Write one line per data set and modality: AUROC of the std, and of the best of four statistics by itself.

    The statistic and its direction are picked cell by cell on the test rows: an upper bound of what one could do.
    """
    lines = []
    for one in sets:
        labels = [column[6:-5] for column in select_columns(one.frame, "auroc", "std")]
        for modality in dict.fromkeys(label.rpartition(":")[0] for label in labels):
            cells = [_pair(one.runs, f"{modality}:{kind}") for kind in (*DETECTED, "replace", "shuffle")]
            lines.append([f"{one.name}, {modality}", *cells])
    return markdown(["std / best statistic", *DETECTED, "replace", "shuffle"], lines)


def _pair(runs: pd.DataFrame, label: str) -> str:
    """Write the mean AUROC of the std, and of the statistic that is best here, be it by being high or by being low."""
    own = runs[f"auroc[{label}].std"].mean() if f"auroc[{label}].std" in runs else math.nan
    means = [runs[name].mean() for name in (f"detector[{label}].{one}" for one in SINGLE) if name in runs]
    best = max((max(mean, 1.0 - mean) for mean in means), default=math.nan)
    return " / ".join(NOTHING if math.isnan(value) else f"{value:.3f}" for value in (own, best))


def _open(path: str, candidates: Sequence[str], score: str) -> Chosen:
    try:
        return choose(read_rows(path).dropna(axis=1, how="all"), candidates, score)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables of all files into one; exit status 1 and one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness.overview", description=__doc__)
    parser.add_argument("csv", nargs="+", help="rows of runs, one file for each data set")
    parser.add_argument("--config", nargs="+", required=True, help="configurations, of which validation chooses one")
    parser.add_argument("--score", default="weighted_f1", help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="the Markdown file")
    given = parser.parse_args(arguments)
    try:
        sets = [_open(path, given.config, given.score) for path in given.csv]
        tables = [
            ("Beside its specialists", f"{standing_table(sets, given.score)}\n\n{YARDSTICKS}"),
            ("Beside the other configurations", differences_table(sets, given.config)),
            (DETECTION, detection_table(sets)),
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
