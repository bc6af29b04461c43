"""How the small networks of input quality learn: from rows spoilt on purpose, looked at as new rows will be."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._checks import check_range, check_size
from .._precision import widen
from .._random import uniform
from ..corruption.spoiling import check_spoiling, spoil_rows
from ._buffers import CHUNK, ReferenceBuffers
from ._head import read_logvar
from .loss import quality_loss
from .reference import Fitting

_BATCH = 1024
_DECAY = 1e-4


class Teaching(NamedTuple):
    """Arguments of :meth:`ModalityQuality.teach`."""

    rate: float
    kinds: Sequence[str]
    snr_db: tuple[float, float]
    folds: int
    draws: int
    steps: int
    lr: float


def check_teaching(where: str, teaching: Teaching) -> None:
    """Raise unless the arguments of :meth:`ModalityQuality.teach` are in range."""
    check_spoiling(where, teaching.rate, teaching.kinds, teaching.snr_db)
    check_size(where, "folds", teaching.folds, 2)
    for name in ("draws", "steps"):
        check_size(where, name, getattr(teaching, name))
    check_range(where, "lr", teaching.lr, 0.0, low_open=True)


def teach(
    reference: ReferenceBuffers,
    head: nn.Module,
    x: Tensor,
    mask: Tensor,
    groups: Tensor | None,
    fitting: Fitting,
    teaching: Teaching,
    generator: torch.Generator | None,
) -> None:
    """Train a head on the rows of one modality; it is a copy that learns, for the head may be frozen, or in half."""
    statistics, share = _examples(reference, x, mask, groups, fitting, teaching, generator)
    pupil = copy.deepcopy(head).to(statistics.dtype).requires_grad_()
    optimizer = torch.optim.Adam(pupil.parameters(), lr=teaching.lr, weight_decay=_DECAY)
    with torch.enable_grad():
        for _ in range(teaching.steps):
            rows = (uniform((_BATCH,), generator, x.device) * len(share)).long()
            loss = quality_loss(read_logvar(pupil, statistics[rows])[:, None], share[rows, None])
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
    head.load_state_dict(pupil.state_dict())


def _examples(
    reference: ReferenceBuffers,
    x: Tensor,
    mask: Tensor,
    groups: Tensor | None,
    fitting: Fitting,
    teaching: Teaching,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Measure rows, some of them spoilt: against references fitted without them, and against the one that has them.

    The first is how new rows will be looked at; the second how the training rows are in the training of a model, to
    which they look more familiar than any new row.
    """
    there, parts = _there(mask), []
    fold = deal(there, groups, teaching.folds, generator)
    for number in range(int(fold.max()) + 1):
        scratch = copy.deepcopy(reference)
        scratch.fit(x[fold != number], mask[fold != number], fitting)
        parts += _measured(scratch, x, mask, there & (fold == number), teaching, generator)
    parts += _measured(reference, x, mask, there, teaching, generator)
    statistics, shares = zip(*parts, strict=True)
    return widen(torch.cat(statistics)), torch.cat(shares)


def _measured(
    reference: ReferenceBuffers,
    x: Tensor,
    mask: Tensor,
    chosen: Tensor,
    teaching: Teaching,
    generator: torch.Generator | None,
) -> list[tuple[Tensor, Tensor]]:
    """Spoil the chosen rows, several times over; return their statistics and shares."""
    parts = []
    for rows in torch.split(chosen.nonzero().squeeze(1), CHUNK):
        for _ in range(teaching.draws):
            spoilt, share = spoil_rows(
                x[rows],
                teaching.rate,
                mask[rows],
                kinds=teaching.kinds,
                snr_db=teaching.snr_db,
                generator=generator,
            )
            parts.append((reference(spoilt, mask[rows]), share))
    return parts


def count_units(mask: Tensor, groups: Tensor | None) -> int:
    """Count the groups that have the modality; without groups, the rows."""
    there = _there(mask)
    return int(there.sum()) if groups is None else len(torch.unique(groups[there]))


def _there(mask: Tensor) -> Tensor:
    return mask if mask.dim() == 1 else mask.any(1)


def deal(there: Tensor, groups: Tensor | None, folds: int, generator: torch.Generator | None) -> Tensor:
    """Give each present row a fold number ``(N,)``, whole groups to one fold; -1 = absent."""
    fold = torch.full(there.shape, -1, device=there.device)
    members = torch.arange(int(there.sum()), device=there.device)
    units = members if groups is None else torch.unique(groups[there], return_inverse=True)[1]
    count = int(units.max()) + 1
    order = uniform((count,), generator, there.device).argsort().argsort()
    fold[there] = order[units] % min(folds, count)
    return fold
