"""Lightning data module: samples of several branches, prepared on the training rows, in batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from examples.pipeline.errors import DataError, check_option
from examples.pipeline.folds import assign_parts
from mmrobust import ClassBalancedBatchSampler

from .classes import UNKNOWN, check_classes, encode, encode_known
from .features import Preparation, fit_preparation
from .parts import PARTS, UNUSED, Members, check_members, describe, find_members, name_parts, numbered
from .readers import Samples, pick, read_samples
from .sets import Batches, OmicsSet, Rows, prepare, take
from .sources import shorten


class Division(NamedTuple):
    """The samples in use, with code of the class ``(N,)``, rows of each part, and names and labels of the classes."""

    samples: Samples
    code: np.ndarray
    parts: dict[str, np.ndarray]
    names: list[str]
    labels: list[str]


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
        self._members: Mapping[str, Members] | None = None
        self._sets: dict[str, OmicsSet] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read, split and prepare; later calls do nothing."""
        if self._sets is not None:
            return
        samples = self._read()
        nameless = numbered(samples)
        found = self._divide(samples) if self._members is None else self._restore(samples, self._members)
        if self._preparation is None:
            options = {"select": self.select, "features": self.features, "scale": self.scale, "nan": self.nan}
            facts = found.code, found.names, found.labels
            self._preparation = fit_preparation(found.samples, found.parts["train"], *facts, **options)
        whole = prepare(found.samples, self._preparation, found.code)
        sets = {name: take(whole, found.parts[name]) for name in PARTS}
        if nameless and self._members is not None:
            check_members(self.root, sets, self._members)
        self._sets = sets

    def _read(self) -> Samples:
        """Read the samples; with the features of a checkpoint, other columns may hold anything."""
        only = None if self._preparation is None else self._preparation.names
        places = {"label": self.label, "split": self.split, "fold_array": self.fold_array}
        return read_samples(self.root, self.branches, ids=self.ids_array, only=only, **places)

    def _divide(self, samples: Samples) -> Division:
        """Put samples into parts by the split column or by folds."""
        part = name_parts(samples, self.split, self.split_values)
        if part is not None:
            # Before classes are counted and values are checked: those of unused rows are nobody's concern.
            samples, part = pick(samples, np.flatnonzero(part != UNUSED)), part[part != UNUSED]
        assert samples.label is not None
        names, labels, code = encode(samples.label, self.given_classes)
        parts = assign_parts(
            code,
            part=part,
            fold_array=samples.fold,
            folds=self.folds,
            fold=self.fold,
            seed=self.split_seed if self.split_seed is not None else self.seed if part is not None else 0,
        )
        code = self._without_left_out(names, labels, code, parts)
        self._check_train(samples, code, parts["train"])
        if self._preparation is not None:
            check_classes(self.root, self._preparation, names, labels)
        return Division(samples, code, parts, names, labels)

    def _restore(self, samples: Samples, members: Mapping[str, Members]) -> Division:
        """Put samples into the parts that they were in when the checkpoint was trained; others are left out."""
        rows = np.unique(np.concatenate(list(find_members(samples, members).values())))
        samples, known = pick(samples, rows), self.preparation
        if self.given_classes is not None:
            check_classes(self.root, known, [one for one in self.given_classes if one != self.leave_out])
        assert samples.label is not None
        parts, code = find_members(samples, members), encode_known(samples.label, known)
        strange = np.flatnonzero(code == UNKNOWN)
        if self.leave_out is not None:
            strange = np.setdiff1d(strange, parts["test"])
        if len(strange):
            check_classes(self.root, known, labels=[*known.labels, *dict.fromkeys(samples.label[strange].tolist())])
        return Division(samples, code, parts, known.classes, known.labels)

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

    def use(self, preparation: Preparation, members: Mapping[str, Members] | None = None) -> None:
        """Prepare and part with what a checkpoint holds, in place of measuring training rows and drawing folds."""
        # What NaN means may be said anew: means and scales of the training rows are known.
        self._preparation, self._members, self._sets = replace(preparation, nan=self.nan), members, None

    def members(self) -> dict[str, Members]:
        """Tell who is in which part, for a checkpoint."""
        if self._members is None:
            self._members = {name: describe(rows) for name, rows in self.sets.items()}
        return dict(self._members)

    def read_other(self, root: str, *, count_unknown: bool = False) -> OmicsSet:
        """Read all samples of another data set with the same places, prepared as this one.

        Args:
            root: Its file or folder.
            count_unknown: Give labels that were not trained on as -1; otherwise they are an error.
        """
        samples = self._read_elsewhere(root, label=self._elsewhere(self.label))
        assert samples.label is not None
        code = encode_known(samples.label, self.preparation)
        strange = list(dict.fromkeys(samples.label[code == UNKNOWN].tolist()))
        if strange and not count_unknown:
            expected = f"the classes {', '.join(self.preparation.labels)}"
            how = "--unknown counts them as rows to reject"
            raise DataError(f"{root}: {self.label}: expected {expected}, got {shorten(strange)}; {how}")
        return prepare(samples, self.preparation, code)

    def read_unlabelled(self, root: str) -> OmicsSet:
        """Read all samples of another data set, prepared as this one; labels are -1, whatever it says."""
        samples = self._read_elsewhere(root)
        return prepare(samples, self.preparation, np.full(len(samples.ids), UNKNOWN))

    def _read_elsewhere(self, root: str, label: str | None = None) -> Samples:
        places = {name: self._elsewhere(place) for name, place in self.branches.items()}
        return read_samples(root, places, label=label, ids=self.ids_array, only=self.preparation.names)

    def _elsewhere(self, place: str) -> str:
        """Name a place of other data: its own file, where the place names the root of these."""
        file, colon, key = place.rpartition(":")
        name = Path(self.root).name
        return key if colon and file == name else "." if place == name else place

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
