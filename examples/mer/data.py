"""Lightning data module for sets of any number of modalities, in the MER2023 layout or plain ``.npz`` files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from examples.pipeline.errors import DataError, check_option
from examples.pipeline.folds import assign_parts

from .layout import read_layout
from .normalize import Standardizer, standardize_within_groups
from .npz import read_npz
from .sets import MultimodalSet, Source

__all__ = ["BatchIndices", "DataError", "MultimodalData", "MultimodalSet", "RowBatches"]

READERS = {"mer2023": read_layout, "npz": read_npz}
COLUMNS: dict[str, dict[str, str | None]] = {
    "mer2023": {"label": "emotion", "score": "valence", "split": "split"},
    "npz": {"label": "label", "score": None, "split": None},
}


class RowBatches(Dataset[dict[str, Any]]):
    """A set whose items are whole batches: the key is a list of rows, and every tensor is indexed once."""

    def __init__(self, rows: MultimodalSet) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | Sequence[int]) -> dict[str, Any]:
        return self.rows.batch([index] if isinstance(index, int) else index)


class BatchIndices(DistributedSampler[list[int]]):
    """Lists of rows, one per batch. The order depends on (seed, epoch) alone, so that a resumed run continues exactly.

    In training each of several processes gets its share, filled up to equal length from the start; in evaluation
    each gets all rows, so that a metric is the same in all of them and no row counts twice.
    """

    def __init__(self, rows: RowBatches, batch_size: int, *, shuffle: bool, seed: int = 0, drop_last: bool = False):
        # The base class is what tells Lightning to leave this sampler in place.
        shared = shuffle and dist.is_available() and dist.is_initialized()
        world, rank = (dist.get_world_size(), dist.get_rank()) if shared else (1, 0)
        super().__init__(rows, world, rank, shuffle, seed, drop_last)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[Any]:
        order = np.arange(len(self.dataset))  # type: ignore[arg-type]
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        own = np.resize(order, self._rows_each() * self.num_replicas)[self.rank :: self.num_replicas].tolist()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield own[start : start + self.batch_size]

    def __len__(self) -> int:
        rows = self._rows_each()
        return rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)

    def _rows_each(self) -> int:
        return -(-len(self.dataset) // self.num_replicas)  # type: ignore[arg-type]


class MultimodalData(L.LightningDataModule):
    """Reads, splits and standardises a set, and serves batches ``{inputs, masks, present, label, score}``.

    Everything is read once, on first use, and kept in memory; ``in_features`` and the other properties may be asked
    for at any time.

    Args:
        root: Folder of the set, or a ``.npz`` file.
        modalities: Modality name -> feature name or array; a list where both are the same. The order is kept.
        format: ``"mer2023"`` (see ``layout``) or ``"npz"`` (see ``npz``).
        frames: ``"utterance"``: one vector, the mean over the frames; ``"aligned"``: frames pooled to the length of
            the modality ``align_to``; ``"unaligned"``: own lengths.
        align_to: Modality that sets the length of aligned frames.
        max_frames: Longer sequences are average-pooled to this length.
        label: Column or array of the class, ``None`` for none, ``"auto"`` = ``emotion`` / ``label``.
        score: Column or array of the number to predict, ``None`` for none, ``"auto"`` = ``valence`` / none.
        split: Column or array of the part, ``None`` for none, ``"auto"`` = ``split`` / none.
        split_values: Part (train, val, test...) -> entry (or list of entries) in ``split``.
        group: Column or array whose values no two parts may share, such as the subject.
        fold_array: Column or array of fixed fold numbers, used instead of drawing folds.
        classes: Class names in order; ``None`` = the six emotions / what occurs.
        normalize: ``"train"``: standardise by the present training rows; ``"group"``: within each group, without
            labels; ``"none"``.
        folds: Number of folds, see ``folds.assign_parts`` for how they make up for a split without val or test.
        fold: Which fold.
        split_seed: Seed of the folds.
        batch_size: Rows in a batch (of each process).
        seed: Seed of the order of the training rows.
        drop_last: Leave out a last smaller training batch.
        max_rows: Keep at most this many rows, drawn with ``split_seed``, of each part (for quick trials).
        only: Leave out all other modalities: what a specialist for a subset trains and is tested on.

    Raises:
        DataError: One line that names the file, key or row and what is expected.
    """

    def __init__(
        self,
        root: str,
        modalities: dict[str, str] | list[str],
        format: Literal["mer2023", "npz"] = "mer2023",
        *,
        frames: Literal["utterance", "aligned", "unaligned"] = "utterance",
        align_to: str | None = None,
        max_frames: int | None = None,
        label: str | None = "auto",
        score: str | None = "auto",
        split: str | None = "auto",
        split_values: dict[str, Any] | None = None,
        group: str | None = None,
        fold_array: str | None = None,
        classes: list[str] | None = None,
        normalize: Literal["train", "group", "none"] = "train",
        folds: int = 5,
        fold: int = 0,
        split_seed: int = 0,
        batch_size: int = 32,
        seed: int = 0,
        drop_last: bool = False,
        max_rows: int | None = None,
        only: list[str] | None = None,
    ) -> None:
        super().__init__()
        check_option("format", format, tuple(READERS))
        check_option("normalize", normalize, ("train", "group", "none"))
        if normalize == "group" and group is None:
            raise DataError("normalize: 'group' expects a group column or array, got group = None")
        for name, value in {"batch_size": batch_size, "max_rows": max_rows, "max_frames": max_frames}.items():
            if value is not None and value < 1:
                raise DataError(f"{name}: expected at least 1, got {value}")
        self.root, self.format, self.modalities = root, format, _named(modalities)
        for name in only if only is not None else ():
            check_option("only", name, tuple(self.modalities))
        if only is not None and not only:
            raise DataError(f"only: expected at least one of {', '.join(self.modalities)}, got none")
        columns = {"label": label, "score": score, "split": split}
        self.columns = {key: COLUMNS[format][key] if name == "auto" else name for key, name in columns.items()}
        self.reading: dict[str, Any] = {
            "frames": frames,
            "align_to": align_to,
            "max_frames": max_frames,
            "split_values": split_values,
            "group": group,
            "fold_array": fold_array,
            "classes": classes,
            **self.columns,
        }
        self.splitting = {"folds": folds, "fold": fold, "seed": split_seed}
        self.normalize, self.max_rows, self.only = normalize, max_rows, only
        self.batch_size, self.seed, self.drop_last = batch_size, seed, drop_last
        self._sets: dict[str, MultimodalSet] | None = None
        self._class_names: list[str] = []

    def setup(self, stage: str | None = None) -> None:
        """Read the set; later calls do nothing."""
        if self._sets is not None:
            return
        source = READERS[self.format](self.root, self.modalities, **self.reading)
        rows = standardize_within_groups(source.rows) if self.normalize == "group" else source.rows
        parts = _parts(source, self.splitting)
        sets = {name: rows.subset(self._limit(index)) for name, index in parts.items()}
        if self.normalize == "train":
            standardizer = Standardizer.fit(sets["train"])
            sets = {name: standardizer.apply(part) for name, part in sets.items()}
        if self.only is not None:
            sets = {name: _only(name, part, self.only) for name, part in sets.items()}
        self._sets, self._class_names = sets, source.class_names

    def _limit(self, index: np.ndarray) -> np.ndarray:
        if self.max_rows is None or len(index) <= self.max_rows:
            return index
        rng = np.random.default_rng(self.splitting["seed"])
        return np.sort(rng.choice(index, self.max_rows, replace=False))

    @property
    def sets(self) -> dict[str, MultimodalSet]:
        """The parts: train, val, then the tests."""
        self.setup()
        assert self._sets is not None
        return self._sets

    @property
    def test_names(self) -> list[str]:
        """Names of the test parts, in the order of ``test_dataloader``."""
        return [name for name in self.sets if name not in ("train", "val")]

    @property
    def in_features(self) -> dict[str, int]:
        """Feature size of every modality, in order."""
        return {name: x.shape[-1] for name, x in self.sets["train"].features.items()}

    @property
    def sequences(self) -> list[str]:
        """Names of the modalities given as frames."""
        return self.sets["train"].sequences

    @property
    def class_names(self) -> list[str]:
        self.setup()
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 if there is no label."""
        return len(self.class_names)

    @property
    def num_values(self) -> int:
        """Number of scores to predict: 0 or 1."""
        return int(self.columns["score"] is not None)

    def loader(self, name: str, *, shuffle: bool = False) -> DataLoader[Any]:
        """Serve the part ``name`` in batches; ``shuffle`` = as in training."""
        check_option("split", name, tuple(self.sets))
        rows = RowBatches(self.sets[name])
        drop_last = shuffle and self.drop_last
        sampler = BatchIndices(rows, self.batch_size, shuffle=shuffle, seed=self.seed, drop_last=drop_last)
        # With a generator of its own the loader draws nothing from the global one.
        return DataLoader(rows, batch_size=None, sampler=sampler, generator=torch.Generator())

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader("val")

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader per test part."""
        if not self.test_names:
            raise DataError(f"{self.root}: expected a test part, the split has only {', '.join(self.sets)}")
        return [self.loader(name) for name in self.test_names]


def _named(modalities: dict[str, str] | Sequence[str]) -> dict[str, str]:
    """Give modality name -> reference; a listed array ``file.npz:name`` is named ``name``."""
    if isinstance(modalities, dict):
        named = dict(modalities)
    else:
        named = {reference.rpartition(":")[2]: reference for reference in modalities}
    if not named or len(named) != len(modalities):
        raise DataError(f"modalities: expected one or more different names, got {list(modalities)}")
    return named


def _parts(source: Source, splitting: dict[str, int]) -> dict[str, np.ndarray]:
    rows = source.rows
    group = None if rows.group is None else rows.group.numpy()
    return assign_parts(rows.label.numpy(), part=source.part, group=group, fold_array=source.fold, **splitting)


def _only(name: str, part: MultimodalSet, only: Sequence[str]) -> MultimodalSet:
    """Keep some modalities; rows that have none of them teach and select nothing, but stay in a test part."""
    part = part.keep_only(only)
    return part if name.startswith("test") else part.subset(part.present.any(1).nonzero().squeeze(1))
