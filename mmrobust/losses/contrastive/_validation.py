"""What ``validate`` looks at, and what the ranks that share a loss have to agree on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from torch import Tensor

from ..._layouts import check_ranks, checked_together, exchange_numbers, is_active
from ._shared import Gather

T = TypeVar("T")


class Values(NamedTuple):
    """The arguments whose values can be wrong, the same ones on all ranks, None = not given; absent rows are zeros."""

    rows: Mapping[str, Tensor | None]  # (B, ..., D)
    temperature: float | Tensor
    weight: Tensor | None = None  # (B,)
    several: Mapping[str, Tensor | None] = {}  # labels (B, C), several per row

    def first_fault(self) -> tuple[int, int]:
        """Return the place, among those of :meth:`expected`, and the row of the first wrong value; -1 without."""
        wrong = [None if x is None else ~x.isfinite().flatten(1).all(1) for x in self.rows.values()]
        wrong.append(None if self.weight is None else ~(self.weight.isfinite() & (self.weight >= 0)))
        wrong += [None if x is None else ((x != 0) & (x != 1)).any(1) for x in self.several.values()]
        for place, rows in enumerate(wrong):
            if rows is not None and rows.any():
                return place, int(rows.nonzero()[0])
        return -1, -1

    def expected(self) -> list[tuple[str, str]]:
        """Return the name of every argument and what it has to be."""
        finite = [(name, "finite") for name in self.rows]
        return [*finite, ("weight", "finite and at least 0"), *((name, "0 or 1") for name in self.several)]


def check_values(where: str, values: Values, gather: Gather) -> None:
    """Raise ValueError that names the first row with a wrong value, or the temperature unless it is positive.

    With ``gather`` the same error is raised on every rank, so that none waits; there temperatures have to be equal.
    """
    t = values.temperature
    value = float(t.detach().min()) if isinstance(t, Tensor) else float(t)
    mine = [*values.first_fault(), value]
    over_ranks = bool(gather) and is_active()
    every = exchange_numbers(mine, next(iter(values.rows.values())).device) if over_ranks else [mine]  # type: ignore[union-attr]
    for rank, (place, row, temperature) in enumerate(every):
        at = f" on rank {rank}" if over_ranks else ""
        if place >= 0:
            name, allowed = values.expected()[int(place)]
            raise ValueError(f"{where}: expected {name} to be {allowed}, row {int(row)}{at} is not")
        if not 0 < temperature < math.inf:
            raise ValueError(f"{where}: expected temperature in (0.0, inf), got {temperature}{at}")
        if temperature != every[0][2]:
            raise ValueError(
                f"{where}: expected the same temperature on all ranks, got {every[0][2]} on rank 0, {temperature}{at}"
            )


def checked(check: Callable[[], T], x: object, gather: object) -> T:
    """Return what ``check`` returns, the arguments that are right; with ``gather`` the other ranks learn of errors."""
    return checked_together(check, x) if gather and is_active() else check()


def check_gather(where: str, first: tuple[str, Tensor], values: Values, gather: Gather, **same: object) -> None:
    """Raise ValueError on every rank unless rows, ``gather``, temperature and ``same`` fit together.

    ``first`` names rows that are representative of all. Temperatures that are tensors are left to ``validate``. What
    one rank alone finds wrong before, in :func:`checked`, is an error here.
    """
    if gather:
        wanting = [*values.rows.values(), values.temperature]
        wanted = any(isinstance(x, Tensor) and x.requires_grad for x in wanting)
        number = "a tensor" if isinstance(values.temperature, Tensor) else float(values.temperature)
        check_ranks(where, *first, differentiable=wanted, same={"gather": gather, "temperature": number, **same})
