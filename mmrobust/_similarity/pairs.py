"""The contrastive core as an operator: a logsumexp over all pairs of rows, in memory that grows with the rows alone.

The forward pass keeps the vectors and a number per row; the backward pass computes the scores again, or finds the
exponentials of a small batch kept. As operators of
``torch.library`` both compile and export; inside they walk tiles (:mod:`.tiles`) or call a kernel.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._precision import no_autocast
from . import tiles
from .gradients import Side, gradients, weighted_sums
from .implementation import Kernels, is_exporting
from .once import refuse
from .units import Units

NO_KEY = tiles.NO_KEY
_KEPT = 1 << 20  # exponentials, 4 MB


def self_logsumexp(
    units: Units, temperature: Tensor, *, valid: Tensor | None = None, least: float = 0.0, impl: str = "torch"
) -> Tensor:
    """Return ``log sum_j exp(e_ij / t)`` over the other rows j ``(B,)``; ``NO_KEY`` where there is none.

    ``valid (B,)`` bool: the rows that are keys. ``least``: a lower bound of the temperature known without reading it.
    """
    rows, _ = _pair_logsumexp(units, None, temperature, valid, None, "self", 0, least, impl)
    return rows


def row_logsumexp(
    queries: Units,
    keys: Units,
    temperature: Tensor,
    *,
    key_valid: Tensor | None = None,
    skip: int | None = None,
    least: float = 0.0,
    impl: str = "torch",
) -> Tensor:
    """Return ``log sum_j exp(e_ij / t)`` over keys j ``(..., A)`` without ``j = i + skip``; ``NO_KEY`` without keys."""
    rows, _ = _pair_logsumexp(queries, keys, temperature, None, key_valid, "rows", skip, least, impl)
    return rows


def both_logsumexp(
    queries: Units,
    keys: Units,
    temperature: Tensor,
    *,
    query_valid: Tensor | None = None,
    key_valid: Tensor | None = None,
    least: float = 0.0,
    impl: str = "torch",
) -> tuple[Tensor, Tensor]:
    """Return the logsumexp of each query over keys ``(..., A)`` and of each key over queries ``(..., K)``."""
    return _pair_logsumexp(queries, keys, temperature, query_valid, key_valid, "both", None, least, impl)


def _pair_logsumexp(
    queries: Units,
    keys: Units | None,
    temperature: Tensor,
    query_valid: Tensor | None,
    key_valid: Tensor | None,
    mode: str,
    skip: int | None,
    least: float,
    impl: str,
) -> tuple[Tensor, Tensor]:
    u, lost = queries
    v, key_lost = (None, None) if keys is None else keys
    fast = u.device.type == "cpu" or least >= tiles.SHARP  # else nothing would be left in what is kept
    keep = fast and impl == "torch" and torch.is_grad_enabled() and _can_keep(u, u if v is None else v)
    rows, columns, _ = torch.ops.mmrobust.pair_logsumexp(
        u, lost, v, key_lost, temperature.to(u.dtype), query_valid, key_valid, mode, skip, least, impl, keep
    )
    return rows, columns


def _number(u: Tensor, v: Tensor) -> int:
    return math.prod(u.shape[:-1]) * v.shape[-2]


def _can_keep(u: Tensor, v: Tensor) -> bool:
    """Return whether the exponentials of all pairs may wait for the backward pass, which saves it a third."""
    # A program would have the size written into it.
    return not is_exporting() and _number(u, v) <= _KEPT


@torch.library.custom_op("mmrobust::pair_logsumexp", mutates_args=())
def _forward(
    u: Tensor,
    lost: Tensor,
    v: Tensor | None,
    key_lost: Tensor | None,
    temperature: Tensor,
    query_valid: Tensor | None,
    key_valid: Tensor | None,
    mode: str,
    skip: int | None,
    least: float,
    impl: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    queries, keys = Units(u, lost), Units(u, lost)
    if v is None or key_lost is None:
        key_valid = query_valid
    else:
        keys = Units(v, key_lost)
    with no_autocast(u):
        if impl != "torch":
            kernels = Kernels(impl, queries, keys, temperature, skip)
            return *kernels.logsumexp(query_valid, key_valid, mode), u.new_empty(0)
        x, y = tiles.queries(u, queries.half, temperature), tiles.keys(keys.u, keys.half, temperature)
        kept, fast = _place(u, keys.u, keep), tiles.is_fast(temperature, least)
        rows, columns = tiles.logsumexp(x, y, query_valid, key_valid, mode, skip, fast, kept if keep else None)
        return rows, columns, kept


def _place(u: Tensor, v: Tensor, keep: bool) -> Tensor:
    return u.new_empty(_number(u, v) if keep else 0)


@_forward.register_fake
def _(
    u: Tensor,
    lost: Tensor,
    v: Tensor | None,
    key_lost: Tensor | None,
    temperature: Tensor,
    query_valid: Tensor | None,
    key_valid: Tensor | None,
    mode: str,
    skip: int | None,
    least: float,
    impl: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    columns = torch.empty_like(key_lost) if mode == "both" and key_lost is not None else lost.new_empty(0)
    return torch.empty_like(lost), columns, _place(u, u if v is None else v, keep)


@torch.library.custom_op("mmrobust::pair_logsumexp_backward", mutates_args=())
def _backward(
    u: Tensor,
    lost: Tensor,
    v: Tensor | None,
    key_lost: Tensor | None,
    temperature: Tensor,
    query_valid: Tensor | None,
    key_valid: Tensor | None,
    row_lse: Tensor,
    key_lse: Tensor,
    kept: Tensor,
    row_grad: Tensor,
    key_grad: Tensor,
    mode: str,
    skip: int | None,
    least: float,
    impl: str,
    for_keys: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    queries, keys = Units(u, lost), Units(u, lost)
    rows = columns = Side(row_grad, row_lse, query_valid)
    if v is not None and key_lost is not None:
        keys = Units(v, key_lost)
        columns = Side(key_grad, key_lse, key_valid)
        if mode == "rows":
            columns = Side(torch.zeros_like(key_lost), torch.zeros_like(key_lost), key_valid)
    with no_autocast(u):
        if impl != "torch":
            return Kernels(impl, queries, keys, temperature, skip).gradients(rows, columns, mode, for_keys)
        half, fast, known = queries.half, tiles.is_fast(temperature, least), kept if kept.numel() else None
        x, y = tiles.queries(u, half, temperature), tiles.keys(keys.u, keys.half, temperature)
        out, key_out = weighted_sums(x, y, rows, columns, mode, skip, fast, for_keys, known)
        del x, y
        du, dv, dt = gradients(u, half, keys.u, out, key_out, temperature)
        # Of rows against themselves both gradients are in du, and every energy is counted twice.
        return du, dv, dt / 2 if mode == "self" else dt


@_backward.register_fake
def _(
    u: Tensor,
    lost: Tensor,
    v: Tensor | None,
    key_lost: Tensor | None,
    temperature: Tensor,
    query_valid: Tensor | None,
    key_valid: Tensor | None,
    row_lse: Tensor,
    key_lse: Tensor,
    kept: Tensor,
    row_grad: Tensor,
    key_grad: Tensor,
    mode: str,
    skip: int | None,
    least: float,
    impl: str,
    for_keys: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dv = torch.empty_like(v) if v is not None and for_keys else u.new_empty(0)
    return torch.empty_like(u), dv, torch.empty_like(temperature)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.mode, ctx.skip, ctx.least, ctx.impl, _ = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)  # zeros for what is kept would take longer than it saves
    ctx.for_keys = inputs[2] is not None and ctx.needs_input_grad[2]


def _differentiate(ctx: Any, row_grad: Tensor | None, key_grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: checkpointing hands them out a single time
    *_, row_lse, key_lse, _ = saved
    row_grad = torch.zeros_like(row_lse) if row_grad is None else row_grad
    key_grad = torch.zeros_like(key_lse) if key_grad is None else key_grad
    du, dv, dt = torch.ops.mmrobust.pair_logsumexp_backward(
        *saved, row_grad, key_grad, ctx.mode, ctx.skip, ctx.least, ctx.impl, ctx.for_keys
    )
    return (du, None, dv if ctx.for_keys else None, None, dt, *(None,) * 7)


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(refuse)
