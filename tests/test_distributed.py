"""What ranks do together is what one process does with all of their rows: values, gradients, errors."""

from __future__ import annotations

import time
import warnings

import pytest
import torch
from torch import Tensor

from mmrobust import distributed
from mmrobust._layouts import check_ranks
from mmrobust._similarity.pairs import row_logsumexp
from mmrobust._similarity.ring import ring_logsumexp
from mmrobust._similarity.units import Units, centred_units
from mmrobust.distributed import gather_rows, global_mean, global_sum
from tests.ranks import SECONDS, Ranks, part

SIZES = [(3, 3), (5, 2), (0, 4), (4, 0), (0, 0), (3, 3, 3), (4, 0, 1), (0, 0, 2), (1, 2, 3)]
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool),
]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def gather_everything(sizes: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        for shape in ((), (1,), (3,), (2, 3), (0,)):
            whole = (100 * normal(sum(sizes), *shape)).to(dtype)
            rows, offset, told = gather_rows(part(whole, sizes))
            assert rows.dtype == dtype
            assert torch.equal(rows, whole)
            assert told == sizes
            assert torch.equal(rows[offset:][: sizes[torch.distributed.get_rank()]], part(whole, sizes))
            assert not rows.requires_grad
    strided = normal(3, sum(sizes)).T
    assert torch.equal(gather_rows(part(strided, sizes)).rows, strided)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gather_in_the_order_of_the_ranks(ranks: Ranks, sizes: tuple[int, ...]) -> None:
    ranks(len(sizes), gather_everything, sizes)


def gather_gradients(sizes: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Give every rank a loss of its own: ``coefficients[rank] * rows``."""
    rank, whole = torch.distributed.get_rank(), normal(len(sizes), sum(sizes), 3)
    x = part(whole[0], sizes).to(dtype).requires_grad_()
    rows = gather_rows(x).rows
    (rows * whole[rank].to(dtype)).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    return x.grad, part(whole.sum(0), sizes)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.bfloat16, 0.02)], ids=str)
def test_gradients_of_all_ranks_are_added(
    ranks: Ranks, sizes: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    for got, want in ranks(len(sizes), gather_gradients, sizes, dtype):
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


def gather_without_need() -> None:
    """Rank 1 needs no gradient, rank 2 has no loss: rank 0 gets its gradient all the same."""
    rank = torch.distributed.get_rank()
    x = torch.ones(rank + 1, 2).requires_grad_(rank != 1)
    rows = gather_rows(x).rows
    assert rows.requires_grad
    (rows[:0].sum() if rank == 2 else (rank + 1) * rows.sum()).backward()
    if rank == 1:
        assert x.grad is None
    else:
        assert x.grad is not None
        assert torch.equal(x.grad, torch.full_like(x, 3.0))
    with torch.no_grad():
        assert not gather_rows(x).rows.requires_grad


def test_ranks_that_need_no_gradient(ranks: Ranks) -> None:
    ranks(3, gather_without_need)


def differentiate_twice() -> None:
    x = torch.ones(2, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(gather_rows(x).rows.pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.sum().backward()


def test_second_derivatives_are_refused(ranks: Ranks) -> None:
    ranks(2, differentiate_twice)


def add_up() -> None:
    rank = torch.distributed.get_rank()
    check_ranks("a loss", "features", torch.zeros(rank, 2), same={"option": 1})
    assert global_sum(torch.tensor([rank, 2])).tolist() == [3, 6]
    total = global_sum(torch.tensor([True, rank == 0]))
    assert (total.tolist(), total.dtype) == ([3, 1], torch.int64)
    x = torch.full((4, 2), 0.1 + rank, dtype=torch.float16, requires_grad=True).T
    assert (global_sum(x).dtype, global_sum(x).shape, global_sum(x).requires_grad) == (torch.float16, (2, 4), False)
    torch.testing.assert_close(global_sum(x).double(), torch.full((2, 4), 3.3, dtype=torch.float64), atol=2e-3, rtol=0)
    assert float(x.detach()[0, 0]) == pytest.approx(0.1 + rank, abs=1e-3), "the input was overwritten"
    part_of_mean = torch.tensor(float(rank), requires_grad=True)
    mean = global_mean(part_of_mean, torch.tensor(rank))
    assert float(mean.detach()) == rank  # 3 / (0 + 1 + 2) = 1
    assert float(global_sum(mean)) / 3 == 1.0  # the mean over ranks of what each returns
    assert float(torch.autograd.grad(mean, part_of_mean)[0]) == 1.0
    assert float(global_mean(torch.tensor(2.0), 0.25 if rank else 0.0)) == 12.0  # weights may add up to less than 1
    assert float(global_mean(torch.tensor(0.0), 0)) == 0.0


def test_sums_and_means(ranks: Ranks) -> None:
    ranks(3, add_up)


def test_one_process_changes_nothing(ranks: Ranks) -> None:
    ranks(1, use_alone)
    use_alone()


def use_alone() -> None:
    assert not distributed.is_active()
    check_ranks("a loss", "features", torch.tensor(0.0), same={})
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    rows, offset, sizes = gather_rows(x)
    assert rows is x
    assert (offset, sizes) == (0, (1,))
    assert torch.equal(global_sum(x), x)
    assert not global_sum(x).requires_grad
    losses = torch.rand(7)
    assert torch.equal(global_mean(losses.sum(), 7), losses.mean())
    compiled = torch.compile(lambda x: global_mean(gather_rows(x).rows.sum(), 2), backend="eager", fullgraph=True)
    assert float(compiled(x).detach()) == 1.5
    with pytest.raises(ValueError, match=r"gather_rows: expected features of shape \(B, \.\.\.\), got \(\)"):
        gather_rows(torch.tensor(1.0))
    with pytest.raises(TypeError, match="gather_rows: expected labels to be a tensor, got list"):
        gather_rows([1], "labels")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="global_mean: expected local_sum to be a floating-point tensor"):
        global_mean(torch.tensor(1), 1)


def disagree(kind: str) -> tuple[str, float]:
    rank, start = torch.distributed.get_rank(), time.monotonic()
    x = {
        "features": lambda: torch.zeros(rank, 8 + rank // 2),
        "dtype": lambda: torch.zeros(2, 8, dtype=torch.float64 if rank == 1 else torch.float32),
        "dimensions": lambda: torch.zeros(2, *[1] * 3 * rank),
        "scalar": lambda: torch.zeros((2,) * (rank > 0)),
        "too many": lambda: torch.zeros(*[1] * 9),
        "no dtype": lambda: torch.zeros(2, 2).to(torch.float8_e5m2),
        "gradient": lambda: torch.zeros(2, 8, requires_grad=True),
    }[kind]()
    with torch.set_grad_enabled(rank < 2), pytest.raises(ValueError) as caught:
        gather_rows(x, "embeddings")
    with torch.set_grad_enabled(rank < 2), pytest.raises(ValueError) as again:
        check_ranks("gather_rows", "embeddings", x, same={})
    assert str(again.value) == str(caught.value)
    assert int(global_sum(torch.tensor(1))) == 3, "the ranks are no longer in step"
    return str(caught.value), time.monotonic() - start


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("features", "got (0, 8) float32 on rank 0, (1, 8) float32 on rank 1, (2, 9) float32 on rank 2"),
        ("dtype", "(2, 8) float32 on rank 0, (2, 8) float64 on rank 1, (2, 8) float32 on rank 2"),
        ("dimensions", "(2,) float32 on rank 0, (2, 1, 1, 1) float32 on rank 1"),
        ("scalar", "() float32 on rank 0, (2,) float32 on rank 1"),
        ("too many", "(1, 1, 1, 1, 1, 1, 1, 1, ...)"),
        ("no dtype", "another dtype"),
        ("gradient", "no_grad or inference_mode on ranks [2]"),
    ],
)
def test_disagreement_raises_on_every_rank(ranks: Ranks, kind: str, says: str) -> None:
    messages, seconds = zip(*ranks(3, disagree, kind), strict=True)
    assert set(messages) == {messages[0]}
    assert messages[0].startswith("gather_rows: expected ")
    assert "embeddings" in messages[0]
    assert says in messages[0]
    assert max(seconds) < SECONDS / 2


def compile_and_compare() -> None:
    x = normal(torch.distributed.get_rank() + 2, 4).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        own = centred_units(x, torch.zeros(4, dtype=torch.float64))
        rows, offset, _ = gather_rows(own.u)
        keys = Units(rows, gather_rows(own.lost).rows)
        temperature = torch.tensor(0.5, dtype=torch.float64)
        both = row_logsumexp(own, keys, temperature, skip=offset), ring_logsumexp(own, own, temperature)
        return global_mean((both[0] - 2 * both[1]).sum(), x.shape[0])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what dynamo says about itself
        (got,) = torch.autograd.grad(torch.compile(loss, backend="eager")(x), x)
    torch.testing.assert_close(got, torch.autograd.grad(loss(x), x)[0])


def test_a_compiled_step_breaks_its_graph_for_collectives(ranks: Ranks) -> None:
    ranks(2, compile_and_compare)
