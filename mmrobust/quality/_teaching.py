"""How the small networks of input quality learn: from rows spoilt on purpose, looked at as new rows will be."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._checks import check_range, check_size, present_rows
from .._precision import widen
from .._random import uniform
from ..corruption.spoiling import check_spoiling, spoil_rows
from ._buffers import CHUNK, ReferenceBuffers
from ._head import read_logvar
from .loss import quality_loss
from .reference import Fitting

_BATCH = 1024
_DECAY = 1e-4


class Rows(NamedTuple):
    """The rows of one modality: ``x``, what is there of it ``(N,)`` or ``(N, T)``, and their groups ``(N,)``."""

    x: Tensor
    mask: Tensor
    groups: Tensor | None

    @property
    def there(self) -> Tensor:
        """The rows that have anything, ``(N,)``."""
        return present_rows(self.mask)


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
    rows: Rows,
    fitting: Fitting,
    teaching: Teaching,
    generator: torch.Generator | None,
) -> None:
    """Train a head on the rows of one modality; it is a copy that learns, for the head may be frozen, or in half."""
    statistics, share = _examples(reference, rows, fitting, teaching, generator)
    pupil = copy.deepcopy(head).to(statistics.dtype).requires_grad_()
    optimizer = torch.optim.Adam(pupil.parameters(), lr=teaching.lr, weight_decay=_DECAY)
    with torch.enable_grad():
        for _ in range(teaching.steps):
            drawn = (uniform((_BATCH,), generator, share.device) * len(share)).long()
            loss = quality_loss(read_logvar(pupil, statistics[drawn])[:, None], share[drawn, None])
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
    head.load_state_dict(pupil.state_dict())


def _examples(
    reference: ReferenceBuffers, rows: Rows, fitting: Fitting, teaching: Teaching, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Measure rows, some of them spoilt: against references fitted without them, and against the one that has them.

    The first is how new rows will be looked at; the second how the training rows are in the training of a model, to
    which they look more familiar than any new row.
    """
    fold, parts = deal(rows, teaching.folds, generator), []
    for number in range(int(fold.max()) + 1):
        scratch = copy.deepcopy(reference)
        scratch.fit(rows.x[fold != number], rows.mask[fold != number], fitting)
        parts += _measured(scratch, rows, fold == number, teaching, generator)
    parts += _measured(reference, rows, fold >= 0, teaching, generator)
    statistics, shares = zip(*parts, strict=True)
    return widen(torch.cat(statistics)), torch.cat(shares)


def _measured(
    reference: ReferenceBuffers, rows: Rows, chosen: Tensor, teaching: Teaching, generator: torch.Generator | None
) -> list[tuple[Tensor, Tensor]]:
    """Spoil the chosen rows, several times over; return their statistics and shares."""
    parts = []
    for part in torch.split(chosen.nonzero().squeeze(1), CHUNK):
        x, mask = rows.x[part], rows.mask[part]
        for _ in range(teaching.draws):
            spoilt, share = spoil_rows(
                x, teaching.rate, mask, kinds=teaching.kinds, snr_db=teaching.snr_db, generator=generator
            )
            parts.append((reference(spoilt, mask), share))
    return parts


def count_units(rows: Rows) -> int:
    """Count the groups that have the modality; without groups, the rows."""
    return int(rows.there.sum()) if rows.groups is None else len(torch.unique(rows.groups[rows.there]))


def deal(rows: Rows, folds: int, generator: torch.Generator | None) -> Tensor:
    """Give each present row a fold number ``(N,)``, whole groups to one fold; -1 = absent."""
    there, groups = rows.there, rows.groups
    fold = torch.full(there.shape, -1, device=there.device)
    members = torch.arange(int(there.sum()), device=there.device)
    units = members if groups is None else torch.unique(groups[there], return_inverse=True)[1]
    count = int(units.max()) + 1
    order = uniform((count,), generator, there.device).argsort().argsort()
    fold[there] = order[units] % min(folds, count)
    return fold
