"""The report of a CSV of runs: one Markdown file with tables, and its pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from benchmarks.robustness.calibration_plots import plot_reliability, plot_selective
from benchmarks.robustness.drawing import save_figure
from benchmarks.robustness.metrics import LOWER_IS_BETTER
from benchmarks.robustness.plots import plot_corruption, plot_missing, plot_subsets
from benchmarks.robustness.rows import parse_column, write_atomically
from benchmarks.robustness.tables import difference_table, regret_columns, select_columns, summary_table, view_table
from benchmarks.robustness.yardsticks import (
    YARDSTICKS,
    auroc_sources,
    auroc_table,
    calibration_measures,
    yardstick_table,
)

PICTURES = ("missing_rate", "subsets", "regret", "corruption", "weights", "reliability", "selective")
NOTE = (
    "Mean over runs ± standard deviation over runs [95 % bootstrap interval of the mean; folds are resampled whole "
    "where there are several, seeds otherwise]. Worst = the subset or corruption with the worst mean, named in "
    "brackets. Regret = specialist minus model, negative = better than the specialist. Gap = model "
    "with one modality spoilt, unmarked, minus the specialist that never sees it, positive = better than the "
    "specialist; shuffled rows do not count, as nothing in them is wrong. ECE = expected calibration error, mean over "
    "subsets, lower is better. The intervals are about "
    "training (seeds) or people (folds); where all runs share one test set, its sampling error comes on top."
)
PAIRED = (
    "Mean paired difference to `{reference}` on the same seeds and folds [95 % bootstrap interval]; bold = the "
    "interval, of at least 5 folds or seeds, excludes zero. Each cell is a comparison of its own: one in twenty is "
    "bold by chance."
)
VIEW_TABLES = {
    "subset": ("Each subset of the modalities", ""),
    "missing": ("Missing rates", "Each modality is missing with this probability; every sample keeps at least one."),
    "corrupt": (
        "Corruptions",
        "One modality is spoilt and the model is not told. Only samples that have it are scored; `clean` is the same "
        "samples unspoilt, levels of noise are signal-to-noise ratios.",
    ),
    "regret": ("Regret to specialists", ""),
    "gap": (
        "Gap to the specialist that never sees the modality",
        "Score of the model with one modality spoilt and not told, minus that of the specialist of the other "
        "modalities; positive = the model is better.",
    ),
}
OTHER_ROWS = (
    "Not all samples have all modalities: the model is scored on the samples that have the spoilt modality, the "
    "specialist on those that have any other, so that part of the gap is a difference between samples."
)
DETECTION = (
    "Chance that a spoilt row has a higher {source} of the spoilt modality than the same modality of a clean row "
    "(area under the ROC curve; 1 = always, 0.5 = nothing is noticed, 0 = the spoilt ones are trusted more): mean over "
    "runs [95 % bootstrap interval]."
)
CONFIDENCE = (
    "Confidence = largest softmax probability. ECE (expected calibration error, 15 bins), NLL (negative "
    "log-likelihood, nats) and AURC (area under the risk-coverage curve) are means over the subsets; accuracy at "
    "coverage 0.5 is that on the more confident half of the samples, with what they naturally have."
)


def write_report(
    frame: pd.DataFrame,
    folder: str | Path,
    *,
    score: str = "weighted_f1",
    reference: str | None = None,
    clean: str = "test",
    notes: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write `summary.md` and the pictures of every data set in the file.

    Args:
        frame: rows of runs (`read_rows`).
        folder: where to write; made if needed.
        score: the metric.
        reference: configuration to compare with; None = no table of differences.
        clean: name of the clean view.
        notes: what the file cannot tell about the runs, as a line under the table of a view, by the name of the view;
            "" = under the summary, "yardsticks" = under the table of that name.

    Returns:
        The files written, the table first.

    Raises:
        ValueError: if the metric or the reference is not in the file.
    """
    folder, known = Path(folder), list(map(str, frame["config"].unique()))
    if reference is not None and reference not in known:
        raise ValueError(f"reference: expected one of {', '.join(known)}, got {reference!r}")
    sections, pictures = [], []
    for name, runs in frame.groupby("data", sort=False):
        runs = runs.dropna(axis=1, how="all")
        drawn = write_pictures(runs, folder, score=score, stem="" if frame["data"].nunique() == 1 else str(name))
        own = reference if reference in set(runs["config"]) else None
        tables = _tables(str(name), runs, score, own, clean, notes or {})
        sections.append("\n\n".join([*tables, *(f"![{path.stem}]({path.name})" for path in drawn)]))
        pictures += drawn
    write_atomically(folder / "summary.md", "\n\n".join(sections) + "\n")
    return [folder / "summary.md", *pictures]


