"""Lightning data module: samples of several branches, prepared on the training rows, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from examples.pipeline.errors import DataError, check_option
from examples.pipeline.folds import assign_parts
from mmrobust import ClassBalancedBatchSampler

from .features import Preparation, fit_preparation
from .readers import Samples, read_samples
from .sets import Batches, OmicsSet, Rows, prepare, take
from .sources import shorten

PARTS = ("train", "val", "test")
UNKNOWN = -1


class OmicsData(L.LightningDataModule):
    """Reads the branches, splits samples, selects and scales features on the training rows, and serves batches.

    The test rows are those of the split, or fold ``fold``; the validation rows are always taken from the training
    rows, in the shares of the classes. Nothing is fitted or chosen on test rows.

    Args:
        root: File or folder, see ``readers.read_samples``.
        branches: Branch -> place of its features.
        label: Place of the labels.
        ids: Array of sample ids in a ``.npz``.
        split: Place of a column that says which part a sample is in.
        split_values: Part -> value in that column; None = its values are train, val and test. Other rows are unused.
        fold_array: Place of a column of fold numbers, used in place of drawn folds.
        folds: Number of folds.
        fold: The fold that tests; where the test rows are given, the one that validates.
        split_seed: Seed of drawn folds; None = the seed of the run where the test rows are given, else 0, so that
            the test folds of all runs are the same.
        classes: Names of the classes in the order of their sorted labels; None = the labels.
        select: ``"none"``, ``"variance"`` or ``"f_classif"``, for all branches or by branch.
        features: How many features selection keeps, for all branches or by branch.
        scale: ``"none"``, ``"zscore"`` or ``"minmax"``.
        nan: ``"error"``, ``"absent"`` (a sample with NaN lacks the branch) or ``"mean"`` (of the training rows).
        leave_out: Class without training and validation rows; its test rows are of no known class.
        balanced: Draw training batches of as many samples of each class.
        batch_size: Samples in a batch.
        seed: Seed of the order of the training rows.

    Raises:
        DataError: One line that names the file, sample, feature or option and what is expected.
    """

    def __init__(
        self,
        root: str,
        branches: dict[str, str],
        label: str,
        *,
        ids: str | None = None,
        split: str | None = None,
        split_values: dict[str, str | int] | None = None,
        fold_array: str | None = None,
        folds: int = 5,
        fold: int = 0,
        split_seed: int | None = None,
        classes: list[str] | None = None,
        select: str | dict[str, str] = "none",
        features: int | dict[str, int] | None = None,
        scale: str = "zscore",
        nan: str = "error",
        leave_out: str | None = None,
        balanced: bool = False,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise DataError(f"data.batch_size: expected at least 1, got {batch_size}")
        if split and fold_array:
            raise DataError(f"data: expected split or fold_array, got both: {split} and {fold_array}")
        self.root, self.branches, self.label, self.ids_array = root, branches, label, ids
        self.split, self.split_values, self.fold_array = split, split_values, fold_array
        self.folds, self.fold, self.split_seed, self.given_classes = folds, fold, split_seed, classes
        self.select, self.features, self.scale, self.nan = select, features, scale, nan
        self.leave_out, self.balanced, self.batch_size, self.seed = leave_out, balanced, batch_size, seed
        self._preparation: Preparation | None = None
        self._sets: dict[str, OmicsSet] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read, split and prepare; later calls do nothing."""
        if self._sets is not None:
            return
        samples = read_samples(
            self.root,
            self.branches,
            label=self.label,
            split=self.split,
            fold_array=self.fold_array,
            ids=self.ids_array,
        )
        assert samples.label is not None
        names, labels, code = encode(samples.label, self.given_classes)
        parts = self._parts(samples, code)
        code = self._without_left_out(names, labels, code, parts)
        self._check_train(samples, code, parts["train"])
        if self._preparation is None:
            options = {"select": self.select, "features": self.features, "scale": self.scale, "nan": self.nan}
            self._preparation = fit_preparation(samples, parts["train"], code, names, labels, **options)
        elif names != self._preparation.classes:
            known = ", ".join(self._preparation.classes)
            raise DataError(f"{self.root}: expected data of the classes {known}, got {', '.join(names)}")
        whole = prepare(samples, self._preparation, code)
        self._sets = {name: take(whole, parts[name]) for name in PARTS}

    def _parts(self, samples: Samples, code: np.ndarray) -> dict[str, np.ndarray]:
        part = None
        if samples.split is not None:
            values = {name: str(self.split_values[name]) for name in self.split_values or {}} or {p: p for p in PARTS}
            for name in values:
                check_option("data.split_values: names of parts", name, PARTS)
            part = np.full(len(samples.ids), "unused", dtype="<U8")
            for name, value in values.items():
                part[samples.split == value] = name
        seed = self.split_seed if self.split_seed is not None else self.seed if part is not None else 0
        used = np.arange(len(code)) if part is None else np.flatnonzero(part != "unused")
        parts = assign_parts(
            code[used],
            part=None if part is None else part[used],
            fold_array=None if samples.fold is None else samples.fold[used],
            folds=self.folds,
            fold=self.fold,
            seed=seed,
        )
        if "test" not in parts:
            found = ", ".join(sorted(set(samples.split.tolist()))) if samples.split is not None else "none"
            raise DataError(f"{self.root}: {self.split}: expected rows of the part test, found the values {found}")
        return {name: used[rows] for name, rows in parts.items()}

    def _without_left_out(
        self, names: list[str], labels: list[str], code: np.ndarray, parts: dict[str, np.ndarray]
    ) -> np.ndarray:
        """Take the class that is left out from the names, from train and val; in test it becomes unknown."""
        if self.leave_out is None:
            return code
        check_option("data.leave_out", self.leave_out, names)
        if len(names) < 3:
            what = f"leaving {self.leave_out!r} out leaves one"
            raise DataError(f"data.leave_out: expected at least three classes, got {', '.join(names)}: {what}")
        out = names.index(self.leave_out)
        del names[out], labels[out]
        for name in ("train", "val"):
            parts[name] = parts[name][code[parts[name]] != out]
        return np.where(code == out, UNKNOWN, code - (code > out))

    def _check_train(self, samples: Samples, code: np.ndarray, train: np.ndarray) -> None:
        assert samples.label is not None
        known = set(code[train].tolist())
        lacking = list(dict.fromkeys(samples.label[(code >= 0) & ~np.isin(code, list(known))].tolist()))
        if lacking:
            raise DataError(f"{self.root}: {self.label}: expected training rows of every class, none of {lacking[0]!r}")

    def use(self, preparation: Preparation) -> None:
        """Prepare with what a checkpoint holds, in place of measuring training rows again."""
        self._preparation, self._sets = preparation, None

    def read_other(self, root: str, *, count_unknown: bool = False) -> OmicsSet:
        """Read all samples of another data set with the same places, prepared as this one.

        Args:
            root: Its file or folder.
            count_unknown: Give labels that were not trained on as -1; otherwise they are an error.
        """
        samples = read_samples(root, self.branches, label=self.label, ids=self.ids_array)
        assert samples.label is not None
        known = {value: index for index, value in enumerate(self.preparation.labels)}
        strange = [one for one in dict.fromkeys(samples.label.tolist()) if one not in known]
        if strange and not count_unknown:
            expected = f"the classes {', '.join(known)}"
            how = "--unknown counts them as rows to reject"
            raise DataError(f"{root}: {self.label}: expected {expected}, got {shorten(strange)}; {how}")
        code = np.array([known.get(one, UNKNOWN) for one in samples.label.tolist()])
        return prepare(samples, self.preparation, code)

    @property
    def preparation(self) -> Preparation:
        """Selection and scaling; of a checkpoint it is known without the data."""
        if self._preparation is None:
            self.setup()
        assert self._preparation is not None
        return self._preparation

    @property
    def sets(self) -> dict[str, OmicsSet]:
        """The parts: train, val, test."""
        self.setup()
        assert self._sets is not None
        return self._sets

    @property
    def classes(self) -> list[str]:
        return self.preparation.classes

    @property
    def in_features(self) -> dict[str, int]:
        return self.preparation.in_features

    def loader(self, part: str, *, shuffle: bool = False) -> DataLoader[Any]:
        """Serve a part in batches; ``shuffle`` = as in training."""
        rows = self.sets[part]
        sampler: Any
        if shuffle and self.balanced:
            classes = len(self.classes)
            each = max(self.batch_size // classes, 2)
            sampler = ClassBalancedBatchSampler(rows.label, classes, each, seed=self.seed)
        else:
            sampler = Batches(rows.count, self.batch_size, shuffle=shuffle, seed=self.seed)
        # With a generator of its own the loader draws nothing from the global one.
        return DataLoader(Rows(rows), batch_size=None, sampler=sampler, generator=torch.Generator())

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader("val")


def encode(label: np.ndarray, given: Sequence[str] | None) -> tuple[list[str], list[str], np.ndarray]:
    """Number the classes in the order of their labels, numbers by size; return names, labels and codes."""
    values = sorted(set(label.tolist()), key=_by_size)
    if len(values) < 2:
        raise DataError(f"data.label: expected at least two classes, got {', '.join(values)}")
    if given is not None and len(given) != len(values):
        raise DataError(f"data.classes: expected {len(values)} names, for {', '.join(values)}, got {', '.join(given)}")
    place = {value: index for index, value in enumerate(values)}
    return list(given or values), values, np.array([place[one] for one in label.tolist()])


def _by_size(label: str) -> tuple[bool, int, str]:
    number = label.removeprefix("-").isdecimal()
    return not number, int(label) if number else 0, label
