"""Batches of texts of about the same length, and what padding costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from .encoders import Tokens
from .posts import Post

BATCHES_PER_POOL = 50


class TextSet(Dataset[dict[str, Tensor]]):
    """Posts whose items are whole batches: the key is a list of rows.

    Attributes:
        posts: The posts.
        tokens: Their tokens.
        states: Their states ``(T, H)`` in float16, or None: then inputs are token ids.
    """

    def __init__(self, posts: Sequence[Post], tokens: Tokens, states: list[np.ndarray] | None, pad_id: int = 0):
        self.posts, self.tokens, self.states, self.pad_id = list(posts), tokens, states, pad_id
        self.lengths = np.array([len(one) for one in tokens.ids], dtype=np.int64)
        self.labels = np.array([post.label for post in posts], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.posts)

    def __getitem__(self, index: int | Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """Give ``inputs (B, T)`` ids or ``(B, T, H)`` float32 states, ``mask (B, T)``, ``labels`` and ``index (B,)``.

        T is the longest of these rows; ``index`` counts the posts of the set.
        """
        rows = np.atleast_1d(np.asarray(index, dtype=np.int64))
        lengths = self.lengths[rows]
        width = max(int(lengths.max(initial=0)), 1)
        if self.states is None:
            inputs = torch.full((len(rows), width), self.pad_id)
        else:
            size = self.states[0].shape[1] if self.states else 0
            inputs = torch.zeros(len(rows), width, size)
        source = self.tokens.ids if self.states is None else self.states
        array = inputs.numpy()
        for i, row in enumerate(rows):
            array[i, : lengths[i]] = source[row]
        mask = torch.arange(width) < torch.from_numpy(lengths)[:, None]
        labels = torch.from_numpy(self.labels[rows])
        return {"inputs": inputs, "mask": mask, "labels": labels, "index": torch.from_numpy(rows)}


class LengthBatches(DistributedSampler[list[int]]):
    """Lists of rows of about the same length, one per batch; every row is in one batch of an epoch.

    In training rows are shuffled, sorted within pools of 50 batches, cut, and the batches are shuffled. The order
    depends on (seed, epoch) alone, so that a resumed run continues exactly. Several processes take turns, and the
    first batches fill up the last turn; in evaluation each of them gets all batches.

    Args:
        rows: The set.
        batch_size: Rows in a batch; the last one may have fewer.
        shuffle: As in training; otherwise the shortest rows come first.
        bucketing: False: rows stay where the shuffling put them, or in their order.
        seed: Seed of the order.
    """

    def __init__(self, rows: TextSet, batch_size: int, *, shuffle: bool, bucketing: bool = True, seed: int = 0):
        # The base class is what tells Lightning to leave this sampler in place.
        shared = shuffle and dist.is_available() and dist.is_initialized()
        world, rank = (dist.get_world_size(), dist.get_rank()) if shared else (1, 0)
        super().__init__(rows, world, rank, shuffle, seed)
        self.lengths, self.batch_size, self.bucketing = rows.lengths, batch_size, bucketing

    def plan(self) -> list[np.ndarray]:
        """Give the batches of this epoch, of all processes together."""
        size, rows = self.batch_size, len(self.lengths)
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(rows) if self.shuffle else np.arange(rows)
        if self.bucketing:
            pool = size * BATCHES_PER_POOL if self.shuffle else max(rows, 1)
            pools = [order[start : start + pool] for start in range(0, rows, pool)]
            order = np.concatenate([p[np.argsort(self.lengths[p], kind="stable")] for p in pools] or [order])
        batches = [order[start : start + size] for start in range(0, rows, size)]
        if self.bucketing and self.shuffle:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def __iter__(self) -> Iterator[Any]:
        batches = self.plan()
        for turn in range(len(self)):
            yield batches[(turn * self.num_replicas + self.rank) % len(batches)].tolist()

    def __len__(self) -> int:
        batches = -(-len(self.lengths) // self.batch_size)
        return -(-batches // self.num_replicas)


def padding_share(lengths: np.ndarray, batches: Sequence[Sequence[int] | np.ndarray]) -> float:
    """Return the share of padding among all tokens of batches: what a model computes for nothing.

    Example:
        >>> padding_share(np.array([1, 3, 4]), [[0, 2], [1]])
        0.2727...
    """
    real = sum(int(lengths[np.asarray(rows)].sum()) for rows in batches)
    padded = sum(len(rows) * int(lengths[np.asarray(rows)].max(initial=0)) for rows in batches)
    return 1 - real / padded if padded else 0.0
