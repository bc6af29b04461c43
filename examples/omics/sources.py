"""Files with features and labels: `.npz`, `.csv` and `.h5ad`, each opened once and asked for what it holds."""

from __future__ import annotations

import csv
import gzip
import warnings
import zipfile
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from examples.pipeline.errors import DataError
from examples.pipeline.files import describe_damage

TABLES = (".csv", ".csv.gz")
SUFFIXES = (".npz", *TABLES, ".h5ad")
SHOWN = 5


class Matrix(NamedTuple):
    """Features of samples: float32 ``(N, D)``, NaN = not measured, with the names of rows and columns."""

    where: str
    ids: list[str]
    names: list[str]
    values: np.ndarray


class Column(NamedTuple):
    """One value per sample, such as its label."""

    where: str
    ids: list[str]
    values: np.ndarray


class Source(Protocol):
    """A file that is open."""

    def matrix(self, key: str, without: Collection[str], only: Collection[str] | None = None) -> Matrix:
        """Read features; columns of a table that `without` names are none, nor those that `only` does not name."""

    def column(self, key: str) -> Column:
        """Read a value per sample."""

    def keys(self) -> list[str]:
        """List what `column` can be asked for."""


def open_source(path: Path, ids: str | None = None) -> Source:
    """Open a file by the end of its name; `ids` is the array of sample ids in a `.npz`.

    Raises:
        DataError: If there is no such file, or it cannot be read.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.name.endswith(".npz"):
        return NpzSource(path, ids)
    if path.name.endswith(TABLES):
        return CsvSource(path)
    if path.name.endswith(".h5ad"):
        return AnnDataSource(path)
    raise DataError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}")


class NpzSource:
    """Arrays of NumPy: features ``(N, D)``, labels ``(N,)``; the names of features in ``ARRAY_names`` if it is there.

    Nothing is unpickled. Rows without an array of ids are named by their number.
    """

    def __init__(self, path: Path, ids: str | None) -> None:
        self.path, self.arrays = path, dict[str, np.ndarray]()
        try:
            # Opened here, as NumPy leaves a broken file open.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                self.arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, AttributeError) as error:
            raise DataError(f"{path}: expected an .npz file{describe_damage(error)}") from None
        self.ids = None if ids is None else [str(one) for one in self._array(ids, 1)]

    def keys(self) -> list[str]:
        return [name for name, array in self.arrays.items() if array.ndim == 1]

    def matrix(self, key: str, without: Collection[str] = (), only: Collection[str] | None = None) -> Matrix:
        values = self._array(key, 2)
        if values.dtype.kind not in "fiub":
            raise DataError(f"{self.path}: array {key!r}: expected numbers, got dtype {values.dtype}")
        names = [f"{key}_{index}" for index in range(values.shape[1])]
        if f"{key}_names" in self.arrays:
            names = [str(name) for name in self._array(f"{key}_names", 1)]
        if len(names) != values.shape[1]:
            expected = f"{values.shape[1]} names as {key!r} has features"
            raise DataError(f"{self.path}: array '{key}_names': expected {expected}, got {len(names)}")
        return Matrix(f"{self.path}: {key}", self._ids(key, len(values)), names, values.astype(np.float32))

    def column(self, key: str) -> Column:
        values = self._array(key, 1)
        return Column(f"{self.path}: {key}", self._ids(key, len(values)), values)

    def _array(self, key: str, dims: int) -> np.ndarray:
        if key not in self.arrays:
            raise DataError(f"{self.path}: no array {key!r}; expected one of {', '.join(self.arrays) or 'none'}")
        if self.arrays[key].ndim != dims:
            wanted = "(N, D)" if dims == 2 else "(N,)"
            raise DataError(f"{self.path}: array {key!r}: expected shape {wanted}, got {self.arrays[key].shape}")
        return self.arrays[key]

    def _ids(self, key: str, rows: int) -> list[str]:
        ids = [str(row) for row in range(rows)] if self.ids is None else self.ids
        if len(ids) != rows:
            raise DataError(f"{self.path}: array {key!r}: expected {len(ids)} rows as there are ids, got {rows}")
        return ids


class CsvSource:
    """A table of samples x features whose first column is the sample id; gzipped where its name ends in ``.gz``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with (gzip.open if path.name.endswith(".gz") else open)(path, "rt", newline="", encoding="utf-8") as file:
                header = next(csv.reader(file), [])
            self.table = pd.read_csv(path, dtype={0: str}, keep_default_na=True, encoding="utf-8", low_memory=False)
        except (OSError, EOFError, zlib.error, UnicodeDecodeError, pd.errors.ParserError, csv.Error) as error:
            raise DataError(f"{path}: expected a CSV file in UTF-8 ({' '.join(str(error).split())})") from None
        except pd.errors.EmptyDataError:
            raise DataError(f"{path}: expected a header and rows, the file is empty") from None
        if len(header) < 2 or not len(self.table):
            raise DataError(f"{path}: expected a column of sample ids, others, and rows below the header")
        if self.table.index.nlevels > 1 or not isinstance(self.table.index, pd.RangeIndex):
            # pandas takes what the header does not name for the names of the rows.
            fields, found = len(header), len(header) + self.table.index.nlevels
            why = "does the header lack the name of the column of sample ids?"
            raise DataError(f"{path}: line 2: expected {fields} fields as in the header, got {found}; {why}")
        # pandas would silently rename the second of two equal names.
        check_unique(f"{path}: header", "column", header)
        self.table.columns = pd.Index(header)
        ids = self.table.pop(header[0])
        if ids.isna().any():
            what = "expected a sample id, got nothing, or a text such as NA that stands for it"
            raise DataError(f"{path}: line {int(ids.isna().argmax()) + 2}: {what}")
        self.ids = ids.tolist()

    def keys(self) -> list[str]:
        return list(self.table.columns)

    def matrix(self, key: str, without: Collection[str] = (), only: Collection[str] | None = None) -> Matrix:
        if key:
            expected = f"expected {self.path.name} alone, or '.' where it is the root: all its columns are one branch"
            raise DataError(f"{self.path}: {expected}, got {key!r}")
        wanted = None if only is None else set(only)
        others = [name for name in self.table if name in without or (wanted is not None and name not in wanted)]
        table = self.table.drop(columns=others)
        for name in table.columns[[dtype.kind not in "fiub" for dtype in table.dtypes]]:
            numbers = pd.to_numeric(table[name], errors="coerce")
            wrong = (numbers.isna() & table[name].notna()).to_numpy()
            if wrong.any():
                row = int(wrong.argmax())
                place = f"line {row + 2} ({self.ids[row]!r}), column {name!r}"
                raise DataError(f"{self.path}: {place}: expected a number, got {table[name].iloc[row]!r}")
            table[name] = numbers
        return Matrix(str(self.path), self.ids, list(table.columns), table.to_numpy(np.float32))

    def column(self, key: str) -> Column:
        if key not in self.table:
            raise DataError(f"{self.path}: no column {key!r}; expected one of {shorten(self.keys())}")
        return Column(f"{self.path}: {key}", self.ids, self.table[key].to_numpy())


