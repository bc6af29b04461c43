"""Samples of several branches from files: matched by id, with labels and a split."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from examples.pipeline.errors import DataError

from .sources import TABLES, Column, Matrix, Source, check_unique, open_source, shorten


@dataclass(frozen=True)
class Samples:
    """What the files say, before anything is selected or scaled.

    Attributes:
        root: The file or folder.
        ids: One name per sample.
        values: Branch -> float32 ``(N, D)``; NaN = not measured; rows of absent samples are NaN.
        names: Branch -> names of its D features.
        present: Bool ``(N, M)``, True = the sample is in the file of the branch.
        label: Class name ``(N,)``, or None where none was asked for.
        split: Value of the split column ``(N,)`` as text, or None.
        fold: Fold number ``(N,)``, or None.
    """

    root: str
    ids: list[str]
    values: dict[str, np.ndarray]
    names: dict[str, list[str]]
    present: np.ndarray
    label: np.ndarray | None
    split: np.ndarray | None
    fold: np.ndarray | None


def read_samples(
    root: str | Path,
    branches: Mapping[str, str],
    *,
    label: str | None = None,
    split: str | None = None,
    fold_array: str | None = None,
    ids: str | None = None,
    only: Mapping[str, Collection[str]] | None = None,
) -> Samples:
    """Read the branches and columns of a data set.

    Where ``root`` is a file, a place is ``KEY``, or ``FILE:KEY`` for another file beside it. Where it is a folder, a
    place is ``FILE``, or ``FILE:KEY``; the place of a column may be ``COLUMN`` alone, which is looked for in the files
    of the branches. Two branches may name the same place.

    Args:
        root: A ``.npz``, ``.csv`` or ``.h5ad`` file, or a folder of them.
        branches: Branch -> place of its features.
        label: Place of the labels.
        split: Place of a column that says which part a sample is in.
        fold_array: Place of a column of fold numbers.
        ids: Array of sample ids in a ``.npz``; without, row n of all arrays is sample n.
        only: Branch -> names of the features that are asked for; other columns of a table may hold anything.

    Raises:
        DataError: One line that names the file, the column or the sample.
    """
    if not branches:
        raise DataError("data.branches: expected at least one branch, got none")
    columns = {"label": label, "split": split, "fold_array": fold_array}
    files = Files(Path(root), ids, {name: place for name, place in columns.items() if place})
    # Columns first: a name that is not there would else be taken for one of the features.
    found = {name: files.column(place, branches) if place else None for name, place in columns.items()}
    wanted = {} if only is None else files.by_place(branches, only)
    matrices = {name: files.matrix(place, wanted.get(files.locate(place))) for name, place in branches.items()}
    for matrix in {matrix.where: matrix for matrix in matrices.values()}.values():
        check_unique(matrix.where, "sample id", matrix.ids)
        check_unique(matrix.where, "feature name", matrix.names)
    order = list(dict.fromkeys(one for matrix in matrices.values() for one in matrix.ids))
    joined = {name: _join(matrix, order) for name, matrix in matrices.items()}
    return Samples(
        root=str(root),
        ids=order,
        values={name: values for name, (values, _) in joined.items()},
        names={name: matrix.names for name, matrix in matrices.items()},
        present=np.stack([there for _, there in joined.values()], axis=1),
        label=None if found["label"] is None else _texts(found["label"], order),
        split=None if found["split"] is None else _texts(found["split"], order),
        fold=None if found["fold_array"] is None else _folds(found["fold_array"], order),
    )


def pick(samples: Samples, rows: np.ndarray) -> Samples:
    """Take some of the samples, in the order of `rows`."""
    arrays = {name: getattr(samples, name) for name in ("present", "label", "split", "fold")}
    return replace(
        samples,
        ids=[samples.ids[row] for row in rows.tolist()],
        values={name: values[rows] for name, values in samples.values.items()},
        **{name: None if array is None else array[rows] for name, array in arrays.items()},
    )


class Files:
    """The files of a data set, each opened once; ``columns`` are the places that are asked for as columns."""

    def __init__(self, root: Path, ids: str | None, columns: Mapping[str, str]) -> None:
        if not root.exists():
            raise DataError(f"{root}: no such file or folder")
        self.root, self.ids, self.columns = root, ids, columns
        self.open: dict[Path, Source] = {}
        self.read: dict[tuple[Path, str], Matrix] = {}

    def matrix(self, place: str, only: Collection[str] | None = None) -> Matrix:
        path, key = self.locate(place)
        if (path, key) not in self.read:
            own, others = self._columns_of(path)
            found = self._source(path).matrix(key, own, only)
            for name in found.names if path.name.endswith(TABLES) else ():
                if name in others:
                    # Were it a feature, it might well be the label; were it none, a gene of that name would be lost.
                    where, what = others[name], "is a feature here and a column there"
                    raise DataError(f"{path}: column {name!r}: {what}, of {where}; expected different names")
            self.read[path, key] = found
        return self.read[path, key]

    def by_place(
        self, branches: Mapping[str, str], only: Mapping[str, Collection[str]]
    ) -> dict[tuple[Path, str], set[str]]:
        """Gather what the branches of the same place are asked for."""
        wanted: dict[tuple[Path, str], set[str]] = {}
        for name, place in branches.items():
            wanted.setdefault(self.locate(place), set()).update(only.get(name, ()))
        return wanted

    def _columns_of(self, path: Path) -> tuple[set[str], dict[str, str]]:
        """Name the columns of a file that are no features, and those that are asked of other files."""
        own, others = set[str](), dict[str, str]()
        for option, place in self.columns.items():
            name = place.rpartition(":")[2]
            if (self.root.is_dir() and ":" not in place) or self.locate(place)[0] == path:
                own.add(name)
            else:
                others[name] = f"data.{option} {place}"
        return own, {name: where for name, where in others.items() if name not in own}

    def column(self, place: str, branches: Mapping[str, str]) -> Column:
        if self.root.is_dir() and ":" not in place:
            for branch in branches.values():
                source = self._source(self.locate(branch)[0])
                if place in source.keys():  # noqa: SIM118 - a source is no dict
                    return source.column(place)
            files = ", ".join(dict.fromkeys(branches.values()))
            raise DataError(f"{self.root}: no column {place!r} in {files}; for another file give FILE:{place}")
        path, key = self.locate(place)
        return self._source(path).column(key)

    def locate(self, place: str) -> tuple[Path, str]:
        """Split a place into the file and what is asked of it."""
        file, colon, key = place.rpartition(":")
        if self.root.is_dir():
            return (self.root / file, key) if colon else (self.root / key, "")
        path = self.root.parent / file if colon else self.root
        # A table is one branch, whatever it is called.
        alone = not colon and key in ("", ".", self.root.name)
        return path, "" if alone else key

    def _source(self, path: Path) -> Source:
        if path not in self.open:
            self.open[path] = open_source(path, self.ids)
        return self.open[path]


def list_files(root: str | Path, places: Iterable[str]) -> list[Path]:
    """List the files that places name, in order; for columns that are looked for in those of the branches: none."""
    files = Files(Path(root), None, {})
    return sorted({path for path in (files.locate(place)[0] for place in places) if path.is_file()})


def _join(matrix: Matrix, order: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Put the rows of a matrix in the order of all samples; return them and which are there."""
    if list(matrix.ids) == list(order):
        return matrix.values, np.ones(len(order), dtype=bool)
    place = pd.Index(matrix.ids).get_indexer(pd.Index(order))
    values = matrix.values[place]
    values[place < 0] = np.nan
    return values, place >= 0


