"""From results of runs to one CSV, one Markdown file and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.robustness import LOWER_IS_BETTER, read_rows, run_row, summarize, write_rows
from benchmarks.robustness.report import without_pictures, write_report
from benchmarks.robustness.rows import write_atomically
from benchmarks.robustness.statistics import clusters_of
from benchmarks.robustness.tables import markdown

METRICS = ("weighted_f1", "macro_f1", "accuracy", "valence_mse", "combined")
FACTS = ("config", "data", "seed", "fold", "best_epoch", "epochs", "seconds")


def report(
    results: Iterable[dict[str, Any]],
    folder: Path,
    *,
    parts: Sequence[str],
    score: str,
    reference: str | None,
    notes: Mapping[str, str] | None = None,
) -> tuple[Path, list[Path]]:
    """Write `runs.csv` (a row per run), `summary.md` and pictures.

    Args:
        results: results of finished runs, in the order wanted.
        folder: where to write.
        parts: names of the test parts; the first has the robustness views.
        score: the metric of tables and pictures.
        reference: the configuration compared with, or None.
        notes: lines under the tables, see `write_report`.

    Returns:
        The CSV, and the table followed by the pictures.
    """
    rows = [{**{key: result.get(key) for key in FACTS}, **run_row(result["views"])} for result in results]
    write_rows(folder / "runs.csv", rows)
    frame = read_rows(folder / "runs.csv")
    if reference not in set(frame["config"]) or frame["config"].nunique() == 1:
        reference = None
    table, *pictures = write_report(frame, folder, score=score, reference=reference, clean=parts[0], notes=notes)
    sections = [table.read_text(encoding="utf-8").strip(), "## Test parts as they are", parts_table(frame, parts)]
    write_atomically(table, "\n\n".join(sections) + "\n")
    return folder / "runs.csv", [table, *pictures]


def show(table: Path) -> None:
    """Print the tables of a summary; its pictures are files."""
    print("", without_pictures(table.read_text(encoding="utf-8")), sep="\n")


def parts_table(frame: pd.DataFrame, parts: Sequence[str]) -> str:
    """Write every metric of every test part, nothing taken away: mean ± standard deviation over runs."""
    columns = [f"{part}.{metric}" for part in parts for metric in METRICS if f"{part}.{metric}" in frame]
    lines = []
    for config, runs in frame.groupby("config", sort=False):
        clusters = clusters_of(runs)
        cells = [_cell(summarize(runs[[column]].to_numpy(float), clusters)) for column in columns]
        lines.append([str(config), str(len(runs)), *cells])
    heads = [f"{column} (lower is better)" if _metric(column) in LOWER_IS_BETTER else column for column in columns]
    return markdown(["config", "runs", *heads], lines)


def _metric(column: str) -> str:
    return column.partition(".")[2]


def _cell(summary: Any) -> str:
    if math.isnan(summary.mean):
        return "–"
    return f"{summary.mean:.3f}" + ("" if math.isnan(summary.sd) else f" ± {summary.sd:.3f}")
