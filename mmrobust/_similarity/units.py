"""Unit vectors around a common centre: what the contrastive losses compute with instead of the vectors themselves.

For unit vectors the cosine is :math:`1 - |z_i - z_j|^2 / 2`. A softmax over keys ignores the 1, and differences do not
change when every vector is moved by the same centre. So similarities are taken from :math:`u = z - m`, as *energies*
:math:`e_{ij} = u_i u_j - n_i - n_j = z_i z_j - 1` with :math:`n = |u|^2 / 2`: exact also for embeddings that have
collapsed to a point, where the cosines themselves all round to 1. Vectors without a direction have similarity 0 to
everything, hence energy -1: each side that has none adds 1/2 to its n (``lost``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._precision import widen
from .once import once

NO_DIRECTION = 1e-12
_ROWS = 16384  # rows that are held in float64 at a time


class Units(NamedTuple):
    """Centred unit vectors ``u (..., B, D)`` and ``lost (..., B)``, 1/2 where a vector has no direction."""

    u: Tensor
    lost: Tensor

    @property
    def half(self) -> Tensor:
        """Return n ``(..., B)``: half the squared length of u, and 1/2 more without a direction."""
        return torch.add(self.lost, self.u.square().sum(-1), alpha=0.5)

    def split(self, rows: int) -> tuple[Units, Units]:
        """Return the first ``rows`` rows and the others."""
        first, rest = slice(None, rows), slice(rows, None)
        return (
            Units(self.u[..., first, :], self.lost[..., first]),
            Units(self.u[..., rest, :], self.lost[..., rest]),
        )


def centred_units(x: Tensor, centre: Tensor | None = None) -> Units:
    """Normalise the rows of ``x (..., B, D)`` and move them by ``centre (D,)``, their own mean unless it is given.

    Rows shorter than 1e-12 become zero vectors before they are moved; their gradient is zero.
    """
    return Units(*_CentredUnits.apply(x, centre))  # type: ignore[no-untyped-call]


def mean_direction(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum ``(D,)`` of the unit vectors of ``x (..., B, D)`` and how many have a direction, in float64."""
    total, count = x.new_zeros(x.shape[-1], dtype=wide_dtype(x)), x.new_zeros((), dtype=wide_dtype(x))
    for rows in _chunks(x):
        unit, norm = normalise(rows)
        total, count = total + unit.sum(0), count + (norm != torch.inf).sum()
    return total, count


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return float64 where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64


def _chunks(x: Tensor) -> tuple[Tensor, ...]:
    rows = x.reshape(-1, x.shape[-1])
    if torch.compiler.is_compiling() or rows.shape[0] <= _ROWS:
        return (rows,)
    return torch.split(rows, _ROWS)


def normalise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit vectors, zero where there is no direction, and norms ``(..., B, 1)``, Inf there; in float64."""
    x = x.to(wide_dtype(x))
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    norm = F.threshold(norm, NO_DIRECTION, torch.inf)  # NaN passes, to reach the loss
    return x / norm, norm


def tangent(grad: Tensor, unit: Tensor, norm: Tensor) -> Tensor:
    """Turn the gradient of unit vectors into that of the vectors."""
    along = (unit * grad).sum(-1, keepdim=True)
    return torch.addcmul(grad, unit, along, value=-1).div_(norm.to(grad.dtype))


class _CentredUnits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, centre: Tensor | None) -> tuple[Tensor, Tensor]:
        dtype, parts, shape = widen(x).dtype, _chunks(x), x.shape
        if len(parts) == 1:
            unit, norm = normalise(parts[0])
            centre = unit.mean(0) if centre is None else centre
            u = unit.sub_(centre).to(dtype)
        else:
            if centre is None:
                total, count = mean_direction(x)
                centre = total / count.clamp(min=1)
            u, norms = x.new_empty(shape[:-1].numel(), shape[-1], dtype=dtype), []
            for rows, into in zip(parts, torch.split(u, _ROWS), strict=True):
                unit, one = normalise(rows)
                into.copy_(unit.sub_(centre))
                norms.append(one)
            norm = torch.cat(norms)
        ctx.save_for_backward(u, norm, centre.to(dtype))
        ctx.dtype = x.dtype
        lost = (norm == torch.inf).to(dtype).div_(2).view(shape[:-1])
        ctx.mark_non_differentiable(lost)
        return u.view(shape), lost

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        u, norm, centre = ctx.saved_tensors
        with torch.no_grad():
            dx = tangent(grad.reshape(u.shape), u + centre, norm).to(ctx.dtype).view(grad.shape)
        return once(dx, grad), None  # what comes from an operator of this package depends on x by itself
