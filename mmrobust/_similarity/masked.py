"""Rows against keys with positives of any kind, tile by tile: what class sums cannot express.

A pair is positive by equal labels, by a label in common (several labels per row, multi-hot), or by a mask. Pairs can be
excluded. Memory stays with the rows, but for masks the caller brings, which are read tile by tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._precision import no_autocast
from . import tiles
from .gradients import gradients
from .once import refuse
from .tiles import NO_KEY
from .units import Units


class Options(NamedTuple):
    """Which pairs count: ``key_valid (K,)``, ``excluded (A, K)``, ``skip``; whether positives are averaged inside."""

    key_valid: Tensor | None
    excluded: Tensor | None
    skip: int | None
    inside: bool


class Positives(NamedTuple):
    """What makes a pair positive: labels of both sides, ``(A,)`` and ``(K,)`` or multi-hot, or a mask ``(A, K)``."""

    query: Tensor | None = None
    key: Tensor | None = None
    mask: Tensor | None = None

    def tile(self, i: slice, j: slice) -> Tensor:
        """Return the bool tile of rows i and keys j."""
        if self.mask is not None:
            return self.mask[i, j]
        assert self.query is not None and self.key is not None
        query, key = self.query[i], self.key[j]
        return query.unsqueeze(1) == key if query.dim() == 1 else query @ key.mT > 0

    def whole(self, rows: int, keys: int, options: Options) -> tuple[Tensor, Tensor | None]:
        """Return all positives that count, and pairs that do not count; no row is its own positive."""
        i, j = slice(0, rows), slice(0, keys)
        positive = self.tile(i, j)
        left_out = _left_out((rows, keys), i, j, options, positive.device)
        positive = positive.clone() if left_out is None and self.mask is not None else positive
        positive = positive if left_out is None else positive & ~left_out
        positive.diagonal().fill_(False)
        return positive, left_out


def masked_rows(
    queries: Units, keys: Units, temperature: Tensor, positives: Positives, options: Options
) -> tuple[Tensor, Tensor]:
    """Return the loss of every row against the keys that count.

    Returns losses ``(A,)``, undefined but finite without positives, and the number of positives of each row. With
    ``inside`` positives enter as the logarithm of their mean exponential (L_in), otherwise as their mean score.
    """
    lse, among, count = masked_sums(queries, keys, temperature, positives, options)
    return lse - among, count


def masked_sums(
    queries: Units, keys: Units, temperature: Tensor, positives: Positives, options: Options
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logsumexp of every row, its positives' mean score or log mean exponential, and their number."""
    half, key_half = queries.half.detach(), keys.half.detach()
    lse, among, count = torch.ops.mmrobust.masked_rows(
        queries.u, half, keys.u, key_half, temperature.to(half.dtype), *positives, *options
    )
    return lse, among, count


def masked_logsumexp(
    queries: Units, keys: Units, temperature: Tensor, key_valid: Tensor | None, excluded: Tensor
) -> Tensor:
    """Return ``log sum_j exp(e_ij / t)`` ``(A,)`` over keys j that are valid and not ``excluded (A, K)``."""
    half, key_half = queries.half.detach(), keys.half.detach()
    labels = torch.zeros_like(half, dtype=torch.int64), torch.ones_like(key_half, dtype=torch.int64)
    lse, _, _ = torch.ops.mmrobust.masked_rows(
        queries.u, half, keys.u, key_half, temperature.to(half.dtype), *labels, None, key_valid, excluded, None, False
    )
    rows: Tensor = lse
    return rows


def _left_out(shape: tuple[int, int], i: slice, j: slice, options: Options, device: torch.device) -> Tensor | None:
    """Return the pairs of a tile that do not count, None when all do."""
    out = None if options.key_valid is None else (~options.key_valid[j]).expand(shape)
    if options.excluded is not None:
        out = options.excluded[i, j] if out is None else out | options.excluded[i, j]
    if options.skip is None:
        return out
    out = torch.zeros(shape, dtype=torch.bool, device=device) if out is None else out.clone()
    tiles.own(out, i, j, options.skip).fill_(True)
    return out


def _tile(
    buffer: tiles.Buffer, x: Tensor, y: Tensor, i: slice, j: slice, positives: Positives, options: Options
) -> tuple[Tensor, Tensor]:
    """Return the scores of a tile, -Inf where a pair does not count, and its positives."""
    scores, positive = buffer.product(x[i], y[j]), positives.tile(i, j)
    left_out = _left_out((scores.shape[0], scores.shape[1]), i, j, options, x.device)
    if left_out is not None:
        scores.masked_fill_(left_out, -torch.inf)
        positive = positive & ~left_out
    return scores, positive


