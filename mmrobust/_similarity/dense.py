"""Batches whose pairs fit into one small matrix: one function from vectors to a loss, quicker there than tiles.

Time goes into calls there, not into arithmetic. So both functions know the weights of the rows in the loss and make its
gradient in the forward pass, where all it needs is at hand: the backward pass is one product with a number.

Energies are computed as ``u_i v_j + c u_i + c v_j`` for the centre c, which is ``z_i z_j - c c``, also without a
direction; a softmax leaves away what all scores of a row share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._precision import widen
from .implementation import is_exporting
from .once import once
from .tiles import NO_KEY
from .units import normalise, tangent

Side = Tensor | int
_PAIRS = 1 << 18  # 512 rows against themselves, 1 MB


def is_small(rows: int, keys: int, batch: int = 1) -> bool:
    """Return whether the dense formula is the quicker one."""
    return not is_exporting() and batch * rows * keys <= _PAIRS  # a program would have the size written into it


def dense_rows(
    x: Tensor,
    temperature: Tensor,
    positive: Tensor | None,
    count: Tensor | None,
    weight: Tensor,
    left_out: Tensor | None = None,
    inside: bool = False,
) -> Tensor:
    """Compare the first A vectors of ``x (K, D)``, those that have a weight, with all of them but themselves.

    Args:
        x: Floating tensor ``(K, D)``, of any length.
        temperature: Scalar tensor in the dtype of the loss.
        positive: Bool ``(A, K)``, False for rows themselves and what is left out; ``None`` where the rows are two
            halves, and those in the same place of both are each other's only positives.
        count: Number of positives ``(A,)`` in the dtype of the loss; ``None`` with halves.
        weight: Weights ``(A,)`` of the losses in their sum, 0 without positives.
        left_out: Bool ``(A, K)``, further pairs that do not count.
        inside: Take positives by the logarithm of their mean exponential (L_in), not by their mean score.

    Returns:
        The weighted sum of the losses, a scalar.
    """
    compare = _DenseRows.apply
    loss: Tensor = compare(x, temperature, weight, positive, count, left_out, inside, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return loss


def _centred(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return centred unit vectors ``u (B, D)``, ``c u (B,)``, unit vectors, and norms ``(B, 1)`` of x."""
    unit, norm = normalise(x)
    dtype, centre = widen(x).dtype, unit.mean(0)
    centred = unit - centre
    return centred.to(dtype), torch.mv(centred, centre).to(dtype), unit.to(dtype), norm


def _wanted(ctx: Any, enabled: bool) -> bool:
    return enabled and (ctx.needs_input_grad[0] or ctx.needs_input_grad[1])


def _keep(ctx: Any, dx: Tensor | None, dt: Tensor | None, losses: Tensor, *inputs: Tensor) -> Tensor:
    """Save the gradients for x and the temperature, and the losses, which are that for the weights; return the loss."""
    ctx.save_for_backward(dx, dt, losses, *inputs)
    weight = inputs[2]
    return torch.dot(losses, weight) if weight.dim() == 1 else (losses * weight).sum()


