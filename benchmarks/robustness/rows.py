"""One flat row per run: column names, the CSV of all runs, and the way back to a tidy frame."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

# Argument of the view (a subset, a rate, "audio:noise@0dB") -> metric or modality -> value.
View = dict[str, dict[str, float]]
Row = dict[str, str | int | float]

ID_COLUMNS = ("config", "data", "seed", "fold")
_COLUMN = re.compile(r"(?P<view>[A-Za-z]\w*)(?:\[(?P<argument>[^\[\]]+)\])?\.(?P<metric>[^\[\].]+)")


class Column(NamedTuple):
    """A column name in its parts: `view.metric` or `view[argument].metric` (argument "" without brackets)."""

    view: str
    argument: str
    metric: str

    def __str__(self) -> str:
        return f"{self.view}[{self.argument}].{self.metric}" if self.argument else f"{self.view}.{self.metric}"


class CorruptionLabel(NamedTuple):
    """The argument of a `corrupt`, `weight` or `std` column in its parts."""

    modality: str
    kind: str
    snr_db: float | None


def parse_column(name: str) -> Column | None:
    """Split a column name into view, argument and metric; None for any other column (such as `seconds`).

    Example:
        >>> parse_column("corrupt[audio:noise@0dB].accuracy")
        Column(view='corrupt', argument='audio:noise@0dB', metric='accuracy')
        >>> parse_column("seconds") is None
        True
    """
    match = _COLUMN.fullmatch(name)
    return match and Column(match["view"], match["argument"] or "", match["metric"])


def parse_corruption(argument: str) -> CorruptionLabel:
    """Split the argument of a corruption column.

    Raises:
        ValueError: if it is not `modality:kind` or `modality:kind@LEVELdB`.

    Example:
        >>> parse_corruption("audio:noise@-5dB")
        CorruptionLabel(modality='audio', kind='noise', snr_db=-5.0)
    """
    match = re.fullmatch(r"([^:]+):([^@]+)(?:@(-?[\d.]+)dB)?", argument)
    if match is None:
        raise ValueError(f"parse_corruption: expected modality:kind or modality:kind@LEVELdB, got {argument!r}")
    return CorruptionLabel(match[1], match[2], None if match[3] is None else float(match[3]))


def run_row(views: Mapping[str, View]) -> dict[str, float]:
    """Flatten the views of one run to one row.

    Example:
        >>> run_row({"test": {"": {"accuracy": 0.5}}, "subset": {"audio+text": {"accuracy": 0.25}}})
        {'test.accuracy': 0.5, 'subset[audio+text].accuracy': 0.25}
    """
    return {
        str(Column(name, argument, metric)): value
        for name, view in views.items()
        for argument, scores in view.items()
        for metric, value in scores.items()
    }


def write_rows(path: str | Path, rows: Iterable[Row] | pd.DataFrame) -> None:
    """Write one CSV line per run; the file is replaced as a whole or not at all.

    Columns: `config`, `data`, `seed`, `fold`, then all others in the order in which they first appear. Numbers keep
    six significant digits; what a run does not have stays empty.

    Raises:
        ValueError: if there is no run, a run lacks one of the first four columns, or two runs agree in all four.
    """
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame.from_records(list(rows))
    if frame.empty:
        raise ValueError(f"write_rows: expected at least one run for {path}")
    for column in ID_COLUMNS:
        if column not in frame or frame[column].isna().any():
            raise ValueError(f"write_rows: expected column {column!r} in every run of {path}")
    _check_unique(frame, f"write_rows: {path}", first_line=2)
    ordered = frame[[*ID_COLUMNS, *(column for column in frame if column not in ID_COLUMNS)]]
    write_atomically(path, ordered.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def update_rows(path: str | Path, rows: Iterable[Row]) -> pd.DataFrame:
    """Add runs to a CSV, replacing those with the same config, data, seed and fold; one writer at a time.

    Returns:
        All runs now in the file.
    """
    new = pd.DataFrame.from_records(list(rows))
    if new.empty:
        return read_rows(path)
    if Path(path).exists():
        old = read_rows(path)
        keys = pd.MultiIndex.from_frame(new[list(ID_COLUMNS)])
        kept = old[~pd.MultiIndex.from_frame(old[list(ID_COLUMNS)]).isin(keys)]
        new = pd.concat([kept.dropna(axis=1, how="all"), new], ignore_index=True)
    write_rows(path, new)
    return read_rows(path)


def read_rows(path: str | Path) -> pd.DataFrame:
    """Read the CSV of all runs.

    Returns:
        A row per run; `seed` and `fold` integer, every column of a view floating (empty = NaN), others as they are.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing or double, a value is no number, a line has another number of fields, or
            two lines are the same run. One line, naming file, line and column.
    """
    header, lines = _read_lines(path)
    text = pd.DataFrame(lines, columns=header, dtype=str)
    columns = {}
    for column in header:
        whole = column in ("seed", "fold")
        number = whole or parse_column(column) is not None
        columns[column] = _to_numbers(path, column, text[column], whole=whole) if number else text[column]
    # Built at once: a frame of a thousand columns assigned one by one is slow ever after.
    frame = pd.DataFrame(columns)
    _check_unique(frame, str(path), first_line=2)
    return frame


def _read_lines(path: str | Path) -> tuple[list[str], list[list[str]]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected a CSV file in UTF-8, got {error}") from None
    for column in ID_COLUMNS:
        if column not in header:
            raise ValueError(f"{path}: expected a column {column!r} in the header")
    for column in header:
        if header.count(column) > 1:
            raise ValueError(f"{path}: expected column {column!r} once, got {header.count(column)} times")
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header):
            raise ValueError(f"{path}: row {number}: expected {len(header)} fields as in the header, got {len(line)}")
    return header, lines


def _to_numbers(path: str | Path, column: str, text: pd.Series, *, whole: bool) -> pd.Series:
    numbers = pd.to_numeric(text, errors="coerce")
    wrong = numbers % 1 != 0 if whole else numbers.isna() & ~text.str.lower().isin(["", "nan"])
    if wrong.any():
        row, kind = int(wrong.to_numpy().argmax()), "a whole number" if whole else "a number or nothing"
        raise ValueError(f"{path}: row {row + 2}, column {column!r}: expected {kind}, got {text.iloc[row]!r}")
    return numbers.astype("int64" if whole else "float64")


def _check_unique(frame: pd.DataFrame, where: str, *, first_line: int) -> None:
    double = frame.duplicated(list(ID_COLUMNS))
    if double.any():
        row = int(double.to_numpy().argmax())
        run = ", ".join(f"{column}={frame[column].iloc[row]}" for column in ID_COLUMNS)
        raise ValueError(f"{where}: row {row + first_line}: expected every run once, got {run} again")


def write_atomically(path: str | Path, text: str | bytes) -> None:
    """Write a file beside its place, then move it there: readers see the old file or the new one, never half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(text.encode() if isinstance(text, str) else text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """Turn rows of runs into one line per run and number.

    Returns:
        Columns `config`, `data`, `seed`, `fold`, `view`, `argument`, `metric`, `value`; empty cells are left out.

    Example:
        >>> row = {"config": "a", "data": "toy", "seed": 0, "fold": 0, "missing[0.3].accuracy": 0.5}
        >>> tidy(pd.DataFrame([row]))[["view", "argument", "metric", "value"]].values.tolist()
        [['missing', '0.3', 'accuracy', 0.5]]
    """
    columns = [column for column in frame if parse_column(column)]
    long = frame.melt(list(ID_COLUMNS), columns, var_name="column", value_name="value").dropna(subset="value")
    parts = [parse_column(column) for column in long.pop("column")]
    names = pd.DataFrame(parts, columns=list(Column._fields), index=long.index)
    long[["view", "argument", "metric"]] = names
    return long[[*ID_COLUMNS, "view", "argument", "metric", "value"]].reset_index(drop=True)
