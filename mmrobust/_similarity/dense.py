"""Batches whose pairs fit into one small matrix: one function from vectors to losses, quicker there than tiles.

Both functions make the gradient of the scores, ``G``, in the forward pass: softmax minus positives, per row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._precision import no_autocast, widen
from .once import once
from .tiles import NO_KEY
from .units import half_squares, normalise, tangent

Index = Tensor | slice
_PAIRS = 1 << 18  # 512 rows against themselves, 1 MB
_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # PyTorch 2.6 has no is_exporting


def is_small(rows: int, keys: int, batch: int = 1) -> bool:
    """Return whether the dense formula is the quicker one."""
    return not _exporting() and batch * rows * keys <= _PAIRS  # a program would have the size written into it


def dense_rows(
    x: Tensor,
    rows: int,
    temperature: Tensor,
    positive: Tensor,
    left_out: Tensor | None = None,
    inside: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compare the first ``rows`` vectors of ``x (K, D)`` with all of them.

    Args:
        x: Floating tensor ``(K, D)``, of any length.
        rows: A, how many of them are anchors.
        temperature: Scalar tensor in the dtype of the losses.
        positive: Bool ``(A, K)``.
        left_out: Bool ``(A, K)``, pairs that do not count.
        inside: Take positives by the logarithm of their mean exponential (L_in), not by their mean score.

    Returns:
        Losses ``(A,)``, 0 without positives, and the number of positives ``(A,)``.
    """
    if left_out is not None:
        positive = positive & ~left_out
    count = positive.sum(1)
    losses: Tensor = _DenseRows.apply(x, rows, temperature, positive, left_out, count, inside)  # type: ignore[no-untyped-call]
    return losses, count


class _DenseRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rows: int,
        temperature: Tensor,
        positive: Tensor,
        left_out: Tensor | None,
        count: Tensor,
        inside: bool,
    ) -> Tensor:
        unit, inverse = normalise(x)
        centre = unit.mean(0)
        u = (unit - centre).to(widen(x).dtype)
        # What all scores of a row share does not change its loss: n of the row is left away.
        scores = torch.addmm(-half_squares(u, inverse), u[:rows], u.mT).div_(temperature)
        if left_out is not None:
            scores.masked_fill_(left_out, NO_KEY)
        log_p, some = scores.log_softmax(1), count.clamp(min=1)
        if inside:
            among = log_p.masked_fill(~positive, NO_KEY).logsumexp(1, keepdim=True)
            losses = some.to(log_p.dtype).log() - among.squeeze(1)
            share = torch.where(positive, torch.exp(log_p - among), 0.0)
        else:
            share = positive.to(log_p.dtype).div_(some.unsqueeze(1))
            losses = -(share * log_p).sum(1)
        gradient, none = log_p.exp().sub_(share), count == 0
        gradient.masked_fill_(none.unsqueeze(1), 0.0)
        slope = (gradient * scores).sum(1) if ctx.needs_input_grad[2] else None
        ctx.save_for_backward(u, inverse, centre.to(u.dtype), gradient, temperature, slope, x)
        ctx.dtype = x.dtype
        return losses.masked_fill_(none, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, inverse, centre, gradient, temperature, slope, x = ctx.saved_tensors
        with torch.no_grad(), no_autocast(u):
            weights, rows = gradient * grad.unsqueeze(1), grad.shape[0]
            along = torch.addmm(weights.sum(0).neg_().unsqueeze(1) * u, weights.mT, u[:rows])
            along[:rows].addmm_(weights, u)
            dx = tangent(along.div_(temperature), u + centre, inverse).to(ctx.dtype)
            dt = None if slope is None else -(grad * slope).sum() / temperature
        dt = None if dt is None else once(dt, grad, x, temperature)
        return once(dx, grad, x, temperature), None, dt, None, None, None, None


def dense_pairs(
    x: Tensor, first: Index, second: Index, temperature: Tensor, valid: Tensor | None, symmetric: bool
) -> Tensor:
    """Compare sets of vectors whose rows belong together.

    Args:
        x: Floating tensor ``(M, B, D)`` of M sets, of any length.
        first: Integer tensor ``(P,)`` or slice, the set of the queries in each comparison.
        second: The same for the set of the keys.
        temperature: Scalar tensor in the dtype of the losses.
        valid: Bool ``(P, B)``, rows that take part; ``None`` = all.
        symmetric: Average with the loss of the keys against the queries.

    Returns:
        Losses ``(P, B)``, undefined where a row takes no part.
    """
    losses: Tensor = _DensePairs.apply(x, first, second, temperature, valid, symmetric)  # type: ignore[no-untyped-call]
    return losses


def _add(total: Tensor, index: Index, x: Tensor) -> None:
    if isinstance(index, slice):
        total[index] += x
    else:
        total.index_add_(0, index, x)


class _DensePairs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        first: Index,
        second: Index,
        temperature: Tensor,
        valid: Tensor | None,
        symmetric: bool,
    ) -> Tensor:
        unit, inverse = normalise(x)
        centre = unit.mean((0, 1))
        u = (unit - centre).to(widen(x).dtype)
        half = half_squares(u, inverse)
        scores = torch.baddbmm(half[second].unsqueeze(1), u[first], u[second].mT, beta=-1)
        scores.sub_(half[first].unsqueeze(2)).div_(temperature)
        if valid is not None:
            scores.masked_fill_(~(valid.unsqueeze(2) & valid.unsqueeze(1)), NO_KEY)
        log_p, columns = scores.log_softmax(2), None
        losses, rows = -log_p.diagonal(dim1=1, dim2=2), log_p.exp()
        if symmetric:
            log_p = scores.log_softmax(1)
            losses = (losses - log_p.diagonal(dim1=1, dim2=2)) / 2
            rows, columns = rows.div_(2), log_p.exp().div_(2)
        ctx.save_for_backward(u, inverse, centre.to(u.dtype), rows, columns, scores, temperature, x)
        ctx.dtype, ctx.sets = x.dtype, (first, second)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, inverse, centre, rows, columns, scores, temperature, x = ctx.saved_tensors
        first, second = ctx.sets
        with torch.no_grad(), no_autocast(u):
            weights = rows * grad.unsqueeze(2)
            if columns is not None:
                weights.addcmul_(columns, grad.unsqueeze(1))
            weights.diagonal(dim1=1, dim2=2).sub_(grad)
            query, key = u[first], u[second]
            along = torch.zeros_like(u)
            _add(along, first, torch.baddbmm(weights.sum(2, keepdim=True) * query, weights, key, beta=-1))
            _add(along, second, torch.baddbmm(weights.sum(1).unsqueeze(2) * key, weights.mT, query, beta=-1))
            dx = tangent(along.div_(temperature), u + centre, inverse).to(ctx.dtype)
            dt = -(weights * scores).sum() / temperature if ctx.needs_input_grad[3] else None
        dt = None if dt is None else once(dt, grad, x, temperature)
        return once(dx, grad, x, temperature), None, None, dt, None, None
