"""What every contrastive loss does at its door and at its end."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ... import distributed
from ..._checks import check_floating, check_option, check_range, check_shape
from ..._layouts import is_active
from ..._precision import widen
from ..._similarity.units import Units, centred_units, mean_direction

Gather = Literal[False, True, "ring"]
Impl = Literal["auto", "torch", "triton"]
Reduction = Literal["mean", "sum", "none"]


class ContrastiveOutput(NamedTuple):
    """A loss and ``anchors``, how many rows it is the mean of (int64 scalar; of all ranks with ``gather``)."""

    loss: Tensor
    anchors: Tensor


class Temperature(NamedTuple):
    """A temperature on the device, and a bound below it that is known without waiting for the device."""

    value: Tensor
    least: float


def as_temperature(where: str, temperature: float | Tensor, like: Tensor) -> Temperature:
    """Return a scalar tensor with the dtype of the loss; numbers have to be positive."""
    dtype = widen(like).dtype
    if isinstance(temperature, Tensor):
        check_floating(where, "temperature", temperature)
        if temperature.numel() != 1:
            raise ValueError(f"{where}: expected temperature to be a scalar, got shape {tuple(temperature.shape)}")
        return Temperature(temperature.reshape(()).to(like.device, dtype), 0.0)
    check_range(where, "temperature", temperature, 0.0, low_open=True)
    return Temperature(torch.full((), temperature, dtype=dtype, device=like.device), temperature)


def check_choices(where: str, reduction: str, gather: object, impl: str) -> None:
    """Raise ValueError unless each option is one of the allowed ones."""
    check_option(where, "reduction", reduction, ("mean", "sum", "none"))
    check_option(where, "impl", impl, ("auto", "torch", "triton"))
    if isinstance(gather, str) or not isinstance(gather, bool):
        check_option(where, "gather", gather, (False, True, "ring"))


def units_of(x: Tensor, gather: Gather) -> Units:
    """Return centred unit vectors; the centre is that of all ranks where they are compared with each other."""
    if not gather or not is_active():
        return centred_units(x)
    total, count = mean_direction(x.detach())
    total, count = torch.split(distributed.global_sum(torch.cat([total, count.view(1)])), [x.shape[1], 1])
    return centred_units(x, total / count.clamp(min=1))


def split_units(units: Units, rows: int, extra: Tensor) -> tuple[Units, Units]:
    """Return the first rows and the others, which are those of ``extra`` and want a gradient only if it does."""
    first, rest = units.split(rows)
    return first, rest if extra.requires_grad else Units(rest.u.detach(), rest.lost)


def gather_units(units: Units, valid: Tensor | None) -> tuple[Units, Tensor, int]:
    """Return the units of all ranks, which of them are real, and where the own ones start."""
    valid = torch.ones_like(units.lost) if valid is None else valid.to(units.lost.dtype)
    everything = torch.cat([units.u, torch.stack([units.lost, valid], dim=1)], dim=1)
    rows = distributed.gather_rows(everything)
    u, lost, real = torch.split(rows.rows, [units.u.shape[1], 1, 1], dim=1)
    return Units(u, lost.detach().squeeze(1)), real.detach().squeeze(1) > 0, rows.offset


def row_weights(
    counted: Tensor, weight: Tensor | None, reduction: Reduction, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the weights ``(..., B)`` of rows in their mean or sum, and how many are counted."""
    anchors = counted.sum()
    share = counted.to(dtype) if weight is None else torch.where(counted, weight.to(dtype), 0.0)
    if reduction == "mean":
        amount = anchors.clamp(min=1) if weight is None else share.sum()
        share = share / (amount if weight is None else torch.where(amount > 0, amount, 1.0))
    return share, anchors


def reduce_rows(
    rows: Tensor, counted: Tensor, weight: Tensor | None, reduction: Reduction, gather: Gather
) -> ContrastiveOutput:
    """Reduce the losses ``(..., B)`` of rows that are 0 where ``counted`` is False; a mean of nothing is 0."""
    over_ranks = bool(gather) and reduction == "mean" and is_active()
    share, anchors = row_weights(counted, weight, "sum" if over_ranks else reduction, rows.dtype)
    rows = rows if reduction == "none" and weight is None else rows * share
    if over_ranks:
        loss = distributed.global_mean(rows.sum(), anchors if weight is None else share.sum())
    else:
        loss = rows if reduction == "none" else rows.sum()
    return ContrastiveOutput(loss, distributed.global_sum(anchors) if gather else anchors)


def check_weight(where: str, weight: Tensor | None, batch: int, gather: Gather) -> None:
    """Raise unless ``weight`` is None or floating ``(B,)``; the sum of all ranks passes no gradient to it."""
    if weight is not None:
        check_floating(where, "weight", weight)
        check_shape(where, "weight", weight, B=batch)
        if gather and weight.requires_grad:
            raise ValueError(f"{where}: expected weight that wants no gradient with gather, got gather={gather!r}")


class _BoundedExp(torch.autograd.Function):
    """``exp(x)`` within bounds, whose gradient passes at a bound wherever it leads back inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        y = x.exp().clamp(low, high)
        ctx.save_for_backward(x, y)
        ctx.bounds = math.log(low), math.log(high)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, y = ctx.saved_tensors
        low, high = ctx.bounds
        outward = ((x <= low) & (grad > 0)) | ((x >= high) & (grad < 0))
        return torch.where(outward, 0.0, grad * y), None, None


class TemperatureModule(nn.Module):
    """A temperature that is a number, or is learned: ``exp(log_temperature)`` within a range."""

    def __init__(self, where: str, temperature: float, learnable: bool, bounds: tuple[float, float]) -> None:
        super().__init__()
        check_range(where, "temperature", temperature, 0.0, low_open=True)
        if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
            raise ValueError(f"{where}: expected temperature_range to be two numbers, got {bounds!r}")
        low, high = bounds
        check_range(where, "temperature_range[0]", low, 0.0, low_open=True)
        check_range(where, "temperature_range[1]", high, low)
        if learnable and not low <= temperature <= high:
            raise ValueError(
                f"{where}: expected a learnable temperature within temperature_range = [{low}, {high}], "
                f"got {temperature}"
            )
        self.initial, self.bounds = temperature, (low, high)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature))) if learnable else None

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"{self.initial}" + ("" if self.log_temperature is None else f", learnable in {list(self.bounds)}")

    def forward(self) -> float | Tensor:
        """Return the temperature."""
        if self.log_temperature is None:
            return self.initial
        temperature: Tensor = _BoundedExp.apply(self.log_temperature, *self.bounds)  # type: ignore[no-untyped-call]
        return temperature
