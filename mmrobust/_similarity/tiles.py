"""Sums over all pairs of rows, tile by tile: the torch definition of the contrastive core.

Scores are ``s_ij = e_ij / t`` for energies ``e_ij = u_i v_j - n_i - n_j``, so none is above 0 but for rounding. Two
more features make them one matrix product of ``queries(...)`` and ``keys(...)``. No matrix of all pairs is ever held.

``skip`` is the pair that is left out of each row i, key ``i + skip`` (the row itself); None = no pair is.
``mode`` says what is asked for: "rows", a logsumexp over keys for each row; "both", one for each key over rows too; or
"self", rows against themselves, where a score serves both its rows and half of the tiles suffice.
``fast`` promises that ``exp(s)`` does not underflow, so that no maximum is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

NO_KEY = -1e30  # logsumexp over nothing: finite, so that no Inf - Inf follows
_ROWS = 256
_ELEMENTS = {"cpu": 1 << 19, "other": 1 << 25}  # scores held at a time: 2 MB on a CPU, 128 MB elsewhere
_EXPONENT = {torch.float32: 64.0, torch.float64: 600.0}


def is_fast(temperature: Tensor, least: float) -> bool:
    """Return whether the smallest ``exp`` of a score, ``exp(-2 / t)``, leaves room for sums and their inverses.

    ``least``: a lower bound of the temperature that is known without waiting for the device.
    """
    value = float(temperature) if temperature.device.type == "cpu" else least
    return value * _EXPONENT[temperature.dtype] >= 2.0


def queries(u: Tensor, half: Tensor, temperature: Tensor) -> Tensor:
    """Return ``(..., A, D + 2)``: u / t, -n / t, 1."""
    half = -half.unsqueeze(-1)
    return torch.cat([u, half, temperature.expand_as(half)], dim=-1) / temperature


def keys(v: Tensor, half: Tensor, temperature: Tensor) -> Tensor:
    """Return ``(..., K, D + 2)``: v, 1, -n / t."""
    half = half.unsqueeze(-1)
    return torch.cat([v, torch.ones_like(half), -half / temperature], dim=-1)


def ranges(
    rows: int, columns: int, batch: int, device: torch.device, half: bool = False
) -> Iterator[tuple[slice, slice]]:
    """Yield row and column ranges of the tiles; with ``half`` those of columns at or behind the first row."""
    elements = max(_ELEMENTS["cpu" if device.type == "cpu" else "other"] // max(batch, 1), 1 << 12)
    height = _ROWS * (1 if rows <= 4096 else 2) if device.type == "cpu" else 2048
    height = min(height, max(rows, 1))
    width = max(elements // height, 1)
    for top in range(0, rows, height):
        for left in range(top if half else 0, columns, width):
            yield slice(top, min(top + height, rows)), slice(left, min(left + width, columns))


class Buffer:
    """One piece of memory for all tiles of a pass: a fresh one per tile costs more than its arithmetic."""

    def __init__(self, like: Tensor) -> None:
        self._like, self._flat = like, like.new_empty(0)

    def __call__(self, *shape: int) -> Tensor:
        size = torch.Size(shape).numel()
        if self._flat.numel() < size:
            self._flat = self._like.new_empty(size)
        return self._flat[:size].view(shape)

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left @ right`` in the buffer."""
        return torch.matmul(left, right, out=self(*left.shape[:-1], right.shape[-1]))


class Pieces(Buffer):
    """Memory that holds all tiles, handed out one after another, in the order of :func:`ranges`."""

    def __init__(self, flat: Tensor) -> None:
        self._flat, self._start = flat, 0

    def __call__(self, *shape: int) -> Tensor:
        start, self._start = self._start, self._start + torch.Size(shape).numel()
        return self._flat[start : self._start].view(shape)

    def close(self) -> None:
        """Write zeros where no tile came to lie."""
        self._flat[self._start :].zero_()


def own(scores: Tensor, rows: slice, columns: slice, skip: int | None) -> Tensor:
    """Return a view of the scores that ``skip`` leaves out, empty when the tile has none."""
    if skip is None:
        return scores[..., :0, :]
    offset = (rows.start or 0) + skip - (columns.start or 0)
    if not -scores.shape[-2] < offset < scores.shape[-1]:
        return scores[..., :0, :]
    return scores.diagonal(offset, dim1=-2, dim2=-1)