class AnnDataSource:
    """An AnnData file: ``X``, ``layers/NAME`` or ``obsm/NAME`` are features, columns of ``obs`` values per sample."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what it says of pandas and of old files is not about the data
                import anndata

                self.data: Any = anndata.read_h5ad(path)
        except ImportError:
            raise DataError(f"{path}: reading .h5ad needs the package anndata (pip install anndata)") from None
        except Exception as error:  # whatever anndata and h5py meet in a broken file
            raise DataError(f"{path}: expected an .h5ad file ({' '.join(str(error).split())[:120]})") from None
        self.ids = [str(name) for name in self.data.obs_names]

    def keys(self) -> list[str]:
        return [str(name) for name in self.data.obs.columns]

    def matrix(self, key: str, without: Collection[str] = (), only: Collection[str] | None = None) -> Matrix:
        kind, _, name = key.partition("/")
        names = [str(one) for one in self.data.var_names]
        if key in ("", "X"):
            values = self.data.X
        elif kind == "layers" and name in self.data.layers:
            values = self.data.layers[name]
        elif kind == "obsm" and name in self.data.obsm:
            values = self.data.obsm[name]
            columns = getattr(values, "columns", range(values.shape[1]))
            names = [str(one) if isinstance(one, str) else f"{name}_{one}" for one in columns]
        else:
            known = ["X", *(f"layers/{one}" for one in self.data.layers), *(f"obsm/{one}" for one in self.data.obsm)]
            raise DataError(f"{self.path}: no features {key!r}; expected one of {', '.join(known)}")
        dense = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
        return Matrix(f"{self.path}: {key or 'X'}", self.ids, names, dense.astype(np.float32))

    def column(self, key: str) -> Column:
        if key not in self.data.obs:
            raise DataError(f"{self.path}: no obs column {key!r}; expected one of {shorten(self.keys())}")
        return Column(f"{self.path}: {key}", self.ids, self.data.obs[key].astype(object).to_numpy())


def check_unique(where: str, what: str, names: Sequence[str]) -> None:
    """Raise if a name is there twice, listing the first few that are."""
    if len(set(names)) < len(names):
        counts = pd.Series(list(names)).value_counts(sort=False)
        double = [str(name) for name, count in counts.items() if count > 1]
        raise DataError(f"{where}: expected every {what} once, got twice or more: {shorten(double)}")


def shorten(names: Sequence[object]) -> str:
    """List the first few names and say how many more there are.

    Example:
        >>> shorten(["a", "b", "c", "d", "e", "f", "g"])
        'a, b, c, d, e and 2 more'
    """
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more
