"""The memory bank: storing a batch, and handing out the keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.case import Case, Contender, Problem, Setup, Size
from mmrobust import MemoryBank, MemoryKeys

_MOMENTUM = 0.5
_SIZES = (
    Size({"B": 32, "S": 4096, "D": 128}),
    Size({"B": 256, "S": 65536, "D": 128}),
    Size({"B": 4096, "S": 65536, "D": 128}, cpu="full"),
)


class Plain:
    """A bank as one would write it: the rows that are present are picked out, which waits for their number."""

    def __init__(self, setup: Setup, instance: bool) -> None:
        self.size, self.features = setup["S"], setup["D"]
        self.dtype, self.device, self.instance = setup.dtype, setup.device, instance
        self.reset()

    def reset(self) -> None:
        self.rows = torch.zeros(self.size, self.features, dtype=self.dtype, device=self.device)
        self.labels = torch.full((self.size,), -100, device=self.device)
        self.filled = torch.zeros(self.size, dtype=torch.bool, device=self.device)
        self.pointer = 0

    def update(self, x: Tensor, labels: Tensor, index: Tensor, present: Tensor) -> None:
        rows, labels, index = F.normalize(x[present]), labels[present], index[present]
        if self.instance:
            old = self.rows[index]
            mixed = F.normalize(_MOMENTUM * old + (1 - _MOMENTUM) * rows)
            rows = torch.where(self.filled[index].unsqueeze(1), mixed, rows)
        else:
            index = (self.pointer + torch.arange(len(rows), device=x.device)) % self.size
            self.pointer = (self.pointer + len(rows)) % self.size
        self.rows[index], self.labels[index], self.filled[index] = rows, labels, True

    def keys(self) -> MemoryKeys:
        return MemoryKeys(self.rows, self.labels, self.filled)


def _contender(bank: MemoryBank | Plain, inputs: tuple[Tensor, ...], copies: bool, **more: Any) -> Contender:
    def run(x: Tensor, labels: Tensor, index: Tensor, present: Tensor) -> Tensor:
        if isinstance(bank, Plain):
            bank.update(x, labels, index, present)
        else:
            bank.update(x, labels, index=index, present=present)
        keys = bank.keys()
        if copies:
            keys = MemoryKeys(keys.features.clone(), keys.labels.clone(), keys.present)
        return keys.present

    def twice(run: Callable[..., Any]) -> MemoryKeys:
        """Compare what banks hold after two batches that share rows."""
        bank.reset()
        for _ in range(2):
            run(*inputs)
        return bank.keys()

    return Contender(run, check=twice, **more)


def _build(setup: Setup, instance: bool) -> Problem:
    batch, size, features = setup["B S D"]
    inputs = (
        setup.normal(batch, features, grad=False),
        setup.labels(batch, classes=10),
        (torch.arange(batch) * 7 % size).to(setup.device),
        setup.mask(batch),
    )
    kind: Any = {"kind": "instance", "momentum": _MOMENTUM} if instance else {"kind": "queue"}
    contenders = {
        "ours": _contender(setup.module(lambda: MemoryBank(size, features, **kind)), inputs, False, kind="ours"),
        "eager": _contender(Plain(setup, instance), inputs, False, kind="eager", note="waits for the device"),
        "copies": _contender(Plain(setup, instance), inputs, True, note="hands out a copy of the bank, as is common"),
    }
    return Problem(contenders, inputs, gradients=False, compiles="no")


def build_queue(setup: Setup) -> Problem:
    return _build(setup, False)


def build_instance(setup: Setup) -> Problem:
    return _build(setup, True)


CASES = (
    Case("MemoryBank queue", build_queue, {"B": 4, "S": 19, "D": 5}, _SIZES, ("MemoryBank",)),
    Case("MemoryBank instance", build_instance, {"B": 4, "S": 29, "D": 5}, _SIZES, ("MemoryBank",)),
)
