"""What `evaluate` and `ablate` of the pipelines report alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.robustness.metrics import confusion_matrix
from benchmarks.robustness.report import without_pictures
from benchmarks.robustness.rows import View


def show(files: Sequence[Path]) -> None:
    """Print the tables, which are in the first Markdown file, and the names of all files."""
    table = next(path for path in files if path.suffix == ".md")
    print("", without_pictures(table.read_text(encoding="utf-8")), sep="\n")
    print(*map(str, files), sep="\n")


def class_view(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> View:
    """Give precision, recall and F1 of every class; 0 where a class is never predicted or never true."""
    confusion = confusion_matrix(labels, logits.argmax(1), len(classes))
    view: View = {}
    for code, name in enumerate(classes):
        hits, true, said = confusion[code, code], confusion[code].sum(), confusion[:, code].sum()
        shares = {"precision": hits / max(said, 1), "recall": hits / max(true, 1), "f1": 2 * hits / max(true + said, 1)}
        view[column_name(name)] = {key: float(value) for key, value in shares.items()}
    return view


def confusion_view(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> View:
    """Count the rows of every ``true > predicted``."""
    confusion = confusion_matrix(labels, logits.argmax(1), len(classes))
    return {
        f"{column_name(true)} > {column_name(said)}": {"rows": float(confusion[i, j])}
        for i, true in enumerate(classes)
        for j, said in enumerate(classes)
    }


def column_name(name: str) -> str:
    """Make the name of a class fit that of a column, which sets it in brackets."""
    return name.replace("[", "(").replace("]", ")")