def logsumexp(
    x: Tensor,
    y: Tensor,
    x_valid: Tensor | None,
    y_valid: Tensor | None,
    mode: str,
    skip: int | None,
    fast: bool,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the logsumexp of the scores of each row ``(..., A)`` and, for "both", of each key ``(..., K)``.

    ``fast`` leaves the exponentials of the scores in ``kept``, a vector with a place for each pair.
    """
    pieces = None if kept is None else Pieces(kept)
    if not fast:
        if pieces is not None:
            pieces.close()
        # A pass of its own for the keys costs one more product than sharing tiles; low temperatures are rare.
        other = _online(y, x, x_valid, None if skip is None else -skip) if mode == "both" else x.new_empty(0)
        return _online(x, y, y_valid, skip), other
    row_sum, key_sum = x.new_zeros(x.shape[:-1]), y.new_zeros(y.shape[:-1])
    keep_rows = None if x_valid is None or mode == "rows" else x_valid.to(x.dtype).unsqueeze(-1)
    keep_keys = None if y_valid is None else y_valid.to(y.dtype).unsqueeze(-2)
    buffer = Buffer(x) if pieces is None else pieces
    for i, j in ranges(x.shape[-2], y.shape[-2], row_sum[..., :1].numel(), x.device, mode == "self"):
        scores = buffer.product(x[..., i, :], y[..., j, :].mT).exp_()
        own(scores, i, j, skip).zero_()
        if keep_rows is not None:
            scores.mul_(keep_rows[..., i, :])
        if keep_keys is not None:
            scores.mul_(keep_keys[..., j])
        row_sum[..., i] += scores.sum(-1)
        if mode != "rows":
            # A tile on the diagonal has both halves of its square already: only what lies beyond is counted again.
            beyond = max(i.stop - j.start, 0) if mode == "self" else 0
            key_sum[..., j.start + beyond : j.stop] += scores[..., beyond:].sum(-2)
    if pieces is not None:
        pieces.close()
    if mode == "self":
        row_sum += key_sum
    return _log(row_sum), _log(key_sum) if mode == "both" else x.new_empty(0)


def _log(total: Tensor) -> Tensor:
    return torch.where(total == 0, NO_KEY, torch.log(total))


def _online(x: Tensor, y: Tensor, y_valid: Tensor | None, skip: int | None) -> Tensor:
    """Return the logsumexp of each row with a running maximum."""
    running, buffer = Running(x[..., 0]), Buffer(x)
    for i, j in ranges(x.shape[-2], y.shape[-2], x[..., :1, 0].numel(), x.device):
        running.add(i, _masked(buffer.product(x[..., i, :], y[..., j, :].mT), i, j, y_valid, skip))
    return running.result()


class Running:
    """A logsumexp of every row that is fed tile by tile."""

    def __init__(self, rows: Tensor) -> None:
        self._top = torch.full_like(rows, NO_KEY)
        self._total = torch.zeros_like(rows)

    def add(self, i: slice, scores: Tensor) -> None:
        """Add scores of the rows i; they are overwritten."""
        before = self._top[..., i]
        after = torch.maximum(before, scores.amax(-1))
        scores.sub_(after.unsqueeze(-1)).exp_()
        self._total[..., i] = self._total[..., i] * (before - after).exp() + scores.sum(-1)
        self._top[..., i] = after

    def result(self) -> Tensor:
        """Return the logsumexp of each row, ``NO_KEY`` of nothing."""
        return torch.where(self._total == 0, NO_KEY, self._top + torch.log(self._total))


def _masked(scores: Tensor, i: slice, j: slice, y_valid: Tensor | None, skip: int | None) -> Tensor:
    own(scores, i, j, skip).fill_(-torch.inf)
    return scores if y_valid is None else scores.masked_fill_(~y_valid[..., j].unsqueeze(-2), -torch.inf)


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
    row_out = torch.zeros_like(x)
    for_keys = for_keys and mode != "self"
    key_out = torch.zeros_like(y) if for_keys else y[..., :0, :]
    gradient = _FastGradient(rows, columns, mode) if fast else _SafeGradient(rows, columns, mode)
    buffer, known = Buffer(x), None if kept is None else Pieces(kept)
    for i, j in ranges(x.shape[-2], y.shape[-2], rows.lse[..., :1].numel(), x.device, mode == "self"):
        left, right = x[..., i, :], y[..., j, :]
        if known is not None and isinstance(gradient, _FastGradient):
            weights = gradient.weigh(known(*left.shape[:-1], right.shape[-2]), i, j)
        else:
            weights = gradient(buffer.product(left, right.mT), i, j, skip)
        row_out[..., i, :] += weights @ right
        if mode == "self":
            beyond = max(i.stop - j.start, 0)
            row_out[..., j.start + beyond : j.stop, :] += weights[..., beyond:].mT @ y[..., i, :]
        if for_keys:
            key_out[..., j, :] += weights.mT @ left
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
