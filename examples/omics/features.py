"""Which features are kept and how they are scaled: fitted on training rows, kept with the checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn.feature_selection import f_classif

from examples.pipeline.errors import DataError, check_option

from .readers import Samples
from .sources import shorten

SELECT = ("none", "variance", "f_classif")
SCALE = ("none", "zscore", "minmax")
NAN = ("error", "absent", "mean")
T = TypeVar("T")


@dataclass(frozen=True)
class BranchScale:
    """What becomes of the features of one branch.

    Attributes:
        names: Names of the features that are kept, in the order in which the network sees them.
        center: What is subtracted, ``(D,)``.
        spread: What is divided by, ``(D,)``; 1 for a feature that is constant in the training rows.
        fill: What stands for NaN before that, ``(D,)``: the mean of the training rows.
    """

    names: list[str]
    center: np.ndarray
    spread: np.ndarray
    fill: np.ndarray

    def apply(self, where: str, names: Sequence[str], values: np.ndarray) -> np.ndarray:
        """Pick the features by name, whatever their order, and scale them.

        Raises:
            DataError: If features are missing, listing the first few.
        """
        place = {name: index for index, name in enumerate(names)}
        missing = [name for name in self.names if name not in place]
        if missing:
            raise DataError(
                f"{where}: lacks {len(missing)} of the {len(self.names)} features that were trained on:"
                f" {shorten(missing)}"
            )
        picked = values[:, [place[name] for name in self.names]]
        filled = np.where(np.isnan(picked), self.fill, picked)
        return ((filled - self.center) / self.spread).astype(np.float32)


@dataclass(frozen=True)
class Preparation:
    """Selection and scaling of every branch, and what to do about NaN: all that new samples need.

    Attributes:
        branches: Branch -> its features.
        nan: ``"error"``, ``"absent"`` or ``"mean"``.
        classes: Names of the classes.
        labels: What stands for them in the files.
    """

    branches: dict[str, BranchScale]
    nan: str
    classes: list[str]
    labels: list[str]

    @property
    def in_features(self) -> dict[str, int]:
        return {name: len(branch.names) for name, branch in self.branches.items()}

    @property
    def names(self) -> dict[str, list[str]]:
        """Branch -> names of its features."""
        return {name: branch.names for name, branch in self.branches.items()}

    def apply(self, samples: Samples) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return branch -> scaled features ``(N, D)``, zero where absent, and presence ``(N, M)``."""
        present = find_present(samples, self.nan, self.names)
        features = {}
        for column, (name, branch) in enumerate(self.branches.items()):
            if name not in samples.values:
                raise DataError(f"{samples.root}: lacks the branch {name!r} that was trained on")
            scaled = branch.apply(f"{samples.root}: {name}", samples.names[name], samples.values[name])
            scaled[~present[:, column]] = 0.0
            features[name] = scaled
        return features, present

    def state(self) -> dict[str, Any]:
        """Return all of it as tensors and plain values, for a checkpoint."""
        branches = {
            name: {"names": one.names, **{key: torch.from_numpy(getattr(one, key)) for key in _NUMBERS}}
            for name, one in self.branches.items()
        }
        return {"branches": branches, "nan": self.nan, "classes": self.classes, "labels": self.labels}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Preparation:
        branches = {
            name: BranchScale(list(one["names"]), *(one[key].numpy() for key in _NUMBERS))
            for name, one in state["branches"].items()
        }
        return cls(branches, state["nan"], list(state["classes"]), list(state["labels"]))


_NUMBERS = ("center", "spread", "fill")


def find_present(samples: Samples, nan: str, used: Mapping[str, Sequence[str]] | None = None) -> np.ndarray:
    """Tell which samples have which branch ``(N, M)``, after what NaN means.

    A sample without a single value is absent unless NaN is an error.

    Args:
        samples: The samples.
        nan: ``"error"``: NaN is one; ``"absent"``: a sample with any NaN lacks the branch; ``"mean"``: NaN stands for
            the mean of the training rows.
        used: Branch -> features that count; None = all.
    """
    present = samples.present.copy()
    for column, (name, values) in enumerate(samples.values.items()):
        names = samples.names[name]
        if used is not None and name in used:
            wanted = set(used[name])
            kept = [index for index, one in enumerate(names) if one in wanted]
            values, names = values[:, kept], [names[index] for index in kept]
        if np.isinf(values).any():
            row, place = np.argwhere(np.isinf(values))[0]
            what = f"sample {samples.ids[row]!r}, feature {names[place]!r}"
            raise DataError(f"{samples.root}: {name}: {what}: expected a finite number, got {values[row, place]}")
        unknown = np.isnan(values) & present[:, [column]]
        if nan == "error" and unknown.any():
            row, place = np.argwhere(unknown)[0]
            what = f"sample {samples.ids[row]!r} (row {row}), feature {names[place]!r} (column {place})"
            more = f"{int(unknown.sum())} values in all; to accept them give --data.nan absent or mean"
            raise DataError(f"{samples.root}: {name}: {what}: expected a number, got NaN ({more})")
        present[:, column] &= ~(unknown.any(1) if nan == "absent" else unknown.all(1))
    return present


