"""Text files, CSV tables and JSON lines, plain or gzipped, with errors that name file and line."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from examples.pipeline.errors import DataError

# Half of a character outside the first 65,536 that lost its other half: no tokenizer takes it.
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Table(NamedTuple):
    """A CSV file: its column names, and the rows as (number of their first line, cells)."""

    path: Path
    header: list[str]
    rows: list[tuple[int, list[str]]]

    def where(self, line: int) -> str:
        return f"{self.path}: line {line}"

    def records(self, columns: Sequence[str], *, whole: bool = True) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield (line, column -> cell) of every row.

        Args:
            columns: Names that must be there.
            whole: Raise at a row with fewer cells than the header; otherwise it is yielded without the missing ones.
        """
        for name in columns:
            if name not in self.header:
                raise DataError(f"{self.path}: expected a column {name!r}, found {', '.join(self.header)}")
        for line, cells in self.rows:
            if len(cells) > len(self.header) or (whole and len(cells) < len(self.header)):
                expected = f"{len(self.header)} cells as in the header"
                raise DataError(f"{self.where(line)}: expected {expected}, got {len(cells)}")
            yield line, dict(zip(self.header, cells, strict=False))


def read_text(path: Path) -> str:
    """Read a UTF-8 file, gzipped where its name ends in ``.gz``; an empty one is an error."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a whole gzip file ({error})") from None
    raw = raw.removeprefix(codecs.BOM_UTF8)
    if not raw.strip():
        raise DataError(f"{path}: expected rows, the file is empty")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line, byte = raw.count(b"\n", 0, error.start) + 1, raw[error.start]
        raise DataError(f"{path}: line {line}: expected UTF-8, got the byte 0x{byte:02x}") from None


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file; only ``\\n`` ends a line, tweets hold all other kinds of breaks."""
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    return lines[:-1] if not lines[-1] else lines


def read_csv(path: Path) -> Table:
    """Read a CSV table with a header; cells stay as they are, character offsets count on it."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for cells in reader:
            if cells:
                rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}: line {line}: expected CSV ({error})") from None
    header = [cell.strip() for cell in rows.pop(0)[1]]
    if len(set(header)) < len(header):
        raise DataError(f"{path}: line 1: expected different column names, got {', '.join(header)}")
    if not rows:
        raise DataError(f"{path}: expected rows below the header, found none")
    return Table(path, header, rows)


def read_json(path: Path) -> Any:
    """Read one JSON value."""
    return _parse(read_text(path), f"{path}")


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) for every line that is not blank."""
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            value = _parse(line, f"{path}: line {number}")
            if not isinstance(value, dict):
                raise DataError(f"{path}: line {number}: expected a JSON object, got {type(value).__name__}")
            yield f"{path}: line {number}", value


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: expected JSON ({error.msg} at line {error.lineno} column {error.colno})") from None
    except RecursionError:
        raise DataError(f"{where}: expected JSON of a few levels") from None


def clean(text: str) -> str:
    """Replace lone surrogates, one for one: offsets stay right."""
    return LONE_SURROGATE.sub("\ufffd", text)
