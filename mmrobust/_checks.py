"""Argument checks: every message names the caller, the argument, what was given and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

_MASK_DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _expected(dims: dict[str, int | None]) -> str:
    letters = ", ".join(dims) + ("," if len(dims) == 1 else "")
    if all(size is None for size in dims.values()):
        return f"({letters})"
    sizes = ", ".join("any" if size is None else str(size) for size in dims.values())
    return f"({letters}) = ({sizes}{',' if len(dims) == 1 else ''})"


def check_tensor(where: str, name: str, x: object) -> None:
    """Raise TypeError unless ``x`` is a tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{where}: expected {name} to be a tensor, got {type(x).__name__}")


def check_floating(where: str, name: str, x: object) -> None:
    """Raise TypeError unless ``x`` is a floating-point tensor."""
    check_tensor(where, name, x)
    assert isinstance(x, Tensor)
    if not x.is_floating_point():
        raise TypeError(f"{where}: expected {name} to be a floating-point tensor, got {x.dtype}")


def check_integers(where: str, name: str, x: object) -> None:
    """Raise TypeError unless ``x`` is a tensor of integers."""
    check_tensor(where, name, x)
    assert isinstance(x, Tensor)
    if x.dtype not in _MASK_DTYPES[1:]:
        raise TypeError(f"{where}: expected {name} to be an integer tensor, got {x.dtype}")


def check_shape(where: str, name: str, x: Tensor, **dims: int | None) -> None:
    """Raise ValueError unless ``x`` has one dimension per letter, each of the given size (``None`` = any)."""
    check_tensor(where, name, x)
    fits = x.dim() == len(dims) and all(
        size is None or have == size for have, size in zip(x.shape, dims.values(), strict=True)
    )
    if not fits:
        raise ValueError(f"{where}: expected {name} of shape {_expected(dims)}, got {tuple(x.shape)}")


def check_same_shape(where: str, name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless ``x`` has the shape of ``other``: nothing here ever broadcasts by accident."""
    check_tensor(where, name, x)
    if x.shape != other.shape:
        raise ValueError(
            f"{where}: expected {name} of the shape of {other_name} {tuple(other.shape)}, got {tuple(x.shape)}"
        )


def check_option(where: str, name: str, value: object, allowed: Iterable[object]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    options = tuple(allowed)
    if value not in options:
        raise ValueError(f"{where}: expected {name} to be one of {', '.join(map(repr, options))}, got {value!r}")


def check_range(
    where: str,
    name: str,
    value: object,
    low: float | None = None,
    high: float | None = None,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Raise unless ``value`` is a finite number inside the interval (TypeError when it is no number)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{where}: expected {name} to be a number, got {type(value).__name__}")
    fits = -math.inf < value < math.inf  # unlike math.isfinite this can be traced, and it rejects NaN too
    fits = fits and (low is None or (value > low if low_open else value >= low))
    fits = fits and (high is None or (value < high if high_open else value <= high))
    if not fits:
        left = f"{'(' if low_open or low is None else '['}{'-inf' if low is None else low}"
        right = f"{'inf' if high is None else high}{')' if high_open or high is None else ']'}"
        raise ValueError(f"{where}: expected {name} in {left}, {right}, got {value!r}")


def check_size(where: str, name: str, value: object, low: int = 1) -> None:
    """Raise unless ``value`` is an integer of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer, torch.SymInt)):
        raise TypeError(f"{where}: expected {name} to be an integer, got {type(value).__name__}")
    if value < low:
        raise ValueError(f"{where}: expected {name} of at least {low}, got {value}")


def as_mask(where: str, name: str, mask: Tensor | None, **dims: int | None) -> Tensor | None:
    """Return ``mask`` as bool (True = present); integer 0/1 masks are converted, other dtypes are errors."""
    if mask is None:
        return None
    check_tensor(where, name, mask)
    if mask.dtype not in _MASK_DTYPES:
        raise TypeError(
            f"{where}: expected {name} to be a bool (or integer 0/1) mask, True = present, got {mask.dtype}"
        )
    check_shape(where, name, mask, **dims)
    return mask if mask.dtype == torch.bool else mask != 0


def present_rows(mask: Tensor) -> Tensor:
    """Reduce a bool mask ``(B,)`` of samples or ``(B, T)`` of steps to the samples that have anything ``(B,)``."""
    return mask if mask.dim() == 1 else mask.any(1)


def stack_modalities(where: str, name: str, x: Tensor | Sequence[Tensor]) -> Tensor:
    """Return modality vectors as one ``(B, M, H)`` tensor; a sequence of ``(B, H)`` is stacked."""
    if not isinstance(x, Tensor):
        parts = list(x)
        if not parts:
            raise ValueError(f"{where}: expected {name} to hold at least one modality, got none")
        for index, part in enumerate(parts):
            check_shape(where, f"{name}[{index}]", part, B=parts[0].shape[0], H=parts[0].shape[-1])
        x = torch.stack(parts, dim=1)
    check_floating(where, name, x)
    check_shape(where, name, x, B=None, M=None, H=None)
    return x
