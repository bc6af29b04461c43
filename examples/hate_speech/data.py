"""Lightning data module for texts: token ids to fine-tune on, or the cached states of a frozen encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from examples.pipeline.errors import check_option
from mmrobust import ClassBalancedBatchSampler

from .batches import LengthBatches, TextSet, padding_share
from .encoders import TextEncoder, Tokens, load_encoder
from .posts import Post, plural
from .readers import PARTS, Corpus, DataError, read_corpus
from .states import token_states

__all__ = ["DataError", "LengthBatches", "TextData", "TextSet", "padding_share"]


class TextData(L.LightningDataModule):
    """Reads a corpus, cuts it into tokens, and serves batches ``{inputs, mask, labels, index}``.

    Everything is read once, on first use; the properties may be asked for at any time.

    Args:
        root: Folder of the corpus, see ``readers.read_corpus``.
        encoder: ``"minilm"``, ``"tiny"``, a folder or a name on the hub, see ``encoders.load_encoder``.
        frozen: Serve the states of the encoder, computed once and cached; otherwise token ids, to fine-tune on.
        max_tokens: Longer texts are cut, and counted in ``notes``.
        batch_size: Posts in a batch (of each process).
        fold: Fold of a corpus without an official split.
        bucketing: Put posts of about the same length into a batch, so that there is little padding.
        balanced: Draw training batches of as many posts of each class, by ``mmrobust.ClassBalancedBatchSampler``
            (which takes the place of bucketing there). With several processes give the trainer
            ``use_distributed_sampler=False``.
        classes_per_batch: Classes in a balanced batch; ``None`` = all.
        samples_per_class: Posts of each of them; ``None`` = as many as ``batch_size`` holds.
        cache: Folder for the states of frozen encoders; ``None`` = keep them in memory.
        seed: Seed of the order of the training posts.
        max_posts: Keep at most this many posts of each part (for quick trials).

    Raises:
        DataError: One line that names the file, line or option and what is expected.
    """

    def __init__(
        self,
        root: str,
        encoder: str = "minilm",
        *,
        frozen: bool = True,
        max_tokens: int = 128,
        batch_size: int = 32,
        fold: int = 0,
        bucketing: bool = True,
        balanced: bool = False,
        classes_per_batch: int | None = None,
        samples_per_class: int | None = None,
        cache: str | None = "runs/states",
        seed: int = 0,
        max_posts: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "batch_size": batch_size,
            "classes_per_batch": classes_per_batch,
            "samples_per_class": samples_per_class,
            "max_posts": max_posts,
        }
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise DataError(f"{name}: expected at least 1, got {value}")
        self.root, self.encoder_name, self.frozen, self.max_tokens = root, encoder, frozen, max_tokens
        self.batch_size, self.fold, self.bucketing, self.balanced = batch_size, fold, bucketing, balanced
        self.classes_per_batch, self.samples_per_class = classes_per_batch, samples_per_class
        self.cache, self.seed, self.max_posts = cache, seed, max_posts
        self._corpus: Corpus | None = None
        self._encoder: TextEncoder | None = None
        self._sets: dict[str, TextSet] | None = None

    def prepare_data(self) -> None:
        """Fill the cache, in one process before the others need it."""
        if self.frozen and self.cache is not None:
            self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read the corpus, make tokens and states; later calls do nothing."""
        if self._sets is not None:
            return
        splits = self.corpus.splits
        sets = {
            part: TextSet(splits[part], self.encoder.encode(splits[part]), None, self.encoder.pad_id) for part in PARTS
        }
        if self.frozen:
            # All parts at once: the folds of a corpus share one cache.
            states = iter(token_states(self.encoder, [post for part in PARTS for post in splits[part]], self.cache))
            for rows in sets.values():
                rows.states = [next(states) for _ in rows.posts]
        self._sets = sets

    def text_set(self, posts: Sequence[Post], *, cache: str | None = None) -> TextSet:
        """Make a set of any posts with this encoder, such as texts to explain or another corpus."""
        tokens = self.encoder.encode(posts)
        states = token_states(self.encoder, posts, cache) if self.frozen else None
        return TextSet(posts, tokens, states, self.encoder.pad_id)

    @property
    def corpus(self) -> Corpus:
        """The corpus, after ``max_posts``."""
        if self._corpus is None:
            corpus = read_corpus(self.root, fold=self.fold)
            self._corpus = corpus._replace(splits={part: self._limit(x) for part, x in corpus.splits.items()})
        return self._corpus

    def _limit(self, posts: list[Post]) -> list[Post]:
        if self.max_posts is None or len(posts) <= self.max_posts:
            return posts
        rows = np.random.default_rng(0).choice(len(posts), self.max_posts, replace=False)
        return [posts[i] for i in np.sort(rows)]

    @property
    def encoder(self) -> TextEncoder:
        """The encoder; a vocabulary made of the data is made of the training posts."""
        if self._encoder is None:
            posts = self.corpus.splits["train"] if self.encoder_name == "tiny" else None
            self._encoder = load_encoder(self.encoder_name, self.max_tokens, posts)
        return self._encoder

    @property
    def sets(self) -> dict[str, TextSet]:
        """The parts: train, val, test."""
        self.setup()
        assert self._sets is not None
        return self._sets

    @property
    def classes(self) -> tuple[str, ...]:
        return self.corpus.classes

    @property
    def hidden_features(self) -> int:
        return self.encoder.hidden_features

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know about the data: notes of the reader, and how many texts were cut."""
        more = cut_notes({part: rows.tokens for part, rows in self.sets.items()}, self.max_tokens)
        if self.max_posts is not None:
            more += (f"**a trial**: at most {self.max_posts} posts of each part; counts of the lines above are of all",)
        return self.corpus.notes + more

    def tokens(self, split: str) -> list[np.ndarray]:
        """Give the character ranges of the tokens of each post, ``(T, 2)``; those of special tokens are empty."""
        check_option("split", split, PARTS)
        return self.sets[split].tokens.offsets

    def class_weight(self) -> Tensor:
        """Return weights ``(C,)`` of the classes: n / (C n_c) of the training posts, 0 without any."""
        labels = [post.label for post in self.corpus.splits["train"]]  # no token states are needed for them
        counts = np.bincount(labels, minlength=len(self.classes))
        weight = counts.sum() / (len(counts) * np.maximum(counts, 1)) * (counts > 0)
        return torch.from_numpy(weight).float()

    def padding(self, split: str = "train") -> dict[str, float]:
        """Return the share of padding in the first epoch, ``"plain"`` and ``"bucketed"``."""
        check_option("split", split, PARTS)
        rows, shuffle = self.sets[split], split == "train"
        batches = {
            name: LengthBatches(rows, self.batch_size, shuffle=shuffle, bucketing=bucketing, seed=self.seed).plan()
            for name, bucketing in (("plain", False), ("bucketed", True))
        }
        return {name: padding_share(rows.lengths, plan) for name, plan in batches.items()}

    def loader(self, split: str, *, shuffle: bool = False) -> DataLoader[Any]:
        """Serve a part in batches; ``shuffle`` = as in training."""
        check_option("split", split, PARTS)
        rows = self.sets[split]
        sampler: Any = self._balanced(rows) if shuffle and self.balanced else None
        if sampler is None:
            sampler = LengthBatches(rows, self.batch_size, shuffle=shuffle, bucketing=self.bucketing, seed=self.seed)
        # With a generator of its own the loader draws nothing from the global one.
        return DataLoader(rows, batch_size=None, sampler=sampler, generator=torch.Generator())

    def _balanced(self, rows: TextSet) -> ClassBalancedBatchSampler:
        found = len(np.unique(rows.labels))
        classes = found if self.classes_per_batch is None else self.classes_per_batch
        if classes > found:
            raise DataError(f"classes_per_batch: expected at most {found}, the classes in train, got {classes}")
        each = self.samples_per_class or max(self.batch_size // classes, 1)
        return ClassBalancedBatchSampler(rows.labels, classes, each, seed=self.seed)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader("test")


def cut_notes(parts: Mapping[str, Tokens], max_tokens: int, *, of: str = "") -> tuple[str, ...]:
    """Say how many texts were cut, of each part."""
    places = ", ".join(f"{part} {tokens.truncated}" for part, tokens in parts.items() if tokens.truncated)
    total = sum(tokens.truncated for tokens in parts.values())
    return (f"{plural(total, 'text')}{of} of more than {max_tokens} tokens cut ({places})",) if places else ()
