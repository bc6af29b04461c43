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

import torch
from torch import Tensor

NO_KEY = -1e30  # logsumexp over nothing: finite, so that no Inf - Inf follows
_ROWS = 256
_ELEMENTS = {"cpu": 1 << 19, "other": 1 << 25}  # scores held at a time: 2 MB on a CPU, 128 MB elsewhere
_EXPONENT = {torch.float32: 64.0, torch.float64: 600.0}
SHARP = 2.0 / _EXPONENT[torch.float32]  # temperatures below want a maximum of every row


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

    def product(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return ``queries @ keys.mT`` in the buffer, for queries and keys as the functions above make them."""
        out = self(*queries.shape[:-1], keys.shape[-2])
        if queries.dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest":
            return torch.matmul(queries, keys.mT, out=out)
        # Such products round their factors, which n, a part of every score, must not be.
        torch.matmul(queries[..., :-2], keys[..., :-2].mT, out=out)
        return out.add_(queries[..., -2:-1]).add_(keys[..., -1:].mT)


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
        scores = buffer.product(x[..., i, :], y[..., j, :]).exp_()
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
        running.add(i, _masked(buffer.product(x[..., i, :], y[..., j, :]), i, j, y_valid, skip))
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
