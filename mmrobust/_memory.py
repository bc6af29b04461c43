"""What a memory bank computes with: unit rows, the slots they go to, and the rows of other processes."""

from __future__ import annotations

import torch
from torch import Tensor

from ._precision import widen
from ._similarity.units import NO_DIRECTION
from .distributed import gather_rows


def unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of length one, in float32 at least, and which are finite; those without a direction become zero."""
    x = widen(x)
    # Scaled by the largest entry first: the squares of 1e30 or 1e-30 do not fit into float32.
    scale = x.abs().amax(-1, keepdim=True)
    x = x / torch.where(scale < NO_DIRECTION, torch.inf, scale)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # 0, or at least 1
    return x / norm.clamp(min=1.0), scale.squeeze(-1).isfinite()


def ring_slots(ring: Tensor, depth: int, pointer: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the slot of each row of the rings ``ring (B,)``, and which rows are still there after all of the batch.

    Advances ``pointer (R,)``; ``None`` = rings of one slot. Rows of ring R belong to none.
    """
    order = ring.argsort(stable=True)
    grouped = ring[order]
    first, behind = (torch.searchsorted(grouped, ring, right=right) for right in (False, True))
    nth = order.argsort() - first  # of its ring, in the order of the batch
    stays = behind - first - nth <= depth
    if pointer is None:
        return ring, stays
    rings = pointer.shape[0]
    slot = ring * depth + (pointer[ring.clamp(max=rings - 1)] + nth) % depth
    ends = torch.searchsorted(grouped, torch.arange(rings + 1, device=ring.device))
    pointer.copy_((pointer + ends.diff()) % depth)
    return slot, stays


def all_ranks(unit: Tensor, facts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of all ranks, one rank after the other."""
    # As bytes both are one message.
    mine = torch.cat([part.contiguous().view(torch.uint8) for part in (unit, facts)], dim=1)
    whole = gather_rows(mine).rows
    cut = unit.shape[1] * unit.element_size()
    # Cloned, for a single row counts as contiguous already, wherever in memory it begins.
    first, second = (part.clone(memory_format=torch.contiguous_format) for part in (whole[:, :cut], whole[:, cut:]))
    return first.view(unit.dtype), second.view(facts.dtype)
