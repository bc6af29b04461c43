"""Labels: the table of a MER2023 set, and class names, numbers and scores turned into arrays."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.pipeline.errors import DataError

from .sets import NO_LABEL

PART = re.compile(r"train|val|test\w*")
PART_NAMES = "train, val, or a name that begins with test"
Where = Callable[[int], str]  # row number -> where it stands, for messages


@dataclass(frozen=True)
class LabelTable:
    """The cells of a CSV or JSON table as text, column by column."""

    path: Path
    columns: dict[str, list[str]]
    places: list[str]

    def __len__(self) -> int:
        return len(self.places)

    def where(self, row: int) -> str:
        return f"{self.path}: {self.places[row]}"

    def column(self, name: str) -> list[str]:
        if name not in self.columns:
            raise DataError(f"{self.path}: expected a column {name!r}, found {', '.join(self.columns)}")
        return self.columns[name]


def read_table(path: Path) -> LabelTable:
    """Read a CSV file with a header, or JSON: a list of objects, or an object name -> object."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected a CSV or JSON table of labels") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: expected UTF-8 text") from None
    table = _read_json(path, text) if path.suffix == ".json" else _read_csv(path, text)
    if not len(table):
        raise DataError(f"{path}: expected at least one row")
    return table


def _read_csv(path: Path, text: str) -> LabelTable:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines: list[tuple[str, list[str]]] = []
    try:
        lines.extend((f"line {reader.line_num}", [cell.strip() for cell in row]) for row in reader if row)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: expected CSV ({error})") from None
    header = lines.pop(0)[1] if lines else []
    if len(set(header)) < len(header):
        raise DataError(f"{path}: expected different column names, got {', '.join(header)}")
    for place, row in lines:
        if len(row) != len(header):
            raise DataError(f"{path}: {place}: expected {len(header)} cells as in the header, got {len(row)}")
    columns = {name: [row[i] for _, row in lines] for i, name in enumerate(header)}
    return LabelTable(path, columns, [place for place, _ in lines])


def _read_json(path: Path, text: str) -> LabelTable:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {error.lineno}: expected JSON ({error.msg})") from None
    if isinstance(data, dict):
        data = [{"name": name, **entry} if isinstance(entry, dict) else entry for name, entry in data.items()]
    if not isinstance(data, list):
        raise DataError(f"{path}: expected a list of objects, or an object name -> object")
    places = [f"entry {i + 1}" for i in range(len(data))]
    names = list(data[0]) if data and isinstance(data[0], dict) else []
    for place, entry in zip(places, data, strict=True):
        if not isinstance(entry, dict) or set(entry) != set(names):
            wanted = ", ".join(names) or "name, split, ..."
            raise DataError(f"{path}: {place}: expected an object with the keys {wanted}")
    return LabelTable(path, {name: [_cell(entry[name]) for entry in data] for name in names}, places)


def _cell(value: Any) -> str:
    return "" if value is None else str(value).strip()


def unique_names(names: Sequence[str], where: Where) -> None:
    """Raise unless every name is a plain file name and occurs once."""
    seen: set[str] = set()
    for i, name in enumerate(names):
        if not name or name in (".", "..") or "/" in name or "\\" in name:
            raise DataError(f"{where(i)}: expected a sample name without slashes, got {name!r}")
        if name in seen:
            raise DataError(f"{where(i)}: expected every sample once, got {name!r} again")
        seen.add(name)


def codes_from_names(values: Sequence[str], where: Where, classes: Sequence[str]) -> np.ndarray:
    """Turn class names into their index in ``classes``; an empty cell means no label (-1)."""
    code = {name: i for i, name in enumerate(classes)} | {"": NO_LABEL}
    for i, value in enumerate(values):
        if value not in code:
            raise DataError(f"{where(i)}: expected one of {', '.join(classes)}, got {value!r}")
    return np.array([code[value] for value in values], dtype=np.int64)


def codes_from_integers(values: np.ndarray, where: Where, classes: Sequence[str] | None = None) -> np.ndarray:
    """Check integer labels: 0 to C - 1, or -1 for none. Without ``classes`` each class must occur."""
    if values.dtype.kind not in "iub" and not np.array_equal(values, np.round(values)):
        raise DataError(f"{where(int(np.argmax(values != np.round(values))))}: expected a whole number")
    codes = values.astype(np.int64)
    size = int(codes.max(initial=-1)) + 1 if classes is None else len(classes)
    for i in np.flatnonzero((codes < NO_LABEL) | (codes >= size))[:1]:
        raise DataError(f"{where(i)}: expected a number from 0 to {size - 1} (or -1 for none), got {codes[i]}")
    empty = np.setdiff1d(np.arange(size), codes)
    if classes is None and len(empty):
        place = where(0).rsplit(":", 1)[0]
        raise DataError(f"{place}: expected every number from 0 to {size - 1}, none is {empty[0]}")
    return codes


def parse_scores(cells: Sequence[str], where: Where, none: float) -> np.ndarray:
    """Parse numbers; an empty cell and the value ``none`` mean that there is no score (NaN)."""
    scores = np.full(len(cells), np.nan, dtype=np.float32)
    for i, cell in enumerate(cells):
        if not cell:
            continue
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{where(i)}: expected a finite number or an empty cell, got {cell!r}")
        scores[i] = math.nan if value == none else value
    return scores


def part_names(values: Sequence[Any], names: dict[str, Any] | None, where: Where) -> np.ndarray:
    """Turn the entries of a split column into part names.

    Args:
        values: One entry per row.
        names: Part -> the value (or list of values) that marks it; ``None`` if the entries are the names themselves.
        where: Row number -> place, for messages.
    """
    for name in names or ():
        if not PART.fullmatch(name):
            raise DataError(f"split_values: expected {PART_NAMES}, got {name!r}")
    part_of = {}
    for name, marks in (names or {}).items():
        part_of.update({str(mark): name for mark in (marks if isinstance(marks, (list, tuple)) else [marks])})
    parts = [part_of.get(str(value)) if names else str(value) for value in values]
    for i, part in enumerate(parts):
        if part is None or not PART.fullmatch(part):
            wanted = ", ".join(part_of) if names else PART_NAMES
            raise DataError(f"{where(i)}: expected a split of {wanted}, got {str(values[i])!r}")
    for name in names or ():
        if name not in parts:
            raise DataError(f"split_values: expected rows of {name!r}, got none of {len(parts)} with {names[name]!r}")
    return np.array(parts)
