"""The memory bank in several processes: the same on every rank, and what one process would hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mmrobust import MemoryBank
from mmrobust.distributed import global_sum
from tests.ranks import Ranks, part
from tests.test_memory import KINDS, D, S, assert_same, batch

# Rows of each rank at each step: even, uneven, and some that have none.
STEPS = {2: ((3, 3), (5, 2), (0, 6), (1, 1), (0, 0)), 3: ((3, 3, 3), (5, 0, 4), (1, 2, 3), (0, 0, 7))}
OPTIONS: dict[str, dict[str, Any]] = {
    **KINDS,
    "bfloat16": {"kind": "instance", "momentum": 0.5, "dtype": "bfloat16"},
    "validated": {"kind": "queue", "num_classes": 5, "validate": True, "warmup_updates": 3},
}


def bank_of(name: str) -> MemoryBank:
    return MemoryBank(2 * S if name != "validated" else 25, D, **OPTIONS[name])


def rows_of(name: str, step: int, rows: int) -> dict[str, Tensor]:
    found = batch(step, rows, torch.float32)
    if name == "instance" and step:  # labels are there at first, and stay
        del found["labels"]
    if name == "queue":
        del found["present"]
    return {
        key: value.clamp(min=0) if name == "validated" and key == "labels" else value for key, value in found.items()
    }


def fill(name: str, steps: tuple[tuple[int, ...], ...]) -> dict[str, Tensor]:
    bank = bank_of(name)
    for step, sizes in enumerate(steps):
        rows = rows_of(name, step, sum(sizes))
        bank.update(**{key: part(value, sizes) for key, value in rows.items()}, gather=True)
    return bank.state_dict()


@pytest.mark.parametrize("world", STEPS)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_rank_holds_what_one_process_would(ranks: Ranks, name: str, world: int) -> None:
    whole = bank_of(name)
    for step, sizes in enumerate(STEPS[world]):
        whole.update(**rows_of(name, step, sum(sizes)))
    assert whole.keys().present.any()
    for state in ranks(world, fill, name, STEPS[world]):
        got = bank_of(name)
        got.load_state_dict(state)
        assert_same(got, whole)


def refuse() -> tuple[int, str]:
    bank = bank_of("queue")
    bank.update(torch.ones(dist.get_rank() + 1, D))
    with pytest.raises(ValueError, match="at most size") as caught:
        bank.update(torch.ones((2 * S) * dist.get_rank() + 1, D), gather=True)
    return int(bank.keys().present.sum()), str(caught.value)


def test_ranks_are_apart_without_gather_and_refuse_together(ranks: Ranks) -> None:
    message = f"MemoryBank: expected a batch of all ranks together of at most size = {2 * S} rows, got {2 * S + 2}"
    assert ranks(2, refuse) == [(1, message), (2, message)]


def disagree() -> list[str]:
    rank, messages = dist.get_rank(), []
    for call in (
        lambda: bank_of("queue").update(torch.ones(2, D, dtype=torch.float64 if rank else torch.float32), gather=True),
        lambda: bank_of("queue").update(torch.ones(2, D), torch.ones(2).long() if rank else None, gather=True),
        lambda: MemoryBank(9, D, kind="instance").update(
            torch.ones(2, D), index=torch.arange(2) if rank else None, gather=True
        ),
        lambda: MemoryBank(9, D, num_classes=3).update(
            torch.ones(2, D), torch.ones(2).long() if rank else None, gather=True
        ),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        messages.append(str(caught.value))
    assert int(global_sum(torch.tensor(1))) == 2, "the ranks are no longer in step"
    return messages


def test_ranks_that_disagree_raise_together(ranks: Ranks) -> None:
    (dtype, labels, *own), (_, _, *others) = ranks(2, disagree)
    assert dtype.startswith("MemoryBank: expected features of shape (B, ...) with sizes behind B and a dtype")
    assert labels.startswith("MemoryBank: expected the same labels on all ranks, got ")
    assert own[0].startswith("MemoryBank: expected index, ")
    assert own[1].startswith("MemoryBank: expected labels, ")
    assert set(others) == {"MemoryBank: expected arguments that all ranks accept, refused on ranks [0], see there why"}


def test_gather_in_one_process_is_nothing() -> None:
    for name in OPTIONS:
        bank, other = bank_of(name), bank_of(name)
        rows = rows_of(name, 0, 5)
        bank.update(**rows, gather=True)
        other.update(**rows)
        assert_same(bank, other)
