"""Prepared rows as tensors, and the batches that an epoch deals them into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .features import Preparation
from .readers import Samples


class OmicsSet(NamedTuple):
    """Prepared rows: ``features`` branch -> ``(N, D)``, ``present (N, M)``, ``label (N,)`` with -1 = unknown class."""

    ids: list[str]
    features: dict[str, Tensor]
    present: Tensor
    label: Tensor

    @property
    def count(self) -> int:
        return len(self.ids)

    def batch(self, rows: Sequence[int] | Tensor | slice) -> dict[str, Any]:
        """Index all tensors at once."""
        index = rows if isinstance(rows, slice) else torch.as_tensor(rows, dtype=torch.long)
        inputs = {name: x[index] for name, x in self.features.items()}
        return {"inputs": inputs, "present": self.present[index], "label": self.label[index]}


class Rows(Dataset[dict[str, Any]]):
    """A set that is asked for whole batches."""

    def __init__(self, rows: OmicsSet) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows.count

    def __getitem__(self, index: Sequence[int]) -> dict[str, Any]:
        return self.rows.batch(index)


class Batches(Sampler[list[int]]):
    """Deal rows into batches, in order, or in one that follows from seed and epoch: a resumed run sees it too."""

    def __init__(self, rows: int, size: int, *, shuffle: bool, seed: int) -> None:
        self.rows, self.size, self.shuffle, self.seed, self.epoch = rows, size, shuffle, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.rows // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        # A generator: Lightning makes an iterator before it sets the epoch of a resumed run.
        order = np.arange(self.rows)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.rows)
        for start in range(0, self.rows, self.size):
            yield order[start : start + self.size].tolist()


def prepare(samples: Samples, preparation: Preparation, code: np.ndarray) -> OmicsSet:
    """Turn what was read into tensors."""
    features, present = preparation.apply(samples)
    tensors = {name: torch.from_numpy(x) for name, x in features.items()}
    return OmicsSet(samples.ids, tensors, torch.from_numpy(present), torch.from_numpy(code).long())


def take(rows: OmicsSet, index: np.ndarray) -> OmicsSet:
    """Take some rows of a set."""
    found = rows.batch(torch.from_numpy(index))
    return OmicsSet([rows.ids[i] for i in index.tolist()], found["inputs"], found["present"], found["label"])
