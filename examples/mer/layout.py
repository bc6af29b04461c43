"""Reader of the MER2023 / MERBench layout.

::

    ROOT/labels.csv                              (or labels.json) one row per sample:
                                                 name, split, emotion, valence [, any column that names a group]
    ROOT/features/<feature-name>/<sample>.npy    utterance (D,) or frames (T, D)
    ROOT/features/<feature-name>/<sample>/*.npy  or a folder of one array per face, stacked in sorted order

``split`` is train, val, test, test1, test2 or test3; ``emotion`` one of ``EMOTIONS``; ``valence`` a number, where
empty or -10 means none (all of test3). A missing file and an all-zero array mean that the sample lacks the modality.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.pipeline.errors import DataError
from examples.pipeline.files import describe_damage

from .frames import assemble
from .labels import LabelTable, codes_from_names, parse_scores, part_names, read_table, unique_names
from .sets import MultimodalSet, Source

EMOTIONS = ("neutral", "angry", "happy", "sad", "worried", "surprise")
NO_VALENCE = -10.0
TABLES = ("labels.csv", "labels.json")


def read_layout(
    root: str | Path,
    modalities: Mapping[str, str],
    *,
    frames: str = "utterance",
    align_to: str | None = None,
    max_frames: int | None = None,
    label: str | None = "emotion",
    score: str | None = "valence",
    split: str | None = "split",
    split_values: dict[str, Any] | None = None,
    group: str | None = None,
    fold_array: str | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """Read all rows of a MER2023-like folder.

    Args:
        root: The folder.
        modalities: Modality name -> feature name (a folder under ``features``).
        frames: ``"utterance"``, ``"aligned"`` or ``"unaligned"``, see ``frames.assemble``.
        align_to: See ``frames.assemble``.
        max_frames: See ``frames.assemble``.
        label: Column of the class names; ``None`` = no classes.
        score: Column of the score; ``None`` = no score.
        split: Column of the part; ``None`` = no split.
        split_values: Part -> entry in the split column, if the entries are not the names themselves.
        group: Column whose entries must not be shared between training and validation rows.
        fold_array: Column of fold numbers.
        classes: Class names in order; ``None`` = ``EMOTIONS``.

    Raises:
        DataError: If a file, column or entry is missing or wrong.
    """
    root = Path(root)
    table = read_table(find_table(root))
    names = table.column("name")
    unique_names(names, table.where)
    class_names = list(EMOTIONS if classes is None else classes) if label else []
    codes = codes_from_names(table.column(label), table.where, class_names) if label else np.full(len(table), -1)
    values = parse_scores(table.column(score), table.where, NO_VALENCE) if score else None
    part = part_names(table.column(split), split_values, table.where) if split else None
    fold = _folds(table, fold_array) if fold_array else None
    groups = np.unique(table.column(group), return_inverse=True)[1] if group else None
    arrays = {name: _read_modality(root, feature, names) for name, feature in modalities.items()}
    features, masks, present = assemble(arrays, frames, align_to, max_frames)
    rows = MultimodalSet(
        ids=list(names),
        features=features,
        masks=masks,
        present=present,
        label=torch.from_numpy(codes),
        score=None if values is None else torch.from_numpy(values),
        group=None if groups is None else torch.from_numpy(groups),
    )
    return Source(rows, class_names, part, fold)


def find_table(root: Path) -> Path:
    """Find the one label table of the folder ``root``."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one that holds labels.csv and features/")
    found = [root / name for name in TABLES if (root / name).is_file()]
    if len(found) == 1:
        return found[0]
    if not found and (root / "label-6way.npz").is_file():
        raise DataError(f"{root}: expected labels.csv; make it once from label-6way.npz with `convert`")
    raise DataError(f"{root}: expected one of {' or '.join(TABLES)}, found {'both' if found else 'neither'}")


def _folds(table: LabelTable, column: str) -> np.ndarray:
    cells = table.column(column)
    for i, cell in enumerate(cells):
        if not cell.isdecimal():
            raise DataError(f"{table.where(i)}: expected a fold number, got {cell!r}")
    return np.array(cells, dtype=np.int64)


def _read_modality(root: Path, feature: str, names: Sequence[str]) -> list[np.ndarray | None]:
    folder = root / "features" / feature
    try:
        listed = set(os.listdir(folder))  # one listing is much cheaper than asking for each file
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder}: no such folder; expected <sample>.npy files{_others(folder)}") from None
    arrays: list[np.ndarray | None] = []
    first: Path | None = None
    size = 0
    for name in names:
        path = _sample_path(folder, name, listed)
        x = None if path is None else _read_sample(path)
        if path is not None and x is not None:
            first, size = (path, x.shape[-1]) if first is None else (first, size)
            if x.shape[-1] != size:
                raise DataError(f"{path}: expected {size} features as in {first.name}, got {x.shape[-1]}")
        arrays.append(x)
    if first is None:
        raise DataError(f"{folder}: expected <sample>.npy files, none of the {len(names)} samples has one")
    return arrays


def _others(folder: Path) -> str:
    found = sorted(x.name for x in folder.parent.iterdir() if x.is_dir()) if folder.parent.is_dir() else []
    return f"; found {', '.join(found)}" if found else ""


def _sample_path(folder: Path, name: str, listed: set[str]) -> Path | None:
    if f"{name}.npy" in listed:
        return folder / f"{name}.npy"
    return folder / name if name in listed else None


def _read_sample(path: Path) -> np.ndarray | None:
    """Read ``(D,)`` or ``(T, D)`` as float32; None if there is no frame."""
    if not path.is_dir():
        return _read_array(path)
    faces = [x for x in map(_read_array, sorted(path.glob("*.npy"))) if x is not None]
    stacked = [x[None] if x.ndim == 1 else x for x in faces]
    if len({x.shape[1] for x in stacked}) > 1:
        raise DataError(f"{path}: expected faces of one size, got {sorted({x.shape[1] for x in stacked})}")
    return np.concatenate(stacked) if stacked else None


def _read_array(path: Path) -> np.ndarray | None:
    try:
        x = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: expected a .npy array of numbers{describe_damage(error)}") from None
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "fiub" or x.ndim not in (1, 2):
        raise DataError(f"{path}: expected numbers of shape (D,) or (T, D), got {_describe(x)}")
    if x.size == 0:
        return None
    with np.errstate(over="ignore"):  # what overflows float32 is reported as infinite below
        x = x.astype(np.float32, copy=False)
    if not np.isfinite(x).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise DataError(f"{path}: expected finite values, got {x[place]} at index {place}")
    return x


def _describe(x: Any) -> str:
    return f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
