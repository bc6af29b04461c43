"""Energies of positive pairs without a matrix of pairs: one partner per row, or sums over the rows of each class."""

from __future__ import annotations

import torch
from torch import Tensor

from .units import Units, wide_dtype


def partner_energy(queries: Units, keys: Units, shift: int = 0) -> Tensor:
    """Return the energy of each row with its partner, key ``i + shift`` (around the end): ``(..., A)``."""
    v, lost = keys
    if shift:
        v, lost = v.roll(-shift, -2), lost.roll(-shift, -1)
    return -((queries.u - v).square().sum(-1) / 2 + queries.lost + lost)


def class_energy(
    queries: Units, labels: Tensor, keys: Units, key_labels: Tensor, key_valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Return for each row the sum of its energies with all keys of its label, and their number, both ``(A,)``.

    :math:`\sum_j e_{ij} = u_i \sum_j v_j - c_i n_i - \sum_j n_j`, so that sums per class do: O((A + K) D) work.
    """
    half = keys.half.unsqueeze(1)
    values = torch.cat([keys.u, torch.ones_like(half), half], dim=1)
    sums = class_sums(values, key_labels, key_valid, labels)
    v, count, halves = sums[:, :-2], sums[:, -2].detach(), sums[:, -1]
    return (queries.u * v).sum(1) - count * queries.half - halves, count


def class_sums(values: Tensor, labels: Tensor, valid: Tensor | None, wanted: Tensor) -> Tensor:
    """Return for each label that is wanted ``(A,)`` the sum of the rows ``values (K, E)`` that have it, ``(A, E)``.

    Classes take the place of their first row in sorted order, which needs neither their number nor a look at them.
    """
    size = values.shape[0]
    labels, wanted = labels.contiguous(), wanted.contiguous()  # searchsorted warns of strides
    ordered = labels.sort().values
    first = torch.searchsorted(ordered, wanted)
    slot = torch.where(torch.searchsorted(ordered, wanted, right=True) > first, first, size)  # size: nobody's
    own = torch.searchsorted(ordered, labels)
    own = own if valid is None else torch.where(valid, own, size + 1)
    # In float64, here and so in the backward pass: what pulls at a row is what its class and all rows differ in.
    wide = values.to(wide_dtype(values))
    return wide.new_zeros(size + 2, values.shape[1]).index_add(0, own, wide)[slot].to(values.dtype)
