"""Writing that leaves either the whole result or nothing."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import DataError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; it becomes ``path`` when the block ends well and vanishes when it does not."""
    scratch = _scratch(path)
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_table(path: Path, lines: Iterable[Sequence[object]]) -> None:
    """Write lines of cells, the first of names, as CSV."""
    with atomic_file(path) as scratch, scratch.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Like ``atomic_file`` for a folder. One that is there already is replaced at the very end."""
    scratch = _scratch(path)
    scratch.mkdir()
    try:
        yield scratch
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.rename(old)
            scratch.rename(path)
            shutil.rmtree(old)
        else:
            scratch.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def describe_damage(error: Exception) -> str:
    """Say in brackets what NumPy found wrong with a file, without its advice to unpickle it."""
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    if text.startswith("Object arrays"):
        text = "it holds pickled objects, which are never read"
    # NumPy takes whatever it does not know for a pickle, text too: that says nothing.
    return "" if "allow_pickle" in text else f" ({text})"


def _scratch(path: Path) -> Path:
    # Beside the target: a rename is atomic only inside one file system.
    if not path.name or path.name == "..":
        raise DataError(f"{path}: expected a path that ends in a name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise DataError(f"{path}: expected its parent to be a folder") from None
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