def _scaled(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients for x, temperature, weight and everything else."""
    dx, dt, losses, *inputs = ctx.saved_tensors
    dx = None if dx is None else once((dx * grad).to(inputs[0].dtype), grad, *inputs)
    dt = None if dt is None else once(dt * grad, grad, *inputs)
    dw = once(losses * grad, grad, *inputs) if ctx.needs_input_grad[2] else None
    return dx, dt, dw, None, None, None, None, None


class _DenseRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        temperature: Tensor,
        weight: Tensor,
        positive: Tensor | None,
        count: Tensor | None,
        left_out: Tensor | None,
        inside: bool,
        enabled: bool,
    ) -> Tensor:
        u, along, unit, norm = _centred(x)
        rows, dx, dt = weight.shape[0], None, None
        scores = torch.addmm(along, u if rows == u.shape[0] else u[:rows], u.mT).div_(temperature)
        if left_out is not None:
            scores.masked_fill_(left_out, NO_KEY)
        scores.diagonal().fill_(NO_KEY)
        log_p = scores.log_softmax(1)
        if positive is None:
            losses = torch.cat(_partners(log_p)).neg_()
        else:
            losses, share = (_inside if inside else _outside)(log_p, positive, count)
        if _wanted(ctx, enabled):
            pull = log_p.exp_()
            if positive is None:
                for own in _partners(pull):
                    own.sub_(1)
            else:
                pull.sub_(share)
            pull.mul_(weight.unsqueeze(1))
            if ctx.needs_input_grad[1]:
                dt = -(pull * scores).sum() / temperature
            dx = tangent(_pulled(pull, u), unit, norm * temperature)
        return _keep(ctx, dx, dt, losses, x, temperature, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _scaled(ctx, grad)


def _partners(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return views of the scores of the first half of rows with their partners in the second, and the reverse."""
    half = scores.shape[0] // 2
    return scores[:half, half:].diagonal(), scores[half:, :half].diagonal()


def _outside(log_p: Tensor, positive: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the losses of L_out, and how much each key counts as a positive."""
    assert count is not None
    share = positive / count.clamp(min=1).unsqueeze(1)
    return torch.linalg.vecdot(share, log_p).neg_(), share


def _inside(log_p: Tensor, positive: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the same of L_in."""
    assert count is not None
    among = log_p.masked_fill(~positive, NO_KEY).logsumexp(1)
    share = torch.where(positive, torch.exp(log_p - among.unsqueeze(1)), 0.0)
    return torch.where(count > 0, count.clamp(min=1).log() - among, 0.0), share


def _pulled(pull: Tensor, u: Tensor) -> Tensor:
    """Return ``sum_j (G_ij + G_ji) (u_j - u_i)`` for ``G (A, K)`` and ``u (K, D)``; rows of G add up to zero."""
    rows, keys = pull.shape
    if rows == keys:
        both = pull + pull.mT
        return torch.addmm(both.sum(1, keepdim=True) * u, both, u, beta=-1)
    moved = torch.addmm(pull.sum(0).unsqueeze(1) * u, pull.mT, u[:rows], beta=-1)
    moved[:rows].addmm_(pull, u)
    return moved


def dense_pairs(
    x: Tensor,
    first: Side,
    second: Side,
    temperature: Tensor,
    valid: Tensor | None,
    weight: Tensor,
    symmetric: bool,
) -> Tensor:
    """Compare sets of vectors whose rows belong together: one pair of sets, or P.

    Args:
        x: Floating tensor ``(M, B, D)`` of M sets, of any length.
        first: Index of the set of the queries, or integer tensor ``(P,)``.
        second: The same for the set of the keys, another one.
        temperature: Scalar tensor in the dtype of the loss.
        valid: Bool ``(B,)`` or ``(P, B)``, rows that take part; ``None`` = all.
        weight: Weights, shaped as ``valid``, of the losses in their sum, 0 where a row takes no part.
        symmetric: Average with the loss of the keys against the queries.

    Returns:
        The weighted sum of the losses, a scalar.
    """
    compare = _DensePairs.apply
    loss: Tensor = compare(x, temperature, weight, first, second, valid, symmetric, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return loss


class _DensePairs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        temperature: Tensor,
        weight: Tensor,
        first: Side,
        second: Side,
        valid: Tensor | None,
        symmetric: bool,
        enabled: bool,
    ) -> Tensor:
        u, along, unit, norm = _centred(x.reshape(-1, x.shape[-1]))
        u, along, dx, dt = u.view(x.shape), along.view(x.shape[:-1]), None, None
        query, key = u[first], u[second]
        scores = torch.matmul(query, key.mT).add_(along[second].unsqueeze(-2))
        if symmetric:
            scores.add_(along[first].unsqueeze(-1))
        scores.div_(temperature)
        if valid is not None:
            scores.masked_fill_(~(valid.unsqueeze(-1) & valid.unsqueeze(-2)), NO_KEY)
        rows, columns = scores.log_softmax(-1), scores.log_softmax(-2) if symmetric else None
        losses = -rows.diagonal(dim1=-2, dim2=-1)
        if columns is not None:
            losses = losses.sub_(columns.diagonal(dim1=-2, dim2=-1)).div_(2)
        losses = losses if valid is None else losses.masked_fill_(~valid, 0.0)
        if _wanted(ctx, enabled):
            share = weight if columns is None else weight / 2
            pull = rows.exp_().mul_(share.unsqueeze(-1))
            if columns is not None:
                pull.addcmul_(columns.exp_(), share.unsqueeze(-2))
            pull.diagonal(dim1=-2, dim2=-1).sub_(weight)
            if ctx.needs_input_grad[1]:
                dt = -(pull * scores).sum() / temperature
            moved = _moved(u, first, second, _towards(pull, query, key), _towards(pull.mT, key, query))
            dx = tangent(moved.view(unit.shape), unit, norm * temperature).view(x.shape)
        return _keep(ctx, dx, dt, losses, x, temperature, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _scaled(ctx, grad)


def _towards(pull: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Return ``sum_j G_ij (v_j - u_i)``."""
    return torch.matmul(pull, key).addcmul_(pull.sum(-1, keepdim=True), query, value=-1)


def _moved(u: Tensor, first: Side, second: Side, query: Tensor, key: Tensor) -> Tensor:
    """Return what was computed for the sets of queries and of keys, added up at their places among all sets."""
    if isinstance(first, int) or isinstance(second, int):
        return torch.stack([query, key] if first == 0 else [key, query])
    return torch.zeros_like(u).index_add_(0, first, query).index_add_(0, second, key)