def write_pictures(
    frame: pd.DataFrame, folder: str | Path, *, score: str = "weighted_f1", stem: str = ""
) -> list[Path]:
    """Write the pictures for which the runs of one data set have columns.

    Args:
        frame: rows of runs of one data set.
        folder: where to write.
        score: the metric.
        stem: put before each file name.

    Returns:
        The files written.
    """
    views = {column.view for column in filter(None, map(parse_column, frame.columns))}
    figures = {}
    if "missing" in views:
        figures["missing_rate"] = plot_missing(frame, score)
    if "subset" in views:
        figures["subsets"] = plot_subsets(frame, score)
    if "regret" in views:
        figures["regret"] = plot_subsets(frame, score, "regret")
    if "corrupt" in views:
        figures["corruption"] = plot_corruption(frame, (score,))
    if views & {"weight", "std"}:
        figures["weights"] = plot_corruption(frame, ("weight", "std"))
    if "reliability" in views:
        figures["reliability"] = plot_reliability(frame)
    if "selective" in views:
        figures["selective"] = plot_selective(frame)
    prefix = re.sub(r"\W+", "_", stem) + "_" if stem else ""
    for name in PICTURES:
        if name not in figures:  # left by an earlier report of more views: it would not belong to this table
            (Path(folder) / f"{prefix}{name}.png").unlink(missing_ok=True)
    paths = [Path(folder) / f"{prefix}{name}.png" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        save_figure(figure, path)
    return paths


def without_pictures(text: str) -> str:
    """Leave out the lines of a Markdown text that only a browser can show.

    Example:
        >>> without_pictures("| a |\\n\\n![a](a.png)\\n\\n![b](b.png)\\n\\nthe end\\n")
        '| a |\\n\\nthe end\\n'
    """
    return re.sub(r"^!\[.*\]\(.*\)\n*", "", text, flags=re.MULTILINE)


def _tables(
    name: str, runs: pd.DataFrame, score: str, reference: str | None, clean: str, notes: Mapping[str, str]
) -> list[str]:
    direction = "lower is better" if score in LOWER_IS_BETTER else "higher is better"
    parts = [f"## {name}: {score} ({direction})", NOTE, summary_table(runs, score, clean), notes.get("", "")]
    if reference is not None:
        title = f"### Difference to {reference}"
        parts += [title, PAIRED.format(reference=reference), difference_table(runs, reference, score, clean)]
    if regret_columns(runs, score):
        parts += ["### Yardsticks", YARDSTICKS, yardstick_table(runs, score), notes.get("yardsticks", "")]
    for view, (title, meaning) in VIEW_TABLES.items():
        if select_columns(runs, view, score):
            parts += [f"### {title}", meaning, view_table(runs, score, view), notes.get(view, "")]
            parts += [OTHER_ROWS] if view == "gap" and _differ_in_rows(runs) else []
    parts += _tables_of_confidence(runs, notes)
    return [part for part in parts if part]


def _differ_in_rows(runs: pd.DataFrame) -> bool:
    return bool((runs[select_columns(runs, "gap", "rows")].fillna(0) != 0).any(axis=None))


def _tables_of_confidence(runs: pd.DataFrame, notes: Mapping[str, str]) -> list[str]:
    parts, sources = [], auroc_sources(runs)
    source = "std" if "std" in sources.values() else "weight"
    if select_columns(runs, "auroc", source):
        meaning = DETECTION.format(source="std" if source == "std" else "negated fusion weight")
        if len(set(sources.values())) > 1:
            meaning += " Columns marked (weight) are models without std: there the negated fusion weight tells."
        parts += [f"### AUROC of {source}", meaning, auroc_table(runs), notes.get("auroc", "")]
    if measures := calibration_measures(runs):
        parts += ["### Calibration", CONFIDENCE, summary_table(runs, measures=measures), notes.get("calibration", "")]
    return parts
