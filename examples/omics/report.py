"""From results of runs to one CSV, one Markdown file and pictures; published figures stand beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from benchmarks.robustness.rows import View, read_rows, run_row, write_atomically, write_rows
from benchmarks.robustness.tables import (
    Measure,
    compare_measure,
    markdown,
    select_columns,
    summarize_measure,
    summary_table,
    write_cell,
    write_difference,
)

from .classical import MEANING
from .plots import argument_of, write_pictures

Result = dict[str, Any]
PUBLISHED = Path(__file__).parent / "published.yaml"
MARKS = ("checked", "recalled")
FACTS = ("config", "data", "seed", "fold", "best_epoch", "epochs", "fit", "chosen", "seconds")
NOTHING = "–"
SELECTED_BY = "val.balanced_accuracy"
SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "f1": "F1 of the second class",
    "auroc": "AUROC",
    "nll": "NLL (lower is better)",
    "ari": "ARI",
    "nmi": "NMI",
    "ari_kmeans": "ARI of k-means",
}
FIT = {
    "fit.train_loss": "training loss",
    "fit.val_loss": "validation loss",
    "fit.train_accuracy": "training accuracy",
    "fit.val_accuracy": "validation accuracy",
}
REJECTION = {
    "rejection.coverage": "coverage",
    "rejection.accuracy": "accuracy of the accepted",
    "rejection.rejected_unknown": "rejected of unknown classes",
}
OPEN = {
    "residual": "residual",
    "softmax": "maximum softmax probability",
    "difference": "residual minus softmax, run by run",
}
READING = (
    "Mean ± standard deviation over runs [95 % bootstrap interval]. Epochs and settings were chosen on validation rows "
    "(balanced accuracy unless a configuration says otherwise, NLL for the baselines); test rows are read after that. "
    "Intervals are over runs: the chance of which rows are tested is not in them. Lines marked published are figures "
    "of others, on their own splits: [checked] ones were read again in the source, [recalled] ones are quoted from "
    "memory."
)
PAIRED = (
    "Paired by seed and fold; an interval over at least five runs that excludes zero is set in bold. Each cell is a "
    "comparison of its own: one in twenty is bold by chance."
)
WITHOUT = "Balanced accuracy on test rows where one branch is hidden from a model that was trained with all."
OPEN_NOTE = (
    "AUROC of telling test rows of a class that was left out of training from those of the others: by the residual to "
    "the nearest class subspace, and by 1 - the maximum softmax probability. Mean over the classes left out."
)
REJECTION_NOTE = (
    "Rows whose residual to the nearest class is above a threshold are rejected; it was fitted on validation rows, to "
    "accept a given share of the rightly classified."
)
FIT_NOTE = "Cross entropy and balanced accuracy at the best epoch, without dropout; how many runs got which verdict."


class Published(NamedTuple):
    """A line of the published file."""

    method: str
    mark: str
    source: str
    scores: dict[str, str]


def report(
    results: Sequence[Result],
    folder: Path,
    *,
    reference: str | None = None,
    notes: Sequence[str] = (),
    published: bool = True,
) -> list[Path]:
    """Write `runs.csv` (a row per run), `summary.md` and pictures.

    Args:
        results: Results of finished runs, in the order wanted.
        folder: Where to write.
        reference: The configuration compared with, if it is among them.
        notes: More lines at the end.
        published: Whether published figures are of the same data.

    Returns:
        The CSV, the tables, and the pictures.
    """
    rows = [{**{key: result.get(key) for key in FACTS}, **columns_of(result["views"])} for result in results]
    write_rows(folder / "runs.csv", rows)
    frame = read_rows(folder / "runs.csv")
    sections, pictures = [READING], []
    for name, runs in frame.groupby("data", sort=False):
        runs = runs.dropna(axis=1, how="all")
        own = reference if reference in set(runs["config"]) and runs["config"].nunique() > 1 else None
        lines = read_published(PUBLISHED, str(name)) if published else []
        drawn = write_pictures(runs, folder, own, f"{name}_" if frame["data"].nunique() > 1 else "")
        sections += [f"# {name}", *tables(runs, own, lines), *(f"![{path.stem}]({path.name})" for path in drawn)]
        pictures += drawn
    sections += [f"- {note}" for note in notes]
    write_atomically(folder / "summary.md", "\n\n".join(sections) + "\n")
    return [folder / "runs.csv", folder / "summary.md", *pictures]


def columns_of(views: Mapping[str, View]) -> dict[str, float]:
    """Flatten the views of a run, with the difference of the scores of unknown classes: they are of the same rows."""
    views = {name: {key: dict(scores) for key, scores in view.items()} for name, view in views.items()}
    for scores in views.get("open", {}).values():
        if {"residual", "softmax"} <= set(scores):
            scores["difference"] = scores["residual"] - scores["softmax"]
    return run_row(views)


def tables(frame: pd.DataFrame, reference: str | None, published: Sequence[Published]) -> list[str]:
    """Write all tables of one data set for which there are columns."""
    sections = ["## Scores on test rows", score_table(frame, published), *sources(published)]
    if reference is not None:
        sections += [f"## Differences to {reference}", PAIRED, differences(frame, reference)]
    sections += _section(frame, "## Without a branch", WITHOUT, _by_argument(frame, "without", "balanced_accuracy"))
    sections += _section(frame, "## Unknown classes", OPEN_NOTE, _open(frame))
    sections += _classes_left_out(frame)
    sections += _section(frame, "## Rejection", REJECTION_NOTE, _measures(frame, REJECTION))
    if "fit" in frame and "fit.train_loss" in frame:
        sections += ["## Fit", FIT_NOTE, fit_table(frame)]
    known = [name for name in MEANING if name in set(frame["config"])]
    return sections + (["\n".join(f"- `{name}`: {MEANING[name]}" for name in known)] if known else [])


def score_table(frame: pd.DataFrame, published: Sequence[Published] = ()) -> str:
    """Write a line per configuration, one for the best by validation, one per published method."""
    wanted = {name: title for name, title in SCORES.items() if f"test.{name}" in frame}
    if not any("nmi" in one.scores for one in published):
        wanted.pop("nmi", None)  # ARI says nearly the same; it is here for those who published the other
    measures = [Measure(title, (f"test.{name}",), "mean") for name, title in wanted.items()]
    validation = [Measure("validation", (SELECTED_BY,), "mean")] if SELECTED_BY in frame else []
    lines = {}
    for config, runs in frame.groupby("config", sort=False):
        cells = [write_cell(summarize_measure(runs, one), one) for one in [*validation, *measures]]
        lines[str(config)] = [str(len(runs)), *cells]
    written = [[config, *cells] for config, cells in lines.items()]
    best = best_by_validation(frame)
    if best is not None:
        written.append([f"**best by validation: {best}**", *lines[best]])
    blank = [NOTHING] * (1 + len(validation))
    for one in published:
        cells = [one.scores.get(name, NOTHING) for name in wanted]
        written.append([f"published: {one.method} [{one.mark}]", *blank, *cells])
    head = ["config", "runs", *(f"balanced accuracy on {one.title}" for one in validation), *wanted.values()]
    return markdown(head, written)


def best_by_validation(frame: pd.DataFrame) -> str | None:
    """Name the configuration of the highest mean validation score, of equal ones that of the lowest NLL there.

    None where there is nothing to choose.
    """
    if SELECTED_BY not in frame or frame["config"].nunique() < 2:
        return None
    means = frame.groupby("config", sort=False)[[SELECTED_BY, "val.nll"]].mean()
    equal = means[means[SELECTED_BY] >= means[SELECTED_BY].max() - 1e-6]
    return str(equal["val.nll"].idxmin())


def sources(published: Sequence[Published]) -> list[str]:
    """Write a line per source with its methods."""
    methods: dict[str, list[str]] = {}
    for one in published:
        methods.setdefault(one.source, []).append(one.method)
    return ["\n".join(f"- {', '.join(names)}: {source}" for source, names in methods.items())] if methods else []


def differences(frame: pd.DataFrame, reference: str) -> str:
    """Write a line per configuration: paired differences to the reference."""
    measures = _measures(frame, {f"test.{name}": title for name, title in SCORES.items() if name != "nmi"})
    lines = []
    for config in frame["config"].unique():
        if config != reference:
            compared = [compare_measure(frame, config, reference, one) for one in measures]
            lines.append([config, str(max(one.runs for one in compared)), *map(write_difference, compared)])
    return markdown(["config", "pairs", *(one.title for one in measures)], lines)


def fit_table(frame: pd.DataFrame) -> str:
    """Write losses and accuracies at the best epoch, and the verdicts, of what was trained in epochs."""
    trained = frame[frame["fit.train_loss"].notna()]
    measures = _measures(trained, FIT)
    lines = []
    for config, runs in trained.groupby("config", sort=False):
        counts = runs["fit"].value_counts(sort=False).to_dict()
        said = ", ".join(f"{kind} {count}" for kind, count in counts.items())
        lines.append([str(config), *(write_cell(summarize_measure(runs, one), one) for one in measures), said])
    return markdown(["config", *(one.title for one in measures), "verdicts"], lines)


def _measures(frame: pd.DataFrame, titles: dict[str, str]) -> list[Measure]:
    return [Measure(title, (column,), "mean") for column, title in titles.items() if column in frame]


def _by_argument(frame: pd.DataFrame, view: str, metric: str) -> list[Measure]:
    columns = select_columns(frame, view, metric)
    return [Measure(argument_of(column), (column,), "mean") for column in columns]


def _open(frame: pd.DataFrame) -> list[Measure]:
    return _measures(frame, {f"open[mean].{name}": title for name, title in OPEN.items()}) or _measures(
        frame, {f"open[unknown].{name}": title for name, title in OPEN.items()}
    )


def _classes_left_out(frame: pd.DataFrame) -> list[str]:
    """Write a line per configuration and class that was left out."""
    names = [argument_of(column) for column in select_columns(frame, "open", "residual")]
    names = [name for name in names if name not in ("mean", "unknown")]
    titles = {**OPEN, "rejected": "rejected"}
    lines = []
    for config, runs in frame.groupby("config", sort=False) if names else ():
        for name in names:
            measures = [Measure(title, (f"open[{name}].{key}",), "mean") for key, title in titles.items()]
            there = [one for one in measures if one.columns[0] in runs and runs[one.columns[0]].notna().any()]
            if there:
                cells = [write_cell(summarize_measure(runs, m), m) if m in there else NOTHING for m in measures]
                lines.append([f"{config}: without {name}", *cells])
    return [markdown(["config: class", *titles.values()], lines)] if lines else []


def _section(frame: pd.DataFrame, title: str, note: str, measures: list[Measure]) -> list[str]:
    """Write a section of what some configuration has; the others have no line in it."""
    if not measures:
        return []
    some = frame[frame[[one.columns[0] for one in measures]].notna().any(axis=1)]
    return [title, note, summary_table(some, measures=measures)]


def read_published(path: Path, data: str) -> list[Published]:
    """Read what others published on a data set.

    Raises:
        ValueError: naming the method with a mark, a source or a score that is not one.
    """
    found = []
    for entry in (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get(data, []):
        where = f"{path}: {data}: {entry.get('method', 'a method without a name')}"
        if entry.get("mark") not in MARKS:
            raise ValueError(f"{where}: mark: expected one of {', '.join(MARKS)}, got {entry.get('mark')!r}")
        if not entry.get("source"):
            raise ValueError(f"{where}: expected a source")
        scores = entry.get("scores", {})
        for name in scores:
            if name not in SCORES:
                raise ValueError(f"{where}: scores: expected some of {', '.join(SCORES)}, got {name!r}")
        written = {name: f"{value:.3f}" if isinstance(value, float) else str(value) for name, value in scores.items()}
        found.append(Published(entry["method"], entry["mark"], entry["source"], written))
    return found
