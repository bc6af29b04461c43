"""Reader of plain ``.npz`` files whose arrays are named in the configuration.

An array is named ``array`` when the root is one file, ``file.npz:array`` when it is a folder. Nothing is unpickled.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from examples.pipeline.errors import DataError
from examples.pipeline.files import describe_damage

from .frames import assemble
from .labels import codes_from_integers, codes_from_names, part_names
from .sets import NO_LABEL, MultimodalSet, Source

Where = Callable[[int], str]


def read_npz(
    root: str | Path,
    modalities: Mapping[str, str],
    *,
    frames: str = "utterance",
    align_to: str | None = None,
    max_frames: int | None = None,
    label: str | None = "label",
    score: str | None = None,
    split: str | None = None,
    split_values: dict[str, Any] | None = None,
    group: str | None = None,
    fold_array: str | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """Read all rows of a set kept in ``.npz`` files.

    Args:
        root: A ``.npz`` file, or a folder of them.
        modalities: Modality name -> array ``(N, D)`` or ``(N, T, D)`` padded at the end with zeros.
        frames: ``"utterance"``, ``"aligned"`` or ``"unaligned"``, see ``frames.assemble``.
        align_to: See ``frames.assemble``.
        max_frames: See ``frames.assemble``.
        label: Array ``(N,)`` of class numbers 0 ... C - 1 (-1 = none) or class names; ``None`` = no classes.
        score: Array ``(N,)``, NaN = none; ``None`` = no score.
        split: Array ``(N,)`` that says to which part a row belongs; ``None`` = no split.
        split_values: Part -> its value (or list of values) in ``split``.
        group: Array ``(N,)`` of subjects or the like.
        fold_array: Array ``(N,)`` of fold numbers.
        classes: Class names in order; ``None`` = the numbers, or the sorted names, that occur.

    Raises:
        DataError: If a file, array or row is missing or wrong.
    """
    arrays = _Arrays(Path(root))
    samples = {name: arrays.features(reference) for name, reference in modalities.items()}
    features, masks, present = assemble(samples, frames, align_to, max_frames)
    codes, names = np.full(arrays.rows, NO_LABEL), list[str]()
    if label:
        codes, names = _labels(*arrays.column(label), classes)
    part = None
    if split:
        values, where = arrays.column(split)
        part = part_names(values.tolist(), split_values, where)
    fold = codes_from_integers(*arrays.column(fold_array)) if fold_array else None
    rows = MultimodalSet(
        ids=[str(i) for i in range(arrays.rows)],
        features=features,
        masks=masks,
        present=present,
        label=torch.from_numpy(codes),
        score=_scores(*arrays.column(score)) if score else None,
        group=torch.from_numpy(np.unique(arrays.column(group)[0], return_inverse=True)[1]) if group else None,
    )
    return Source(rows, names, part, fold)


class _Arrays:
    """Arrays by reference, all of the same number of rows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows = 0
        self._first = ""

    def features(self, reference: str) -> list[np.ndarray | None]:
        x, where = self.column(reference, dims=(2, 3))
        with np.errstate(over="ignore"):  # what overflows float32 is reported as infinite below
            x = x.astype(np.float32, copy=False)
        bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1))
        if len(bad):
            raise DataError(f"{where(bad[0])}: expected finite features, got NaN or infinity ({len(bad)} such rows)")
        return [_trim(row) for row in x] if x.ndim == 3 else list(x)

    def column(self, reference: str, dims: tuple[int, ...] = (1,)) -> tuple[np.ndarray, Where]:
        """Read an array and give, for messages, a function from row number to place."""
        path, name = self._locate(reference)
        place = f"{path}: {name}"
        x = self._read(path, name)
        kinds = "fiubU" if dims == (1,) else "fiub"
        if x.dtype.kind not in kinds or x.ndim not in dims or 0 in x.shape[1:]:
            wanted = "labels or numbers of shape (N,)" if dims == (1,) else "numbers of shape (N, D) or (N, T, D)"
            raise DataError(f"{place}: expected {wanted}, got {x.dtype} of shape {x.shape}")
        if not self._first:
            self._first, self.rows = place, len(x)
        if len(x) != self.rows or not self.rows:
            raise DataError(f"{place}: expected {self.rows or 'some'} rows as in {self._first}, got {len(x)}")
        return x, lambda row: f"{place}: row {row}"

    def _locate(self, reference: str) -> tuple[Path, str]:
        if not self.root.exists():
            raise DataError(f"{self.root}: no such file or folder; expected a .npz file or a folder of them")
        if self.root.is_file():
            return self.root, reference
        file, colon, name = reference.partition(":")
        if not colon:
            raise DataError(f"{self.root}: is a folder; expected an array named file.npz:array, got {reference!r}")
        return self.root / file, name

    def _read(self, path: Path, name: str) -> np.ndarray:
        try:
            # Opened here: NumPy leaves a file open that it finds damaged.
            with path.open("rb") as stream:
                loaded = np.load(stream, allow_pickle=False)
                if isinstance(loaded, np.ndarray):
                    raise DataError(f"{path}: not a readable .npz archive of plain arrays (a single array, as in .npy)")
                if name in loaded.files:
                    return np.asarray(loaded[name])
                raise DataError(f"{path}: expected an array {name!r}, found {', '.join(loaded.files)}")
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; expected a .npz file") from None
        except DataError:
            raise
        except Exception as error:  # a damaged archive can raise anything
            problem = describe_damage(error)
            advice = "; `convert` turns the published label-6way.npz into labels.csv" if "objects" in problem else ""
            place = f"{path}: {name}" if zipfile.is_zipfile(path) else path
            raise DataError(f"{place}: not a readable .npz archive of plain arrays{problem}{advice}") from None


def _trim(x: np.ndarray) -> np.ndarray | None:
    """Cut the padding: the all-zero frames after the last real one."""
    real = np.flatnonzero(x.any(1))
    return x[: real[-1] + 1] if len(real) else None


def _labels(values: np.ndarray, where: Where, classes: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    if values.dtype.kind == "U":
        names = list(classes) if classes is not None else sorted(set(values.tolist()) - {""})
        return codes_from_names(values.tolist(), where, names), names
    codes = codes_from_integers(values, where, classes)
    return codes, list(classes) if classes is not None else [str(i) for i in range(int(codes.max()) + 1)]


def _scores(values: np.ndarray, where: Where) -> Tensor:
    if values.dtype.kind == "U" or np.isinf(values).any():
        row = 0 if values.dtype.kind == "U" else int(np.argmax(np.isinf(values)))
        raise DataError(f"{where(row)}: expected a number or NaN as score, got {values[row]!r}")
    return torch.from_numpy(values.astype(np.float32))
