"""The gradient of a logsumexp over all pairs, tile by tile: weighted sums of the vectors on either side."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import tiles
from .tiles import NO_KEY, Buffer, Pieces, own
from .units import wide_dtype


class Side(NamedTuple):
    """What one side of the pairs brings into the gradient: weights and logsumexps of its losses, and who is valid."""

    weight: Tensor
    lse: Tensor
    valid: Tensor | None

    def scaled(self) -> Tensor:
        """Return ``weight * exp(-lse)``."""
        none = self.lse <= NO_KEY / 2
        return torch.where(none, 0.0, self.weight * torch.exp(-torch.where(none, 0.0, self.lse)))

    def mask(self) -> Tensor:
        """Return 1 for what is valid, in the dtype of the weights."""
        return torch.ones_like(self.weight) if self.valid is None else self.valid.to(self.weight.dtype)


def weighted_sums(
    x: Tensor,
    y: Tensor,
    rows: Side,
    columns: Side,
    mode: str,
    skip: int | None,
    fast: bool,
    for_keys: bool = True,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return ``G @ y (..., A, D + 2)`` and, ``for_keys``, ``G.mT @ x (..., K, D + 2)``; never for "self".

    ``G_ij = rows.weight_i exp(s_ij - rows.lse_i) + columns.weight_j exp(s_ij - columns.lse_j)``; for "rows" the second
    term is left out and of ``columns`` only ``valid`` is read.
    """
    row_out, row_sums = torch.zeros_like(x), torch.zeros_like(x[..., 0], dtype=wide_dtype(x))
    for_keys = for_keys and mode != "self"
    key_out = torch.zeros_like(y) if for_keys else y[..., :0, :]
    gradient = _FastGradient(rows, columns, mode) if fast else _SafeGradient(rows, columns, mode)
    buffer, known = Buffer(x), None if kept is None else Pieces(kept)
    for i, j in tiles.ranges(x.shape[-2], y.shape[-2], rows.lse[..., :1].numel(), x.device, mode == "self"):
        left, right = x[..., i, :], y[..., j, :]
        if known is not None and isinstance(gradient, _FastGradient):
            weights = gradient.weigh(known(*left.shape[:-1], right.shape[-2]), i, j)
        else:
            weights = gradient(buffer.product(left, right), i, j, skip)
        row_out[..., i, :] += weights @ right
        row_sums[..., i] += weights.sum(-1)
        if mode == "self":
            beyond = max(i.stop - j.start, 0)
            row_out[..., j.start + beyond : j.stop, :] += weights[..., beyond:].mT @ y[..., i, :]
            row_sums[..., j.start + beyond : j.stop] += weights[..., beyond:].sum(-2)
        if for_keys:
            key_out[..., j, :] += weights.mT @ left
    # Times u, these are nearly all of a gradient among vectors that are close: a matrix product sums less exactly.
    row_out[..., -2] = row_sums
    return row_out, key_out


def gradients(
    u: Tensor, half: Tensor, v: Tensor, out: Tensor, key_out: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the sums of :func:`weighted_sums` into the gradients of u, v and the temperature.

    Both n are functions of u and v: the gradient of u is ``sum_j G_ij (v_j - u_i) / t``, which stays exact when all
    vectors are close to each other. The columns behind the features hold ``sum_j G_ij`` and ``-sum_j G_ij n_j / t`` in
    ``out``, where keys are summed, and ``-sum_i G_ij n_i / t`` and ``sum_i G_ij`` in ``key_out``, whose features are
    divided by t already.
    """
    energy = (u * out[..., :-2]).sum() - (half * out[..., -2]).sum() + temperature * out[..., -1].sum()
    du = torch.addcmul(out[..., :-2], out[..., -2:-1], u, value=-1).div_(temperature)
    if key_out.shape[-2] != v.shape[-2]:
        return du, u.new_empty(0), -energy / temperature.square()
    dv = torch.addcmul(key_out[..., :-2], key_out[..., -1:] / temperature, v, value=-1)
    return du, dv, -energy / temperature.square()


class _FastGradient:
    """Turn the scores of a tile into G, with one exponential for both of its terms."""

    def __init__(self, rows: Side, columns: Side, mode: str) -> None:
        self._rows = rows.scaled().unsqueeze(-1)
        self._columns = None if mode == "rows" else columns.scaled().unsqueeze(-2)
        # What is not valid has weight 0 on its own side; the other side's weight must not count there either.
        self._keep_rows = None if mode == "rows" or rows.valid is None else rows.mask().unsqueeze(-1)
        self._keep_columns = None if columns.valid is None else columns.mask().unsqueeze(-2)
        self._buffer = Buffer(rows.weight)

    def __call__(self, scores: Tensor, i: slice, j: slice, skip: int | None) -> Tensor:
        scores.exp_()
        own(scores, i, j, skip).zero_()
        return self.weigh(scores, i, j)

    def weigh(self, exponentials: Tensor, i: slice, j: slice) -> Tensor:
        """Return G of a tile from the exponentials of its scores, which stay as they are."""
        into, left = self._buffer(*exponentials.shape), self._rows[..., i, :]
        if self._columns is not None:
            left = torch.add(left, self._columns[..., j], out=into)
        weights = torch.mul(exponentials, left, out=into)
        if self._keep_rows is not None:
            weights.mul_(self._keep_rows[..., i, :])
        return weights if self._keep_columns is None else weights.mul_(self._keep_columns[..., j])


class _SafeGradient:
    """Turn the scores of a tile into G at any temperature: no score is above the logsumexp that it is part of."""

    def __init__(self, rows: Side, columns: Side, mode: str) -> None:
        self._rows, self._columns, self._both = rows, columns, mode != "rows"
        self._row_lse, self._key_lse = (torch.where(lse <= NO_KEY / 2, -NO_KEY, lse) for lse in (rows.lse, columns.lse))
        self._buffer = Buffer(rows.weight)

    def __call__(self, scores: Tensor, i: slice, j: slice, skip: int | None) -> Tensor:
        own(scores, i, j, skip).fill_(-torch.inf)
        second = None
        if self._both:
            second = torch.sub(scores, self._key_lse[..., j].unsqueeze(-2), out=self._buffer(*scores.shape))
            if self._rows.valid is not None:
                second.masked_fill_(~self._rows.valid[..., i].unsqueeze(-1), -torch.inf)
            second.exp_().mul_(self._columns.weight[..., j].unsqueeze(-2))
        if self._columns.valid is not None:
            scores.masked_fill_(~self._columns.valid[..., j].unsqueeze(-2), -torch.inf)
        scores.sub_(self._row_lse[..., i].unsqueeze(-1)).exp_().mul_(self._rows.weight[..., i].unsqueeze(-1))
        return scores if second is None else scores.add_(second)
