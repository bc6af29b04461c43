"""Which rows train, which choose, which test: by a given split, by folds, never sharing a group."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from .errors import DataError


def fold_numbers(label: np.ndarray, group: np.ndarray | None, folds: int, seed: int) -> np.ndarray:
    """Deal rows into ``folds`` parts of like class shares; a group goes whole into one part.

    Args:
        label: Class index ``(N,)``.
        group: Group index ``(N,)`` or None.
        folds: Number of parts, at least 2.
        seed: Same seed, same parts.

    Returns:
        Part number ``(N,)``.
    """
    units, kind = (len(label), "rows") if group is None else (len(np.unique(group)), "groups")
    if not 2 <= folds <= units:
        raise DataError(f"--data.folds: expected 2 to {units}, the number of {kind} to deal out, got {folds}")
    splitter = (StratifiedKFold if group is None else StratifiedGroupKFold)(folds, shuffle=True, random_state=seed)
    if np.unique(label, return_counts=True)[1].max() < folds:
        label = np.zeros_like(label)  # no class is large enough to be in every fold
    number = np.empty(len(label), dtype=np.int64)
    with warnings.catch_warnings():
        # A class with fewer rows than folds is missing in some of them; that is all the warning says.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for k, (_, held_out) in enumerate(splitter.split(np.zeros(len(label)), label, group)):
            number[held_out] = k
    return number


def assign_parts(
    label: np.ndarray,
    *,
    part: np.ndarray | None = None,
    group: np.ndarray | None = None,
    fold_array: np.ndarray | None = None,
    folds: int = 5,
    fold: int = 0,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Give the rows of every part, in ascending order.

    A split with train and val stands as it is. Without val, val is fold ``fold`` of the train rows. Without any split
    test is fold ``fold``, val the next one (the first after the last), train the rest.

    Args:
        label: Class index ``(N,)``: folds have like class shares.
        part: Part name ``(N,)``, or None.
        group: Group index ``(N,)``, or None: no two parts share a group.
        fold_array: Fold number ``(N,)`` to use in place of drawing folds, -1 = always in train.
        folds: Number of folds.
        fold: Which fold, from 0.
        seed: Seed of the folds.

    Returns:
        Part name -> row indices: train, val, then the tests in ascending order of their names.

    Raises:
        DataError: If a part is empty, a group is in two parts, or the fold is out of range.
    """
    if fold_array is not None and (len(fold_array) and folds != fold_array.max() + 1):
        raise DataError(f"--data.folds: expected {fold_array.max() + 1} as in the fold array, got {folds}")
    if not 0 <= fold < folds:
        raise DataError(f"--data.fold: expected 0 to {folds - 1}, got {fold}")
    names = np.full(len(label), "train", dtype="<U32") if part is None else part.astype("<U32")
    if "val" not in names:
        _hold_out(names, label, group, fold_array, folds, fold, seed, with_test=part is None)
    tests = sorted(set(names.tolist()) - {"train", "val"})
    parts = {name: np.flatnonzero(names == name) for name in ["train", "val", *tests]}
    for name, rows in parts.items():
        if not len(rows):
            raise DataError(f"split: expected at least one row in {name!r}, got none of {len(names)}")
    if group is not None:
        _check_groups(names, group)
    return parts


def _hold_out(
    names: np.ndarray,
    label: np.ndarray,
    group: np.ndarray | None,
    fold_array: np.ndarray | None,
    folds: int,
    fold: int,
    seed: int,
    *,
    with_test: bool,
) -> None:
    """Rename held-out rows of ``train`` in place."""
    rows = np.flatnonzero(names == "train")
    if not len(rows):
        raise DataError(f"split: expected at least one row in 'train', got none of {len(names)}")
    if fold_array is not None:
        number = fold_array[rows]
    else:
        number = fold_numbers(label[rows], None if group is None else group[rows], folds, seed)
    for name, held_out in {"test": fold, "val": (fold + 1) % folds}.items() if with_test else [("val", fold)]:
        if not (number == held_out).any():
            raise DataError(f"--data.fold: expected folds with rows, fold {held_out}, which is {name!r}, has none")
        names[rows[number == held_out]] = name


def _check_groups(names: np.ndarray, group: np.ndarray) -> None:
    home: dict[int, str] = {}
    for row, (name, number) in enumerate(zip(names.tolist(), group.tolist(), strict=True)):
        if home.setdefault(number, name) != name:
            raise DataError(f"group: row {row}: its group is in {home[number]!r} and in {name!r}; expected one part")
