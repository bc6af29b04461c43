"""What ranks tell each other before they exchange rows, so that those that disagree find out instead of waiting.

What is sent has a fixed size, whatever a rank brings, and every rank raises the same error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo

from ._checks import check_tensor

T = TypeVar("T")
_DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
_DIMENSIONS = 8  # how many are told to the other ranks
_OPTIONS = 8  # at most so many have to be the same


class Layout(NamedTuple):
    """What ranks tell each other about their rows before they send any."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    records: bool  # records operations for a backward pass
    differentiable: bool  # somebody there wants the gradient of the rows
    refused: bool  # raises an error of its own
    flags: tuple[int, ...]

    @property
    def fits(self) -> object:
        """Return what has to be equal on all ranks."""
        return self.shape[1:], self.dtype

    def __str__(self) -> str:
        shape = str(self.shape).replace("-1", "...")
        return f"{shape} {'another dtype' if self.dtype is None else str(self.dtype).removeprefix('torch.')}"


def is_active() -> bool:
    """Return whether there is a default process group of more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Return the number of processes that share a batch, 1 without a process group."""
    return dist.get_world_size() if is_active() else 1


def check_ranks(
    where: str, name: str, x: Tensor, *, differentiable: bool | None = None, same: Mapping[str, object]
) -> None:
    """Raise ValueError on every rank unless rows of all of them fit together and ``same`` is the same.

    What :func:`exchange_layouts` does before rows are sent, at the door of a function whose collectives depend on its
    options, or on a size that is that of rows. ``same`` has the same names on every rank, at most 8 of them, whose
    values are told apart by their ``repr``. Nothing in one process.
    """
    if is_active():
        _check_ranks(where, name, x, differentiable, same)


@_disable_dynamo
def _check_ranks(where: str, name: str, x: Tensor, differentiable: bool | None, same: Mapping[str, object]) -> None:
    marks = [crc32(repr(value).encode()) for value in same.values()]
    marks += [0] * (_OPTIONS - len(marks))
    layouts = exchange_layouts(where, name, x, *marks, differentiable=differentiable)
    for place, (option, value) in enumerate(same.items()):
        found = [layout.flags[place] for layout in layouts]
        other = [rank for rank, mark in enumerate(found) if mark != found[0]]
        if other:
            raise ValueError(
                f"{where}: expected the same {option} on all ranks, got {value!r} on rank {dist.get_rank()}; "
                f"ranks {other} differ from rank 0"
            )


@_disable_dynamo
def checked_together(check: Callable[[], T], x: object) -> T:
    """Return what ``check`` returns, which raises where arguments are wrong; then the other ranks learn of it.

    They are to call :func:`check_ranks` right after their own checks. ``x`` is there for its device.
    """
    try:
        return check()
    except Exception:
        device = x.device if isinstance(x, Tensor) else torch.device("cpu")
        _exchange([0, -1, 0, 0, 1, *[0] * (_DIMENSIONS + _OPTIONS)], device)
        raise


@_disable_dynamo
def exchange_layouts(
    where: str, name: str, x: Tensor, *flags: int, differentiable: bool | None = None
) -> tuple[Layout, ...]:
    """Return the layout of ``x`` on every rank; raise the same ValueError on all of them if these do not fit together.

    Not for one process. What is sent has a fixed size, so that ranks that disagree find out instead of waiting for
    bytes that never come.
    """
    check_tensor(where, name, x)
    records = torch.is_grad_enabled()
    wanted = records and (x.requires_grad if differentiable is None else differentiable)
    dtype = _DTYPES.index(x.dtype) if x.dtype in _DTYPES else -1
    sizes = [*x.shape[:_DIMENSIONS], *[0] * (_DIMENSIONS - x.dim())]
    numbers = [x.dim(), dtype, records, wanted, 0, *sizes, *flags]
    layouts = tuple(_layout(row) for row in _exchange(numbers, x.device))
    refused = [rank for rank, layout in enumerate(layouts) if layout.refused]
    if refused:
        raise ValueError(
            f"{where}: expected arguments that all ranks accept, refused on ranks {refused}, see there why"
        )
    wrong = any(not 0 < len(layout.shape) <= _DIMENSIONS or layout.dtype is None for layout in layouts)
    if wrong or len({layout.fits for layout in layouts}) > 1:
        found = ", ".join(f"{layout} on rank {rank}" for rank, layout in enumerate(layouts))
        raise ValueError(
            f"{where}: expected {name} of shape (B, ...) with sizes behind B and a dtype that agree on all ranks, "
            f"got {found}"
        )
    if any(layout.differentiable for layout in layouts) and not all(layout.records for layout in layouts):
        silent = [rank for rank, layout in enumerate(layouts) if not layout.records]
        raise ValueError(
            f"{where}: expected all ranks to record gradients, as some of them need those of {name}, "
            f"got no_grad or inference_mode on ranks {silent}"
        )
    return layouts


def _exchange(numbers: list[int], device: torch.device) -> list[list[int]]:
    return _exchanged(torch.tensor(numbers, dtype=torch.int64, device=device))  # type: ignore[no-any-return]


@_disable_dynamo
def exchange_numbers(numbers: list[float], device: torch.device) -> list[list[float]]:
    """Return the numbers of every rank, as many on all. Not for one process."""
    return _exchanged(torch.tensor(numbers, dtype=torch.float32, device=device))  # type: ignore[no-any-return]


def _exchanged(mine: Tensor) -> Any:
    all_gather(everyone := mine.new_empty(dist.get_world_size() * len(mine)), mine)
    return everyone.view(-1, len(mine)).tolist()


def all_gather(out: Tensor, x: Tensor) -> None:
    """Fill ``out`` with the tensors of all ranks, which have one size."""
    # PyTorch 2.13 renames it.
    (getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor)(out, x)


def _layout(numbers: list[int]) -> Layout:
    dimensions, dtype, records, differentiable, refused, *rest = numbers
    # More dimensions than were told: an error whose message has to show as much.
    shape = tuple(rest[: min(dimensions, _DIMENSIONS)]) + (-1,) * (dimensions > _DIMENSIONS)
    kind = None if dtype < 0 else _DTYPES[dtype]
    return Layout(shape, kind, bool(records), bool(differentiable), bool(refused), tuple(rest[_DIMENSIONS:]))
