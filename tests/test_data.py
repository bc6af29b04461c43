"""The class-balanced batch sampler: what every batch holds, what an epoch shows, and what ranks share."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from mmrobust import ClassBalancedBatchSampler

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=9)


def labels_of(sizes: list[int], seed: int = 0) -> np.ndarray:
    """Labels that are neither consecutive nor sorted."""
    return np.random.default_rng(seed).permutation(np.repeat(3 * np.arange(len(sizes)) - 5, sizes))


def epoch_of(labels: Any, *args: Any, epoch: int = 0, **options: Any) -> list[list[int]]:
    sampler = ClassBalancedBatchSampler(labels, *args, **options)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


def fewest(sizes: list[int], classes: int, samples: int) -> int:
    groups = [-(-size // samples) for size in sizes]
    return max(-(-sum(groups) // classes), max(groups))


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], int, int]:
    counts = draw(sizes)
    return counts, draw(st.integers(1, len(counts))), draw(st.integers(1, 7))


class TestBatches:
    @settings(max_examples=150)
    @given(problem=problems(), seed=st.integers(0, 99), extra=st.integers(0, 9))
    def test_quota_coverage_and_balance(self, problem: tuple[list[int], int, int], seed: int, extra: int) -> None:
        counts, classes, samples = problem
        labels = labels_of(counts, seed)
        number = fewest(counts, classes, samples) + extra
        batches = epoch_of(labels, classes, samples, seed=seed, num_batches=number if extra else None)
        assert len(batches) == number
        size_of = Counter(labels.tolist())
        shown: Counter[int] = Counter()
        for batch in batches:
            groups = np.array(batch).reshape(classes, samples)
            own = labels[groups]
            assert (own == own[:, :1]).all(), "the samples of a class lie side by side"
            assert len(set(own[:, 0])) == classes
            shown.update(own[:, 0].tolist())
            for label, group in zip(own[:, 0].tolist(), groups.tolist(), strict=True):
                times = Counter(group)
                assert len(times) == min(samples, size_of[label])
                assert max(times.values()) - min(times.values()) <= 1
        drawn = Counter(index for batch in batches for index in batch)
        assert set(drawn) == set(range(len(labels))), "every sample is shown"
        least = {label: -(-size // samples) for label, size in size_of.items()}
        assert all(shown[label] >= least[label] for label in size_of)
        low = min(shown.values())
        assert all(times <= low + 1 or times == least[label] for label, times in shown.items()), "as equal as it gets"

    @settings(max_examples=60)
    @given(problem=problems(), seed=st.integers(0, 9))
    def test_rounds(self, problem: tuple[list[int], int, int], seed: int) -> None:
        """A class is drawn again only after all of it has been seen, and in another order."""
        counts, classes, samples = problem
        labels = labels_of(counts)
        number = fewest(counts, classes, samples) * 3
        by_class: dict[int, list[list[int]]] = {}
        for batch in epoch_of(labels, classes, samples, seed=seed, num_batches=number):
            for group in np.array(batch).reshape(classes, samples).tolist():
                by_class.setdefault(int(labels[group[0]]), []).append(group)
        for label, groups in by_class.items():
            size = int((labels == label).sum())
            length = -(-size // samples)
            for start in range(0, len(groups) - length + 1, length):
                part = [index for group in groups[start : start + length] for index in group]
                assert set(part[:size]) == set(np.flatnonzero(labels == label).tolist())
                assert part[size:] == [part[i % size] for i in range(size, length * samples)]

    def test_rounds_differ(self) -> None:
        batches = epoch_of([0] * 8 + [1] * 400, 2, 4)
        rare = [tuple(batch[:4]) if batch[0] < 8 else tuple(batch[4:]) for batch in batches]
        assert len({frozenset(group) for group in rare}) > 30

    def test_equal_classes_are_dealt_out_evenly(self) -> None:
        """Every tenth of the epoch has each of 20 classes once or, by jitter, twice or not at all."""
        labels = np.repeat(np.arange(20), 40)
        batches = np.array(epoch_of(labels, 2, 4))
        own = labels[batches[:, ::4]]
        assert own.shape == (100, 2)
        times = np.stack([np.bincount(part.ravel(), minlength=20) for part in np.split(own, 10)])
        assert (times.sum(0) == 10).all()
        assert times.max() <= 2
        assert (times == 1).mean() > 0.5

    def test_every_pair_of_classes_meets(self) -> None:
        labels = np.repeat(np.arange(8), 30)
        met = set()
        for epoch in range(6):
            for batch in epoch_of(labels, 3, 5, epoch=epoch):
                own = labels[batch[::5]].tolist()
                met |= {(a, b) for a in own for b in own if a < b}
        assert len(met) == 28

    def test_enough_batches_make_all_classes_equal(self) -> None:
        labels = labels_of([100, 10, 10, 10, 1])
        batches = epoch_of(labels, 2, 5, num_batches=50)
        shown = Counter(labels[index] for batch in batches for index in batch[::5])
        assert set(shown.values()) == {20}

    def test_unlabelled_samples_are_left_out(self) -> None:
        labels = np.array([0, -100, 1, 1, -100, 0])
        assert {index for batch in epoch_of(labels, 2, 1) for index in batch} == {0, 2, 3, 5}
        assert {index for batch in epoch_of(labels, 1, 1, ignore_index=1) for index in batch} == {0, 1, 4, 5}

    @pytest.mark.parametrize(
        "labels",
        [[2, 0, 2, 0, 1], (2, 0, 2, 0, 1), np.array([2, 0, 2, 0, 1], np.uint8), torch.tensor([2, 0, 2, 0, 1])],
        ids=["list", "tuple", "array", "tensor"],
    )
    def test_kinds_of_labels(self, labels: Any) -> None:
        assert epoch_of(labels, 2, 1, seed=4) == epoch_of(np.array([2, 0, 2, 0, 1]), 2, 1, seed=4)


class TestRanks:
    @settings(max_examples=60)
    @given(problem=problems(), world=st.integers(1, 5), seed=st.integers(0, 9))
    def test_ranks_share_out_the_epoch(self, problem: tuple[list[int], int, int], world: int, seed: int) -> None:
        counts, classes, samples = problem
        labels = labels_of(counts)
        number = -(-fewest(counts, classes, samples) // world) * world
        whole = epoch_of(labels, classes, samples, seed=seed, num_batches=number)
        parts = [epoch_of(labels, classes, samples, seed=seed, rank=r, world_size=world) for r in range(world)]
        assert {len(part) for part in parts} == {number // world}
        assert [batch for step in zip(*parts, strict=True) for batch in step] == whole

    def test_samples_of_a_step_differ_between_ranks(self) -> None:
        """Where a class has enough samples, ranks that hold it at the same time hold different ones of it."""
        labels = np.repeat([0, 1], 64)
        parts = [epoch_of(labels, 2, 8, rank=rank, world_size=4) for rank in range(4)]
        for step in zip(*parts, strict=True):
            assert len({index for batch in step for index in batch}) == 64

    def test_rank_is_asked_for_when_the_epoch_begins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        labels = labels_of([9, 7, 5])
        sampler = ClassBalancedBatchSampler(labels, 2, 2)
        assert len(sampler) == 6
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
        assert len(sampler) == 2
        assert list(sampler) == epoch_of(labels, 2, 2, rank=1, world_size=4)


class TestOrder:
    def test_seed_and_epoch_decide(self) -> None:
        labels = labels_of([30, 20, 10])
        numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
        first, again = (epoch_of(labels, 2, 4, seed=1, epoch=2) for _ in range(2))
        assert first == again
        assert first != epoch_of(labels, 2, 4, seed=1, epoch=3)
        assert first != epoch_of(labels, 2, 4, seed=2, epoch=2)
        assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), torch_state)

    def test_an_iterator_made_before_the_epoch_is_set_follows_it(self) -> None:
        sampler = ClassBalancedBatchSampler([0, 0, 0, 0, 1, 1, 1, 1], 2, 2)
        early = iter(sampler)  # as Lightning does when it resumes a run
        sampler.set_epoch(3)
        assert list(early) == list(sampler)

    def test_without_set_epoch_the_order_stays(self) -> None:
        sampler = ClassBalancedBatchSampler(labels_of([30, 20]), 2, 4)
        assert list(sampler) == list(sampler)

    @pytest.mark.parametrize("start", [0, 1, 4, 5])
    def test_resumes_in_the_middle_of_an_epoch(self, start: int) -> None:
        labels = labels_of([33, 20, 10])
        options = {"seed": 3, "rank": 1, "world_size": 2}
        whole = epoch_of(labels, 2, 4, epoch=7, **options)
        assert len(whole) == 5
        sampler = ClassBalancedBatchSampler(labels, 2, 4, **options)
        sampler.set_epoch(7, start=start)
        assert list(sampler) == whole[start:]
        assert list(sampler) == whole, "the next iteration begins at the beginning"

    def test_indices_are_plain_integers(self) -> None:
        assert {type(index) for batch in epoch_of([0, 1], 2, 3) for index in batch} == {int}


class TestLoaders:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_data_loader(self, workers: int) -> None:
        labels = torch.as_tensor(labels_of([12, 9, 4]))
        sampler = ClassBalancedBatchSampler(labels, 2, 3)
        loader = DataLoader(
            TensorDataset(torch.arange(25)), batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0
        )
        assert len(loader) == len(sampler)
        for epoch in range(2):
            sampler.set_epoch(epoch)
            seen = [rows.tolist() for (rows,) in loader]
            assert seen == epoch_of(labels, 2, 3, epoch=epoch)

    @pytest.mark.filterwarnings("ignore")
    def test_lightning_sets_the_epoch(self) -> None:
        import lightning

        class Watch(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(1, 1)
                self.seen: list[list[int]] = []

            def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
                self.seen.append(batch[0].tolist())
                return self.layer(batch[0].float().unsqueeze(1)).sum()

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), 0.0)

        labels, model = labels_of([6, 4]), Watch()
        loader = DataLoader(TensorDataset(torch.arange(10)), batch_sampler=ClassBalancedBatchSampler(labels, 2, 2))
        trainer = lightning.Trainer(
            max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, accelerator="cpu", use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(model, loader)
        assert model.seen == epoch_of(labels, 2, 2, epoch=0) + epoch_of(labels, 2, 2, epoch=1)


def test_a_million_samples_take_seconds() -> None:
    shares = 1.0 / np.arange(1, 1001)
    labels = np.random.default_rng(0).choice(1000, 1_000_000, p=shares / shares.sum())
    begin = time.process_time()
    sampler = ClassBalancedBatchSampler(labels, 32, 4)
    first = next(iter(sampler))
    assert time.process_time() - begin < 20.0, "about a second on one core"
    assert len(first) == 128


WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ("classes", ([0, 1, 1], 3, 1), {}, ValueError, ("classes_per_batch", "at most 2", "3")),
    ("no-class", ([0, 1], 0, 1), {}, ValueError, ("classes_per_batch", "at least 1", "0")),
    ("samples", ([0, 1], 2, 0), {}, ValueError, ("samples_per_class", "at least 1", "0")),
    ("samples-float", ([0, 1], 2, 2.0), {}, TypeError, ("samples_per_class", "integer", "float")),
    ("float", ([0.0, 1.0], 2, 1), {}, TypeError, ("labels", "integers", "float64")),
    ("float-tensor", (torch.ones(3), 1, 1), {}, TypeError, ("labels", "integers", "float32")),
    ("bool", (torch.ones(3) > 0, 1, 1), {}, TypeError, ("labels", "integers", "bool")),
    ("text", (["a", "b"], 1, 1), {}, TypeError, ("labels", "integers")),
    ("empty", ([], 1, 1), {}, ValueError, ("labels", "at least one sample", "0")),
    ("ignored", ([-100, -100], 1, 1), {}, ValueError, ("labels", "at least one sample", "2")),
    ("matrix", (torch.ones(3, 1).long(), 1, 1), {}, ValueError, ("labels", "(N,)", "(3, 1)")),
    ("seed", ([0], 1, 1), {"seed": -1}, ValueError, ("seed", "at least 0", "-1")),
    ("rank", ([0], 1, 1), {"rank": 2, "world_size": 2}, ValueError, ("rank", "world_size = 2", "2")),
    ("rank-negative", ([0], 1, 1), {"rank": -1, "world_size": 2}, ValueError, ("rank", "at least 0", "-1")),
    ("rank-alone", ([0], 1, 1), {"rank": 1}, ValueError, ("rank and world_size together", "1 and None")),
    ("world", ([0], 1, 1), {"rank": 0, "world_size": 0}, ValueError, ("world_size", "at least 1", "0")),
    ("batches", ([0] * 9, 1, 2), {"num_batches": 4}, ValueError, ("num_batches", "at least 5", "every sample", "4")),
]


@pytest.mark.parametrize(("args", "options", "error", "says"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_use(
    args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], says: tuple[str, ...]
) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        ClassBalancedBatchSampler(*args, **options)
    assert caught.type is error
    message = str(caught.value)
    assert message.startswith("ClassBalancedBatchSampler: expected ")
    for piece in (*says, "got"):
        assert piece in message, f"{piece!r} is missing in {message!r}"


def test_wrong_epoch() -> None:
    sampler = ClassBalancedBatchSampler([0] * 9, 1, 2)
    for options, says in (({"epoch": -1}, "epoch"), ({"epoch": 0, "start": 6}, "start of at most 5, got 6")):
        with pytest.raises(ValueError, match=f"ClassBalancedBatchSampler: expected {says}"):
            sampler.set_epoch(**options)
