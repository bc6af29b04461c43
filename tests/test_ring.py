"""Blocks of keys that travel around the ranks give what one process computes with all keys, in the memory of one."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmrobust._similarity.pairs import NO_KEY, row_logsumexp
from mmrobust._similarity.positives import class_energy
from mmrobust._similarity.ring import ring_class_energy, ring_logsumexp
from mmrobust._similarity.units import Units, centred_units
from mmrobust.distributed import gather_rows, global_sum
from tests.ranks import Ranks, part

# Queries and keys of every rank.
SIZES = [
    ((4,), (6,)),
    ((3, 5), (4, 2)),
    ((0, 3), (5, 0)),
    ((3, 0), (0, 0)),
    ((2, 3, 4), (5, 1, 0)),
    ((0, 2, 0), (0, 0, 6)),
    ((300, 1, 7), (2, 600, 300)),
]
CENTRE = torch.full((5,), 0.1, dtype=torch.float64)


class Case:
    """Queries, keys, labels, who counts, and weights of every row in the loss, for all ranks together."""

    def __init__(self, queries: int, keys: int, dtype: torch.dtype = torch.float64, temperature: float = 0.3) -> None:
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.randn(rows, 5, dtype=torch.float64, generator=generator) for rows in (queries, keys))
        x[queries // 2 :][:1] = 0.0  # has no direction
        y[keys // 3 :][:1] = 0.0
        self.x, self.y = x.to(dtype), y.to(dtype)
        self.labels, self.key_labels = (torch.randint(4, (rows,), generator=generator) for rows in (queries, keys))
        self.valid = torch.rand(keys, generator=generator) > 0.3
        self.weight = torch.randn(2, queries, dtype=torch.float64, generator=generator).to(dtype)
        self.temperature = torch.tensor(temperature, dtype=dtype)

    def of_rank(self, sizes: tuple[int, ...], key_sizes: tuple[int, ...]) -> None:
        """Keep what belongs to this rank."""
        self.x, self.labels, self.weight = part(self.x, sizes), part(self.labels, sizes), part(self.weight.T, sizes).T
        self.y, self.key_labels, self.valid = (part(z, key_sizes) for z in (self.y, self.key_labels, self.valid))

    def units(self) -> tuple[Units, Units]:
        self.x.requires_grad_()
        self.y.requires_grad_()
        self.temperature.requires_grad_()
        return centred_units(self.x, CENTRE), centred_units(self.y, CENTRE)

    def results(self, logsumexp: Tensor, energy: Tensor, count: Tensor) -> list[Tensor]:
        loss = torch.where(logsumexp > NO_KEY / 2, logsumexp, 0.0) @ self.weight[0] + energy @ self.weight[1]
        grads = torch.autograd.grad(loss, [self.x, self.y, self.temperature])
        return [x.detach() for x in (logsumexp, energy, count, *grads)]


def by_ring(sizes: tuple[int, ...], key_sizes: tuple[int, ...], masked: bool, options: dict[str, Any]) -> list[Tensor]:
    case = Case(sum(sizes), sum(key_sizes), **options)
    case.of_rank(sizes, key_sizes)
    queries, keys = case.units()
    valid = case.valid if masked and torch.distributed.get_rank() != 1 else None  # rank 1 does not care
    logsumexp = ring_logsumexp(queries, keys, case.temperature, key_valid=valid)
    *results, slope = case.results(logsumexp, *ring_class_energy(queries, case.labels, keys, case.key_labels, valid))
    return [*results, global_sum(slope)]


def by_one(sizes: tuple[int, ...], key_sizes: tuple[int, ...], masked: bool, options: dict[str, Any]) -> list[Tensor]:
    case = Case(sum(sizes), sum(key_sizes), **options)
    queries, keys = case.units()
    valid = case.valid.clone() if masked else None
    if valid is not None and len(key_sizes) > 1:
        valid[key_sizes[0] :][: key_sizes[1]] = True
    logsumexp = row_logsumexp(queries, keys, case.temperature, key_valid=valid)
    return case.results(logsumexp, *class_energy(queries, case.labels, keys, case.key_labels, valid))


def together(found: list[list[Tensor]]) -> list[Tensor]:
    """Join the rows of all ranks; the gradient of the temperature is equal on all of them."""
    *rows, slopes = zip(*found, strict=True)
    return [*(torch.cat(parts) for parts in rows), slopes[0]]


@pytest.mark.parametrize(("sizes", "key_sizes"), SIZES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [0.3, 1e-3])
def test_ring_is_one_process(
    ranks: Ranks, sizes: tuple[int, ...], key_sizes: tuple[int, ...], masked: bool, temperature: float
) -> None:
    arguments = sizes, key_sizes, masked, {"temperature": temperature}
    got, want = together(ranks(len(sizes), by_ring, *arguments)), by_one(*arguments)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10 / temperature)


def test_ring_in_single_precision(ranks: Ranks) -> None:
    single, double = ({"dtype": dtype, "temperature": 0.1} for dtype in (torch.float32, torch.float64))
    got = together(ranks(3, by_ring, *SIZES[-1], True, single))
    for one, other in zip(got, by_one(*SIZES[-1], True, double), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def without_themselves(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    x = part(Case(sum(sizes), 0).x, sizes).requires_grad_()
    own = centred_units(x, CENTRE)
    logsumexp = ring_logsumexp(own, own, torch.tensor(0.3, dtype=torch.float64), skip_own=True)
    logsumexp.clamp(min=-1e9).sum().backward()
    assert x.grad is not None
    return logsumexp.detach(), x.grad


@pytest.mark.parametrize("sizes", [(5,), (3, 4), (1, 0), (0, 0, 2), (3, 1, 300)], ids=str)
def test_rows_leave_themselves_out(ranks: Ranks, sizes: tuple[int, ...]) -> None:
    logsumexp, grad = (torch.cat(parts) for parts in zip(*ranks(len(sizes), without_themselves, sizes), strict=True))
    x = Case(sum(sizes), 0).x.requires_grad_()
    own = centred_units(x, CENTRE)
    want = row_logsumexp(own, own, torch.tensor(0.3, dtype=torch.float64), skip=0)
    want.clamp(min=-1e9).sum().backward()
    torch.testing.assert_close(logsumexp, want.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grad, x.grad, rtol=1e-10, atol=1e-10)
    if sum(sizes) == 1:
        assert logsumexp.tolist() == [NO_KEY]


def different_needs() -> None:
    """Only rank 0 needs gradients of keys; rank 1 needs none at all and still takes part in the backward pass."""
    rank = torch.distributed.get_rank()
    case = Case(6, 6)
    case.of_rank((2, 2, 2), (2, 2, 2))
    queries, keys = centred_units(case.x.requires_grad_(rank != 1), CENTRE), centred_units(case.y, CENTRE)
    keys = centred_units(case.y.requires_grad_(rank == 0), CENTRE)
    rows = ring_logsumexp(queries, keys, case.temperature)
    energy, count = ring_class_energy(queries, case.labels, keys, case.key_labels)
    assert rows.requires_grad
    assert energy.requires_grad
    assert not count.requires_grad
    (rows.sum() + energy.sum()).backward()
    assert (case.x.grad is None) == (rank == 1)
    assert (case.y.grad is None) == (rank != 0)
    whole = Case(6, 6)
    queries, keys = whole.units()
    want = row_logsumexp(queries, keys, whole.temperature).sum()
    want = want + class_energy(queries, whole.labels, keys, whole.key_labels)[0].sum()
    grads = torch.autograd.grad(want, [whole.x, whole.y])
    if rank != 1:
        torch.testing.assert_close(case.x.grad, part(grads[0], (2, 2, 2)), rtol=1e-10, atol=1e-10)
    if rank == 0:
        torch.testing.assert_close(case.y.grad, grads[1][:2], rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        assert not ring_logsumexp(queries, keys, whole.temperature).requires_grad


def test_ranks_with_different_needs(ranks: Ranks) -> None:
    ranks(3, different_needs)


def disagree(kind: str) -> str:
    rank = torch.distributed.get_rank()
    x = torch.zeros(rank, 4 + (rank if kind == "sizes" else 0), requires_grad=True)
    own, labels = centred_units(x, torch.zeros(x.shape[1])), torch.zeros(rank, dtype=torch.int64)
    with torch.set_grad_enabled(kind == "sizes" or rank == 0), pytest.raises(ValueError) as first:
        ring_logsumexp(own, own, torch.tensor(0.1))
    with torch.set_grad_enabled(kind == "sizes" or rank == 0), pytest.raises(ValueError) as second:
        ring_class_energy(own, labels, own, labels)
    assert int(global_sum(torch.tensor(1))) == 2, "the ranks are no longer in step"
    return f"{first.value} {second.value}"


@pytest.mark.parametrize(
    ("kind", "says"), [("sizes", "(0, 4) float32 on rank 0, (1, 5) float32 on rank 1"), ("gradient", "on ranks [1]")]
)
def test_disagreement_raises_on_every_rank(ranks: Ranks, kind: str, says: str) -> None:
    one, other = ranks(2, disagree, kind)
    assert one == other
    assert one.count(says) == 2
    assert one.startswith("ring_logsumexp: expected ")
    assert " ring_class_energy: expected " in one


class Memory(TorchDispatchMode):
    """Adds up the bytes of storages that are alive, and remembers the most there were, and the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self._count(x.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.alive += size
            self.peak, self.largest = max(self.peak, self.alive), max(self.largest, size)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.alive -= size


ROWS, FEATURES = 700, 300


def measure(form: str) -> tuple[int, int]:
    """Return the most bytes alive and the largest tensor, forward and backward."""
    generator = torch.Generator().manual_seed(torch.distributed.get_rank())
    x = torch.randn(ROWS, FEATURES, generator=generator, requires_grad=True)
    labels, temperature = torch.randint(9, (ROWS,), generator=generator), torch.tensor(0.1)
    own = centred_units(x, torch.zeros(FEATURES, dtype=torch.float64))
    with Memory() as memory:
        if form == "ring":
            rows = ring_logsumexp(own, own, temperature, skip_own=True)
            energy, _ = ring_class_energy(own, labels, own, labels)
        else:
            keys, offset, _ = gather_rows(own.u)
            every = Units(keys, gather_rows(own.lost).rows)
            rows = row_logsumexp(own, every, temperature, skip=offset)
            energy, _ = class_energy(own, labels, every, gather_rows(labels).rows)
        (rows.sum() + energy.sum()).backward()
    return memory.peak, memory.largest


def test_memory_does_not_grow_with_the_ranks(ranks: Ranks) -> None:
    block = ROWS * FEATURES * 4
    two, three, four = (ranks(world, measure, "ring") for world in (2, 3, 4))
    assert len({largest for _, largest in (*two, *three, *four)}) == 1
    assert max(peak for peak, _ in four) <= max(peak for peak, _ in three) + block / 100
    # With two ranks nothing is on its way while the last block is compared.
    assert max(peak for peak, _ in three) <= max(peak for peak, _ in two) + 1.1 * block
    gathered = [ranks(world, measure, "gather")[0] for world in (2, 3, 4)]
    assert gathered[0][1] < gathered[1][1] < gathered[2][1], "the measure sees no difference"