@torch.library.custom_op("mmrobust::masked_rows", mutates_args=())
def _forward(
    u: Tensor,
    half: Tensor,
    v: Tensor,
    key_half: Tensor,
    temperature: Tensor,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    mask: Tensor | None,
    key_valid: Tensor | None,
    excluded: Tensor | None,
    skip: int | None,
    inside: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    options = Options(key_valid, excluded, skip, inside)
    positives = Positives(query_labels, key_labels, mask)
    with no_autocast(u):
        x, y = tiles.queries(u, half, temperature), tiles.keys(v, key_half, temperature)
        every, among = tiles.Running(half), tiles.Running(half)
        total, count = torch.zeros_like(half), torch.zeros_like(half, dtype=torch.int64)
        buffer = tiles.Buffer(x)
        for i, j in tiles.ranges(len(x), len(y), 1, x.device):
            scores, positive = _tile(buffer, x, y, i, j, positives, options)
            count[i] += positive.sum(1)
            if inside:
                among.add(i, scores.masked_fill(~positive, -torch.inf))
            else:
                total[i] += torch.where(positive, scores, 0.0).sum(1)
            every.add(i, scores)
        some = count.clamp(min=1)
        return every.result(), among.result() - some.to(half.dtype).log() if inside else total / some, count


@_forward.register_fake
def _(
    u: Tensor,
    half: Tensor,
    v: Tensor,
    key_half: Tensor,
    temperature: Tensor,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    mask: Tensor | None,
    key_valid: Tensor | None,
    excluded: Tensor | None,
    skip: int | None,
    inside: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(half), torch.empty_like(half), torch.empty_like(half, dtype=torch.int64)


@torch.library.custom_op("mmrobust::masked_rows_backward", mutates_args=())
def _backward(
    u: Tensor,
    half: Tensor,
    v: Tensor,
    key_half: Tensor,
    temperature: Tensor,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    mask: Tensor | None,
    key_valid: Tensor | None,
    excluded: Tensor | None,
    lse: Tensor,
    among: Tensor,
    count: Tensor,
    lse_grad: Tensor,
    among_grad: Tensor,
    skip: int | None,
    inside: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    options = Options(key_valid, excluded, skip, inside)
    positives = Positives(query_labels, key_labels, mask)
    some = count.clamp(min=1)
    # exp(s - lse) is 0 in rows without keys; a positive adds grad / count, times its share within L_in.
    lse = torch.where(lse <= NO_KEY / 2, -NO_KEY, lse)
    share = among_grad / some
    among = torch.where(count == 0, -NO_KEY, among)
    with no_autocast(u):
        x, y = tiles.queries(u, half, temperature), tiles.keys(v, key_half, temperature)
        out, key_out = torch.zeros_like(x), torch.zeros_like(y)
        buffer = tiles.Buffer(x)
        for i, j in tiles.ranges(len(x), len(y), 1, x.device):
            scores, positive = _tile(buffer, x, y, i, j, positives, options)
            weight = (scores - lse[i, None]).exp_().mul_(lse_grad[i, None])
            extra = (scores - among[i, None]).exp_().mul_(share[i, None]) if inside else share[i, None]
            weight += torch.where(positive, extra, 0.0)
            out[i] += weight @ y[j]
            key_out[j] += weight.mT @ x[i]
        return gradients(u, half, v, out, key_out, temperature)


@_backward.register_fake
def _(
    u: Tensor,
    half: Tensor,
    v: Tensor,
    key_half: Tensor,
    temperature: Tensor,
    query_labels: Tensor | None,
    key_labels: Tensor | None,
    mask: Tensor | None,
    key_valid: Tensor | None,
    excluded: Tensor | None,
    lse: Tensor,
    among: Tensor,
    count: Tensor,
    lse_grad: Tensor,
    among_grad: Tensor,
    skip: int | None,
    inside: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(u), torch.empty_like(v), torch.empty_like(temperature)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.skip, ctx.inside = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[2])


def _differentiate(ctx: Any, lse_grad: Tensor, among_grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    du, dv, dt = torch.ops.mmrobust.masked_rows_backward(*ctx.saved_tensors, lse_grad, among_grad, ctx.skip, ctx.inside)
    return (du, None, dv, None, dt, *(None,) * 7)


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(refuse)
