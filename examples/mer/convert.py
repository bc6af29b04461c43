"""Turn the published pickled labels of MER2023 into a CSV table, once, without running what the file may contain.

``label-6way.npz`` holds ``train_corpus``, ``test1_corpus``, ...: each a 0-d object array around a dictionary
name -> {"emo": str, "val": float}. Such arrays are pickles, and a pickle can call anything; here it may name only
NumPy's own array, dtype and scalar types and plain builtins.
"""

from __future__ import annotations

import csv
import math
import pickle
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from examples.pipeline.errors import DataError
from examples.pipeline.files import atomic_file

from .labels import unique_names
from .layout import EMOTIONS

KEY = re.compile(r"(train|val|test\d*)_corpus")
BUILTINS = frozenset(
    ["bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "set", "str", "tuple"]
)
NUMPY = {
    "numpy": frozenset(["ndarray", "dtype"]),
    "numpy.core.multiarray": frozenset(["_reconstruct", "scalar"]),
    "numpy._core.multiarray": frozenset(["_reconstruct", "scalar"]),
    "numpy.core.numeric": frozenset(["_frombuffer"]),
    "numpy._core.numeric": frozenset(["_frombuffer"]),
}


class Refused(pickle.UnpicklingError):
    """The pickle names something it may not."""


class RestrictedUnpickler(pickle.Unpickler):
    """Reads NumPy arrays, dtypes and scalars and plain builtins; refuses every other global by its name."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__") and name in BUILTINS:
            return super().find_class("builtins", name)
        if name in NUMPY.get(module, ()):
            # NumPy 1 wrote numpy.core, NumPy 2 writes numpy._core: find it under the name of this installation.
            here = np.empty(0).__reduce__()[0].__module__.rpartition(".")[0]
            return super().find_class(re.sub(r"numpy\._?core", here, module), name)
        raise Refused(f"refused {module}.{name}: only NumPy arrays and plain builtins are read")


def convert(source: str | Path, out: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Write ``labels.csv`` (name, split, emotion, valence) from a pickled ``label-6way.npz``.

    Args:
        source: The ``.npz`` file.
        out: The CSV file; ``None`` = ``labels.csv`` beside the source.
        overwrite: Replace ``out`` if it exists.

    Returns:
        The CSV file. It is written whole or not at all.

    Raises:
        DataError: If the file, a key or an entry is not of that form, or the pickle names anything it may not.
    """
    source = Path(source)
    out = source.with_name("labels.csv") if out is None else Path(out)
    if out.exists() and not overwrite:
        raise DataError(f"{out}: is there already; expected a new file, or overwrite")
    rows = [row for key, corpus in read_corpora(source).items() for row in _rows(f"{source}: {key}", key, corpus)]
    unique_names([row[0] for row in rows], lambda i: f"{source}: {rows[i][1]}_corpus")
    with atomic_file(out) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("name", "split", "emotion", "valence"), *rows])
    return out


def read_corpora(source: Path) -> dict[str, Any]:
    """Read every array of the file with the restricted unpickler: key -> what it holds."""
    corpora = {}
    try:
        with zipfile.ZipFile(source) as archive:
            for member in archive.namelist():
                with archive.open(member) as stream:
                    key = member.removesuffix(".npy")
                    corpora[key] = _read_object(f"{source}: {key}", stream)
    except FileNotFoundError:
        raise DataError(f"{source}: no such file; expected label-6way.npz") from None
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise DataError(f"{source}: expected a .npz file ({error})") from None
    if "train_corpus" not in corpora:
        raise DataError(f"{source}: expected a key 'train_corpus', found {', '.join(corpora) or 'none'}")
    return corpora


def _read_object(place: str, stream: IO[bytes]) -> Any:
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        shape, _, dtype = read_header[version[0]](stream)
        if dtype.kind != "O" or shape != ():
            raise DataError(f"{place}: expected a 0-d object array, got {dtype} of shape {shape}")
        value = RestrictedUnpickler(stream).load()
    except DataError:
        raise
    except Refused as error:
        raise DataError(f"{place}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{place}: expected a readable object array ({type(error).__name__}: {error})") from None
    return value.item() if isinstance(value, np.ndarray) and value.shape == () else value


def _rows(place: str, key: str, corpus: Any) -> list[tuple[str, str, str, str]]:
    if not KEY.fullmatch(key):
        raise DataError(f"{place}: expected a key such as train_corpus or test1_corpus")
    if not isinstance(corpus, dict) or not corpus:
        raise DataError(f"{place}: expected a dictionary name -> {{emo, val}}, got {type(corpus).__name__}")
    rows = []
    for name, entry in corpus.items():
        if not isinstance(name, str) or not isinstance(entry, dict) or not {"emo", "val"} <= set(entry):
            raise DataError(f"{place}: {name!r}: expected {{emo, val}} under a name, got {entry!r:.60}")
        rows.append((name, key.removesuffix("_corpus"), _emotion(place, name, entry), _valence(place, name, entry)))
    return rows


def _emotion(place: str, name: str, entry: dict[str, Any]) -> str:
    emotion = str(entry["emo"])
    if emotion not in EMOTIONS:
        raise DataError(f"{place}: {name!r}: expected emo to be one of {', '.join(EMOTIONS)}, got {emotion!r}")
    return emotion


def _valence(place: str, name: str, entry: dict[str, Any]) -> str:
    try:
        value = float(entry["val"])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{place}: {name!r}: expected val to be a finite number, got {entry['val']!r:.60}")
    return f"{value:.12g}"