def fit_preparation(
    samples: Samples,
    train: np.ndarray,
    label: np.ndarray,
    classes: Sequence[str],
    labels: Sequence[str],
    *,
    select: str | Mapping[str, str] = "none",
    features: int | Mapping[str, int] | None = None,
    scale: str = "zscore",
    nan: str = "error",
) -> Preparation:
    """Choose and measure features on the training rows alone.

    Args:
        samples: All samples.
        train: Indices of the training rows.
        label: Class index of every sample.
        classes: Names of the classes.
        labels: What stands for them in the files.
        select: ``"none"``, ``"variance"`` or ``"f_classif"`` (largest F statistic of the classes), for all or each.
        features: How many features are kept where some are selected, for all or each.
        scale: ``"none"``, ``"zscore"`` or ``"minmax"``.
        nan: See ``find_present``.
    """
    check_option("data.scale", scale, SCALE)
    check_option("data.nan", nan, NAN)
    present = find_present(samples, nan)
    branches = {}
    for column, (name, values) in enumerate(samples.values.items()):
        how = of_branch("data.select", select, name, list(samples.values), "none")
        check_option(f"data.select of {name!r}", how, SELECT)
        keep = of_branch("data.features", features, name, list(samples.values), None)
        rows = train[present[train, column]]
        if not len(rows):
            raise DataError(f"{samples.root}: {name}: expected training rows that have this branch, got none")
        known = values[rows].astype(np.float64)
        kept = choose(f"data.features of {name!r}", known, label[rows], how, keep)
        branches[name] = measure(known[:, kept], [samples.names[name][index] for index in kept], scale)
    return Preparation(branches, nan, list(classes), list(labels))


def of_branch(option: str, given: T | Mapping[str, T], name: str, known: Sequence[str], default: T) -> T:
    """Return what an option, given for all branches or by name, says of one."""
    if not isinstance(given, Mapping):
        return given
    for key in given:
        check_option(f"{option}: names of branches", key, known)
    return given.get(name, default)


def choose(option: str, values: np.ndarray, label: np.ndarray, how: str, keep: int | None) -> np.ndarray:
    """Return the indices, ascending, of the features of the highest score; ties go to the first."""
    count = values.shape[1]
    if how == "none":
        return np.arange(count)
    if keep is None or not 1 <= keep <= count:
        raise DataError(f"{option}: expected 1 to {count}, the number of features to select from, got {keep}")
    filled = np.where(np.isnan(values), _mean(values), values)
    if how == "variance":
        score = filled.var(axis=0)
    else:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # about constant features, whose score is NaN
            score = f_classif(filled, label)[0]
    score = np.nan_to_num(score, nan=-1.0, posinf=np.finfo(float).max)
    return np.sort(np.argsort(-score, kind="stable")[:keep])


def measure(values: np.ndarray, names: list[str], scale: str) -> BranchScale:
    """Measure the training rows ``(n, D)`` of a branch."""
    mean = _mean(values)
    filled = np.where(np.isnan(values), mean, values)
    center, spread = np.zeros_like(mean), np.ones_like(mean)
    if scale == "zscore":
        center, spread = mean, filled.std(axis=0)
    elif scale == "minmax":
        center = filled.min(axis=0)
        spread = filled.max(axis=0) - center
    # A constant feature would be 0 / 0; in other rows it may well not be constant, so it is not thrown away.
    spread = np.where(spread > 1e-8 * np.maximum(np.abs(center), 1e-8), spread, 1.0)
    return BranchScale(names, *(x.astype(np.float32) for x in (center, spread, mean)))


def _mean(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    return np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
