"""Feeding a model: batches with several samples of several classes, as contrastive losses need them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from ._checks import check_size

Integers: TypeAlias = NDArray[np.int64]


class ClassBalancedBatchSampler(Sampler[list[int]]):
    r"""Draw batches of P classes with K samples each; an epoch shows every sample at least once.

    Hand it to ``DataLoader(batch_sampler=...)`` and call :meth:`set_epoch` at the start of every epoch. What it
    promises, with :math:`n_c` samples of class c:

    - **A batch** is P different classes, the K samples of each side by side. No sample is in it twice, unless its class
      has fewer than K: then all of them are, as equally often as possible.
    - **Within a class** samples come in rounds. A round is a fresh permutation cut into
      :math:`g_c = \lceil n_c / K \rceil` groups, the last of which is filled up from the beginning of the permutation.
      So a rare class is drawn again only after all of it has been seen, and then in another order.
    - **An epoch** has N batches: the smallest number that shows everything,
      :math:`\max(\lceil \sum_c g_c / P \rceil, \max_c g_c)`, or more on request, rounded up to a multiple of the
      ranks. All classes appear in it equally often (but for one), except those that need more to be shown whole. The
      appearances of a class are spread evenly over the epoch, with jitter.
    - **Ranks** take turns: batch i goes to rank i mod W, so that every rank gets equally many and no batch goes to two.
      Together they are the epoch of one process, up to the rounding of N. All ranks need the same arguments.
    - **The order** is a function of seed and epoch. There is no other state, and no global one is read or changed.

    Where a batch holds fewer than all classes, a frequent class has to appear more often than a rare one to be shown
    whole. More batches make them more equal: from :math:`\lceil C \max_c g_c / P \rceil` on all C classes appear
    equally often (but for one).

    Args:
        labels: Class of every sample: integers in a sequence, a NumPy array or a tensor ``(N,)``.
        classes_per_batch: Classes in a batch (P).
        samples_per_class: Samples of each of them (K); a batch has P K indices.
        seed: Seed of the order, not negative.
        rank: This process. ``None`` = what torch.distributed says when an epoch begins, 0 if it is not initialised.
        world_size: Number of processes (W); given with ``rank`` or not at all.
        num_batches: Batches per epoch of all ranks together, rounded up to a multiple of the ranks; ``None`` = the
            fewest that show everything.
        ignore_index: Samples with this label are left out.

    Raises:
        TypeError: If labels or sizes are no integers.
        ValueError: If there are no labels or fewer classes than ``classes_per_batch``, ``num_batches`` cannot show
            every sample, or a shape or a number is out of range.

    With Lightning, give the trainer ``use_distributed_sampler=False``; it calls :meth:`set_epoch` by itself.

    Example:
        >>> sampler = ClassBalancedBatchSampler([0, 0, 0, 0, 1, 1, 2, 2], classes_per_batch=2, samples_per_class=2)
        >>> len(sampler)
        2
        >>> sampler.set_epoch(1)
        >>> sorted(index for batch in sampler for index in batch)
        [0, 1, 2, 3, 4, 5, 6, 7]
    """

    def __init__(
        self,
        labels: Sequence[int] | NDArray[Any] | Tensor,
        classes_per_batch: int,
        samples_per_class: int,
        *,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        num_batches: int | None = None,
        ignore_index: int = -100,
    ) -> None:
        where = "ClassBalancedBatchSampler"
        check_size(where, "classes_per_batch", classes_per_batch)
        check_size(where, "samples_per_class", samples_per_class)
        check_size(where, "seed", seed, 0)
        _check_ranks(where, rank, world_size)
        self.classes_per_batch, self.samples_per_class, self.seed = classes_per_batch, samples_per_class, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self._start = 0
        kept, values = _labelled(where, labels, ignore_index)
        _, codes, self._sizes = np.unique(values, return_inverse=True, return_counts=True)
        if len(self._sizes) < classes_per_batch:
            most = f"at most {len(self._sizes)}, the number of classes"
            raise ValueError(f"{where}: expected classes_per_batch of {most}, got {classes_per_batch}")
        self._samples = kept[np.argsort(codes, kind="stable")]  # class by class
        self._groups = -(-self._sizes // samples_per_class)
        fewest = max(-(-int(self._groups.sum()) // classes_per_batch), int(self._groups.max()))
        self.num_batches = fewest if num_batches is None else num_batches
        check_size(where, "num_batches", self.num_batches)
        if self.num_batches < fewest:
            raise ValueError(
                f"{where}: expected num_batches of at least {fewest}, to show every sample, got {num_batches}"
            )

    @property
    def sampler(self) -> ClassBalancedBatchSampler:
        """Return itself, for this is where Lightning looks for :meth:`set_epoch`."""
        return self

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Set the epoch (0-based); without it every epoch has the same order.

        Args:
            epoch: The epoch.
            start: Batches of it that this rank has trained on already: the next iteration goes on behind them. That is
                all it takes to resume in the middle of an epoch, whatever a loader had fetched in advance.

        Raises:
            TypeError: If a number is no integer.
            ValueError: If one is negative, or ``start`` is beyond the end.
        """
        check_size("ClassBalancedBatchSampler", "epoch", epoch, 0)
        check_size("ClassBalancedBatchSampler", "start", start, 0)
        if start > len(self):
            raise ValueError(f"ClassBalancedBatchSampler: expected start of at most {len(self)}, got {start}")
        self.epoch, self._start = epoch, start

    def __len__(self) -> int:
        """Return the number of batches of this rank in an epoch."""
        return -(-self.num_batches // self._place()[1])

    def __iter__(self) -> Iterator[list[int]]:
        """Plan the epoch when its first batch is asked for, and yield the indices of this rank's batches.

        No sooner: Lightning makes an iterator before it sets the epoch of a resumed run.
        """
        start, self._start = self._start, 0
        for row in self._plan()[start:]:
            yield row.tolist()

    def _place(self) -> tuple[int, int]:
        if self.rank is not None and self.world_size is not None:
            return self.rank, self.world_size
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return 0, 1

    def _plan(self) -> Integers:
        """Return the indices ``(len(self), P * K)`` of this rank's batches."""
        rank, world_size = self._place()
        batches = len(self) * world_size
        rng = np.random.default_rng((self.seed, self.epoch))
        counts = _appearances(self._groups, batches, self.classes_per_batch, rng)
        table = _deal(counts, batches, self.classes_per_batch, rng)
        rounds = -(-counts // self._groups)
        shuffled = self._samples[_permutations(self._sizes, rounds, rng)]
        time = _times(table, counts)[rank::world_size]
        table = table[rank::world_size]
        size, groups = self._sizes[table], self._groups[table]
        # A group is a window of K on a circle of n_c: no sample twice, unless n_c < K.
        first = (_before(self._sizes * rounds)[table] + time // groups * size)[..., None]
        window = (time % groups * self.samples_per_class)[..., None] + np.arange(self.samples_per_class)
        plan: Integers = shuffled[first + window % size[..., None]].reshape(len(table), -1)
        return plan


def _check_ranks(where: str, rank: int | None, world_size: int | None) -> None:
    if (rank is None) != (world_size is None):
        raise ValueError(f"{where}: expected rank and world_size together, got {rank} and {world_size}")
    if rank is not None:
        check_size(where, "world_size", world_size)
        check_size(where, "rank", rank, 0)
        if world_size is not None and rank >= world_size:
            raise ValueError(f"{where}: expected rank below world_size = {world_size}, got {rank}")


def _labelled(where: str, labels: Sequence[int] | NDArray[Any] | Tensor, ignore_index: int) -> tuple[Integers, Any]:
    """Return the positions of the samples that have a label, and the labels there."""
    check_size(where, "ignore_index", ignore_index, -(2**63))
    values = np.asarray(labels.detach().to("cpu") if isinstance(labels, Tensor) else labels)
    if values.ndim != 1:
        raise ValueError(f"{where}: expected labels of shape (N,), got {values.shape}")
    if len(values) and values.dtype.kind not in "iu":
        raise TypeError(f"{where}: expected labels to be integers, got {values.dtype}")
    kept = np.flatnonzero(values != ignore_index)
    if not len(kept):
        raise ValueError(f"{where}: expected labels of at least one sample, got {len(values)}, none with a class")
    return kept, values[kept]


def _before(counts: Integers) -> Integers:
    """Return for each entry the sum of those before it."""
    return np.cumsum(counts) - counts


def _appearances(groups: Integers, batches: int, columns: int, rng: np.random.Generator) -> Integers:
    """Return how often each class appears: at least ``groups``, as equal as that allows, ``batches * columns`` in all.

    Like water over uneven ground: those below the level are lifted to it, and some of them, drawn anew every epoch, by
    one more.
    """
    total, level, above = batches * columns, 0, batches + 1
    while above - level > 1:
        middle = (level + above) // 2
        level, above = (middle, above) if np.maximum(groups, middle).sum() <= total else (level, middle)
    counts = np.maximum(groups, level)
    spare = total - int(counts.sum())
    counts[rng.permutation(np.flatnonzero(groups <= level))[:spare]] += 1
    return counts


def _deal(counts: Integers, batches: int, columns: int, rng: np.random.Generator) -> Integers:
    """Deal classes to batches: ``(batches, columns)``, each class ``counts`` times, in a batch at most once.

    Classes stand one behind the other in random order and are cut into columns. Within a column each batch gets one;
    only the class that runs on into the next column has to be kept out of the batches that it was dealt to already.
    """
    order = rng.permutation(len(counts))
    line = np.repeat(order, counts[order])
    nth = np.arange(len(line)) - np.repeat(_before(counts[order]), counts[order])
    when = (nth + rng.random(len(line))) / counts[line]  # evenly over the epoch, with jitter
    table = np.empty((batches, columns), dtype=np.int64)
    last, taken = -1, np.empty(0, dtype=np.int64)
    for column in range(columns):
        part = slice(column * batches, (column + 1) * batches)
        classes, times = line[part], when[part]
        head = int((classes == last).sum())
        free = np.delete(np.arange(batches), taken)
        edges = np.arange(head + 1) * len(free) // max(head, 1)
        mine = free[edges[:-1] + (rng.random(head) * np.diff(edges)).astype(np.int64)]
        table[mine, column] = classes[:head]
        others = np.delete(np.arange(batches), mine)
        table[others, column] = classes[head:][np.argsort(times[head:], kind="stable")]
        last = classes[-1]
        taken = np.flatnonzero(table[:, column] == last)
    return table


def _times(table: Integers, counts: Integers) -> Integers:
    """Return for each entry how often its class has appeared before."""
    order = np.argsort(table, axis=None, kind="stable")
    times = np.empty(table.size, dtype=np.int64)
    times[order] = np.arange(table.size) - np.repeat(_before(counts), counts)
    return times.reshape(table.shape)


def _permutations(sizes: Integers, rounds: Integers, rng: np.random.Generator) -> Integers:
    """Return ``rounds`` permutations of every class one behind the other, as positions among the samples by class."""
    length = np.repeat(sizes, rounds)  # of each permutation
    block = np.repeat(np.arange(len(length), dtype=np.int64), length)
    order = np.argsort(block << 32 | rng.integers(1 << 32, size=len(block)), kind="stable")
    return order - np.repeat(_before(length) - np.repeat(_before(sizes), rounds), length)
