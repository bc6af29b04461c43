"""From results of runs to one CSV, one Markdown file and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.robustness.rows import parse_column, read_rows, run_row, write_atomically, write_rows
from benchmarks.robustness.tables import (
    Measure,
    compare_measure,
    difference_table,
    markdown,
    summarize_measure,
    summary_table,
    write_cell,
    write_difference,
)

from .classical import MEANING as MEANING_OF_BASELINES
from .metrics import GENERALIZED
from .plots import write_pictures
from .saliency import MEANING

Result = dict[str, Any]
FACTS = ("config", "data", "seed", "fold", "best_epoch", "epochs", "seconds")
DCL = "dcl"
SELECTED_BY = "val.macro_f1"
SCORE = "test.macro_f1"
CLASSIFICATION = {
    SELECTED_BY: "validation macro F1",
    SCORE: "test macro F1",
    "test.weighted_f1": "test weighted F1",
    "test.accuracy": "test accuracy",
    "test.auroc": "test AUROC",
}
RATIONALE = {
    "average_precision": "average precision",
    "auprc": "AUPRC",
    "auroc": "AUROC",
    "token_f1": "token F1",
    "iou_f1": "IOU F1",
    "iou_f1_spans": "IOU F1, spans",
    "comprehensiveness": "comprehensiveness",
    "sufficiency": "sufficiency (lower is better)",
}
BIAS = {"subgroup": "subgroup AUC", "bpsn": "BPSN AUC", "bnsp": "BNSP AUC"}
SPANS = {"val_f1": "validation F1", "f1": "test F1"}
READING = (
    "Mean ± standard deviation over runs [95 % bootstrap interval; of less than five runs it says next to nothing]. "
    "Differences are paired by seed and fold; an interval over at least five runs that excludes zero is set in bold. "
    "Epochs were chosen by validation macro F1, test posts are read after that."
)
RATIONALES = (
    "Toxic test posts with a human rationale (of any annotator), word by word; a word has the highest score of its "
    "tokens. Token F1 and IOU F1 are of the five highest words; IOU F1 takes each of them for a span, as the code of "
    "the HateXplain benchmark does, the next column takes neighbours together. AUPRC joins the points of the curve by "
    "straight lines, as the benchmark does, which flatters equal scores; average precision does not. "
)
FAITHFULNESS = (
    "Comprehensiveness and sufficiency: by how much the probability of the predicted class falls without these words, "
    "and with them alone. "
)
BIAS_NOTE = (
    "Toxic against normal, generalized mean (power -5) over the target groups that at least two annotators named; "
    "posts that name none of the ten groups are left out, as in the HateXplain benchmark."
)
SPANS_NOTE = "Mean F1 of characters, 1 where nothing is marked and nothing should be; thresholds chosen on validation."


def report(
    results: Sequence[Result],
    folder: Path,
    *,
    reference: str | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
) -> list[Path]:
    """Write `runs.csv` (a row per run), `summary.md` and pictures.

    Args:
        results: Results of finished runs, in the order wanted; all of one corpus.
        folder: Where to write.
        reference: The configuration compared with, or None.
        pairs: More configurations to compare, (one, other).
        notes: Lines about the data.

    Returns:
        The CSV, the tables, and the pictures.
    """
    rows = [{**{key: result.get(key) for key in FACTS}, **run_row(result["views"])} for result in results]
    write_rows(folder / "runs.csv", rows)
    frame = read_rows(folder / "runs.csv")
    known = set(frame["config"])
    reference = reference if reference in known and len(known) > 1 else None
    pairs = [(one, other) for one, other in pairs if {one, other} <= known]
    pictures = write_pictures(frame, folder, reference)
    sections = [f"# {frame['data'].iloc[0]}", READING, *_classification(frame, reference, pairs), *_details(frame)]
    sections += [f"- `{name}`: {MEANING_OF_BASELINES[name]}" for name in MEANING_OF_BASELINES if name in known]
    sections += [f"- {note}" for note in notes]
    text = "\n\n".join([*sections, *(f"![{path.stem}]({path.name})" for path in pictures)])
    write_atomically(folder / "summary.md", text + "\n")
    return [folder / "runs.csv", folder / "summary.md", *pictures]


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """List what else to compare: spans with single tokens, also of the same size, and with and without contrast.

    Example:
        >>> pairs_of(["asrm", "asrm+dcl", "token_level", "span_aware"])
        [('span_aware', 'token_level'), ('asrm+dcl', 'asrm')]
    """
    alone = ("token_level", "token_wide")
    wanted = [(f"span_aware{end}", f"{one}{end}") for end in ("", f"+{DCL}") for one in alone]
    wanted += [(name, name.removesuffix(f"+{DCL}")) for name in names if name.endswith(f"+{DCL}")]
    return [pair for pair in wanted if set(pair) <= set(names)]


def _measures(frame: pd.DataFrame, titles: dict[str, str]) -> list[Measure]:
    return [Measure(title, (column,), "mean") for column, title in titles.items() if column in frame]


def _classification(frame: pd.DataFrame, reference: str | None, pairs: Sequence[tuple[str, str]]) -> list[str]:
    measures = _measures(frame, CLASSIFICATION)
    sections = ["## Classification", summary_table(frame, measures=measures)]
    if frame["config"].nunique() > 1:
        means = frame.groupby("config", sort=False)[[SELECTED_BY, SCORE]].mean()
        best = means[SELECTED_BY].idxmax()
        sections.append(f"Best on validation: **{best}**, test macro F1 {means.loc[best, SCORE]:.3f}.")
    if reference is not None:
        sections += [f"## Differences to {reference}", difference_table(frame, reference, measures=measures)]
    if pairs:
        lines = []
        for one, other in pairs:
            compared = [compare_measure(frame, one, other, measure) for measure in measures]
            lines.append([f"{one} − {other}", str(compared[0].runs), *map(write_difference, compared)])
        sections += ["## Pairs", markdown(["pair", "pairs", *(measure.title for measure in measures)], lines)]
    return sections


def _details(frame: pd.DataFrame) -> list[str]:
    classes = _arguments(frame, "class")
    titles = {
        f"class[{name}].{metric}": f"{name} {metric if metric != 'f1' else 'F1'}"
        for name in classes
        for metric in ("precision", "recall", "f1")
    }
    sections = ["## Classes", summary_table(frame, measures=_measures(frame, titles))]
    for view, columns, title, note in (
        ("rationale", RATIONALE, "## Rationales", RATIONALES),
        ("spans", SPANS, "## Character spans", SPANS_NOTE),
    ):
        methods = _arguments(frame, view)
        if methods:
            if view == "rationale":
                measured = any(column.endswith(".comprehensiveness") for column in frame)
                note += (FAITHFULNESS if measured else "") + "Scores: "
                note += "; ".join(f"`{name}` = {MEANING[name]}" for name in methods) + "."
            sections += [title, _by_method(frame, view, methods, columns), note]
    bias = {f"bias[{GENERALIZED}].{name}": title for name, title in BIAS.items()}
    if bias.keys() & set(frame.columns):
        sections += ["## Bias by target group", summary_table(frame, measures=_measures(frame, bias)), BIAS_NOTE]
    return sections


def _arguments(frame: pd.DataFrame, view: str) -> list[str]:
    parsed = [column for column in map(parse_column, frame.columns) if column is not None]
    return list(dict.fromkeys(column.argument for column in parsed if column.view == view))


def _by_method(frame: pd.DataFrame, view: str, methods: Sequence[str], columns: dict[str, str]) -> str:
    """Write a line per configuration and kind of score, only what there is."""
    shown = {key: title for key, title in columns.items() if any(f"{view}[{m}].{key}" in frame for m in methods)}
    lines = []
    for config, runs in frame.groupby("config", sort=False):
        for method in methods:
            measures = [Measure(title, (f"{view}[{method}].{key}",), "mean") for key, title in shown.items()]
            cells = [
                write_cell(summarize_measure(runs, one), one) if one.columns[0] in runs else "–" for one in measures
            ]
            if any(cell != "–" for cell in cells):
                lines.append([f"{config}: {method}", *cells])
    return markdown(["configuration: score", *shown.values()], lines)
