r"""Rows and sums of all ranks: what a loss over the whole batch needs when the batch is spread over processes.

Everything here works on the default process group of ``torch.distributed``, and does nothing where there is none or
where it has one process.

Every function is a collective: all ranks call it, in the same order, also a rank that has no rows. Autograd runs
backward passes in the reverse order of the forward ones, so that they meet as well, as long as every rank's loss
depends on what it gathered.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd.function import once_differentiable

from ._checks import check_floating, check_tensor
from ._layouts import all_gather, exchange_layouts, is_active, world_size
from ._precision import widen

__all__ = ["GatheredRows", "gather_rows", "global_mean", "global_sum"]


class GatheredRows(NamedTuple):
    """The rows of all ranks ``(sum of sizes, ...)``, the index of the own first one, and how many each rank has."""

    rows: Tensor
    offset: int
    sizes: tuple[int, ...]


def gather_rows(x: Tensor, name: str = "features") -> GatheredRows:
    r"""Gather the rows of all ranks, in the order of the ranks, with exact gradients.

    Ranks may have different numbers of rows, and none. Backward, every rank receives what the losses of *all* ranks
    say about its rows, summed up: with L_r the loss of rank r, :math:`\sum_r \partial L_r / \partial x`. A plain
    ``all_gather`` drops the part of the other ranks.

    Both directions wait for all ranks, and the host for the sizes that they exchange first. Hence every rank has to
    call this and, if it calls ``backward``, with a loss that depends on the gathered rows: where there is nothing to
    compute, return ``rows[:0].sum()`` and not a constant.
    Rows that need a gradient on one rank are attached to the graph on every rank.

    Args:
        x: Tensor ``(B, ...)``, floating, complex, integer or bool; all sizes but B, and the dtype, agree on all ranks.
        name: What the message of an error calls ``x``.

    Returns:
        :class:`GatheredRows` with ``rows`` of the dtype of ``x``, ``offset`` and ``sizes``. In one process ``x``
        itself, 0 and ``(B,)``.

    Raises:
        TypeError: If ``x`` is not a tensor.
        ValueError: On every rank, if sizes or dtypes disagree, if ``x`` has no dimension or more than 8, or if one rank
            needs a gradient while another records none (``torch.no_grad``).
        RuntimeError: If the result is differentiated twice.

    Example:
        >>> gather_rows(torch.tensor([[1.0, 2.0]]))
        GatheredRows(rows=tensor([[1., 2.]]), offset=0, sizes=(1,))
    """
    if is_active():
        return _gather_rows(x, name)
    check_tensor("gather_rows", name, x)
    if not x.dim():
        raise ValueError(f"gather_rows: expected {name} of shape (B, ...), got ()")
    return GatheredRows(x, 0, (x.shape[0],))


@_disable_dynamo  # a graph breaks here: the collectives that compile have no rows of different numbers
def _gather_rows(x: Tensor, name: str) -> GatheredRows:
    layouts = exchange_layouts("gather_rows", name, x)
    sizes = tuple(layout.shape[0] for layout in layouts)
    offset = sum(sizes[: dist.get_rank()])
    if not any(layout.differentiable for layout in layouts):
        return GatheredRows(_gather(x, sizes), offset, sizes)
    # A rank that needs no gradient itself takes part in the backward pass of those that do.
    rows: Tensor = _GatherRows.apply(x, x.new_zeros(()).requires_grad_(), sizes)  # type: ignore[no-untyped-call]
    return GatheredRows(rows, offset, sizes)


def global_sum(x: Tensor) -> Tensor:
    """Add up a tensor over all ranks, without gradient: for counts, centres and other statistics of the batch.

    Args:
        x: Tensor of the same shape and dtype on every rank, which is not checked; bool and integers become int64,
            float16 and bfloat16 are added in float32.

    Returns:
        The sum, equal on every rank; floating dtypes stay as they are. In one process ``x``, detached.

    Raises:
        TypeError: If ``x`` is not a tensor.

    Example:
        >>> global_sum(torch.tensor([True, False]).sum())
        tensor(1)
    """
    check_tensor("global_sum", "x", x)
    x = x.detach()
    total = widen(x) if x.is_floating_point() else x.to(torch.int64)
    total = _all_reduce(total) if is_active() else total
    return total.to(x.dtype) if x.is_floating_point() else total


@_disable_dynamo
def _all_reduce(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def global_mean(local_sum: Tensor, local_count: Tensor | float) -> Tensor:
    r"""Turn a rank's sum of losses into the loss whose gradients ``DistributedDataParallel`` averages to the exact one.

    The loss of the whole batch is :math:`L = \sum_r S_r / N` with the sum :math:`S_r` of rank r and the *global* count
    :math:`N = \sum_r N_r`. DDP averages: with W ranks and losses :math:`L_r` it gives
    :math:`\frac{1}{W} \sum_r \nabla L_r`, which is :math:`\nabla L` for :math:`L_r = W S_r / N`. Means over the own
    rows, :math:`S_r / N_r`, give something else as soon as counts differ.

    The value is the rank's part: its mean over ranks is L. What is logged therefore has to be averaged over ranks, too.

    Args:
        local_sum: Floating scalar (or any shape): the sum over the own rows, attached to the graph even if there is
            none.
        local_count: How many rows it is the sum of, or the sum of their weights: a number, or a tensor that broadcasts
            to ``local_sum``. It gets no gradient.

    Returns:
        ``local_sum * W / N`` in float32 (float64 for float64), with N = 1 where nothing counts. In one process the
        mean.

    Raises:
        TypeError: If ``local_sum`` is not a floating-point tensor.

    Example:
        >>> losses = torch.tensor([1.0, 3.0, 0.0])
        >>> counted = torch.tensor([True, True, False])
        >>> global_mean(losses.sum(), counted.sum())
        tensor(2.)
    """
    check_floating("global_mean", "local_sum", local_sum)
    total = widen(local_sum)
    count = torch.as_tensor(local_count, device=total.device).detach().to(total.dtype)
    count = global_sum(count)
    return total * world_size() / torch.where(count > 0, count, 1.0)


def _bytes(x: Tensor) -> Tensor:
    """Return ``x (B, ...)`` as ``(B, bytes)``: no backend knows all dtypes."""
    width = x.shape[1:].numel()
    flat = x.reshape(x.shape[0], width)
    if flat.stride() != (width, 1):  # one row, or none, is called contiguous whatever its strides
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)


def _gather(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    rows = x.new_empty(sum(sizes), *x.shape[1:])
    if not rows.numel():
        return rows
    # Not every backend gathers blocks of different lengths: the shorter ones are filled up.
    longest = max(sizes)
    block = _bytes(x)
    if x.shape[0] < longest:
        block = torch.cat([block, block.new_zeros(longest - x.shape[0], block.shape[1])])
    even = min(sizes) == longest
    blocks = _bytes(rows) if even else block.new_empty(len(sizes) * longest, block.shape[1])
    all_gather(blocks, block)
    if even:
        return rows
    parts = blocks.view(len(sizes), longest, block.shape[1]).unbind()
    torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)], out=_bytes(rows))
    return rows


class _GatherRows(torch.autograd.Function):
    """Gather rows; backward, send every rank the gradients of its rows, which it adds up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, attach: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.sizes = sizes
        return _gather(x, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        sizes: tuple[int, ...] = ctx.sizes
        own, world = sizes[dist.get_rank()], len(sizes)
        received = grad.new_empty(world, own, *grad.shape[1:])
        if grad.numel():
            # Of a reduction every rank would need one part only, and the parts differ in length.
            flat = received.view(world * own, grad.shape[1:].numel())
            dist.all_to_all_single(_bytes(flat), _bytes(grad), [own] * world, list(sizes))
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return widen(received).sum(0).to(grad.dtype), None, None
