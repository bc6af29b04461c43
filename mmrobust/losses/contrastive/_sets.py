"""Sets of vectors of the same samples, of this rank or of all: what is there of which, and of two together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..._similarity.units import Units
from ...distributed import gather_rows


class Sets(NamedTuple):
    """Units ``(M, B, D)`` of M sets, and which vectors are there: ``keep (M, B)`` or None."""

    units: Units
    keep: Tensor | None

    def of(self, place: int) -> Units:
        """Return the units of one set."""
        return Units(self.units.u[place], self.units.lost[place])

    def both(self, a: int, b: int) -> Tensor | None:
        """Return which samples are in both sets."""
        return None if self.keep is None else self.keep[a] & self.keep[b]


def gather_sets(own: Sets) -> Sets:
    """Return the sets with the samples of all ranks, in one exchange."""
    (u, lost), keep = own.units, own.keep
    there = torch.ones_like(lost) if keep is None else keep.to(lost.dtype)
    everything = torch.cat([u, torch.stack([lost, there], dim=2)], dim=2).transpose(0, 1)
    rows = gather_rows(everything.contiguous()).rows.transpose(0, 1)
    u, lost, there = torch.split(rows, [u.shape[2], 1, 1], dim=2)
    return Sets(Units(u, lost.detach().squeeze(2)), there.detach().squeeze(2) > 0)