def _of_samples(column: Column, order: Sequence[str]) -> pd.Series:
    check_unique(column.where, "sample id", column.ids)
    found = pd.Series(column.values, index=column.ids, dtype=object).reindex(order)
    if found.isna().any():
        lacking = [one for one, missing in zip(order, found.isna(), strict=True) if missing]
        # The text NA is none, too: as a class of its own it would hide what is missing.
        text = "; an empty text, NA, nan and the like are none" if set(lacking) & set(column.ids) else ""
        raise DataError(f"{column.where}: expected a value for every sample, none for {shorten(lacking)}{text}")
    return found


def _texts(column: Column, order: Sequence[str]) -> np.ndarray:
    values = _of_samples(column, order)
    # 1.0, which is what a column of integers with gaps elsewhere becomes, is class 1.
    whole = [int(one) if isinstance(one, float | np.floating) and float(one).is_integer() else one for one in values]
    return np.array([str(one) for one in whole])


def _folds(column: Column, order: Sequence[str]) -> np.ndarray:
    numbers = pd.to_numeric(_of_samples(column, order), errors="coerce").to_numpy(float)
    wrong = ~(numbers >= -1) | (numbers % 1 != 0)
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(f"{column.where}: sample {order[row]!r}: expected a fold number, got {column.values[row]!r}")
    return numbers.astype(np.int64)
