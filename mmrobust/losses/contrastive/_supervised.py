"""How rows are compared with keys for the supervised contrastive loss: by class, or pair by pair."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from ... import distributed
from ..._similarity.dense import dense_rows, is_small
from ..._similarity.implementation import need_torch, rounded
from ..._similarity.masked import Options, Positives, masked_rows, masked_sums
from ..._similarity.pairs import row_logsumexp, self_logsumexp
from ..._similarity.positives import class_energy
from ..._similarity.ring import ring_class_energy, ring_logsumexp
from ..._similarity.units import Units
from ._batch import Batch, Masks
from ._shared import (
    ContrastiveOutput,
    Gather,
    Impl,
    Reduction,
    Temperature,
    gather_units,
    reduce_rows,
    row_weights,
    split_units,
    units_of,
)

Aggregation = Literal["out", "in"]
WithoutPositives = Literal["skip", "zero"]


class SupConOptions(TypedDict, total=False):
    """The keyword arguments of the loss, for type checkers."""

    temperature: float | Tensor
    positives: Tensor | None
    excluded: Tensor | None
    present: Tensor | None
    weight: Tensor | None
    ignore_index: int | None
    keys: Tensor | None
    key_labels: Tensor | None
    key_present: Tensor | None
    key_excluded: Tensor | None
    aggregation: Aggregation
    without_positives: WithoutPositives
    reduction: Reduction
    gather: Gather
    impl: Impl
    validate: bool


class Rule(NamedTuple):
    """How rows are compared."""

    temperature: Temperature
    aggregation: Aggregation
    without_positives: WithoutPositives
    weight: Tensor | None
    reduction: Reduction
    gather: Gather
    impl: str


class Keys(NamedTuple):
    """Units of rows that are keys, their labels, and who is real."""

    units: Units
    labels: Tensor | None
    valid: Tensor | None

    def split(self, rows: int, extra: Batch) -> tuple[Keys, Keys]:
        """Return the first ``rows`` and the others, those of ``extra``."""
        first, rest = split_units(self.units, rows, extra.x)
        labels = (None, None) if self.labels is None else (self.labels[:rows], self.labels[rows:])
        valid = (None, None) if self.valid is None else (self.valid[:rows], self.valid[rows:])
        return Keys(first, labels[0], valid[0]), Keys(rest, labels[1], valid[1])


def compare(batch: Batch, extra: Batch | None, masks: Masks, rule: Rule) -> ContrastiveOutput:
    """Return the loss of a batch, and of how many rows."""
    size, every = batch.x.shape[0], batch if extra is None else _joined(batch, extra)
    if rule.gather or rule.impl != "torch" or rule.reduction == "none" or not is_small(size, every.x.shape[0]):
        rows, count = _row_losses(batch, every, extra, masks, rule)
        counted = _counted(count, batch.valid, rule)
        rows = rows if batch.valid is None else torch.where(batch.valid, rows, 0.0)
        return reduce_rows(rows, counted, rule.weight, rule.reduction, rule.gather)
    inside, value = rule.aggregation == "in", rule.temperature.value
    options = Options(every.valid, masks.all_excluded(every.x.shape[0]), None, inside)
    positive, left_out = _positives(batch.labels, every.labels, masks).whole(size, every.x.shape[0], options)
    count = positive.sum(1, dtype=value.dtype)
    weight, anchors = row_weights(_counted(count, batch.valid, rule), rule.weight, rule.reduction, value.dtype)
    if rule.without_positives == "zero":
        weight = torch.where(count > 0, weight, 0.0)
    return ContrastiveOutput(dense_rows(every.x, value, positive, count, weight, left_out, inside), anchors)


def check_possible(where: str, batch: Batch, masks: Masks, rule: Rule) -> None:
    """Raise where kernels were asked for that there are not, or a ring for what class sums cannot express."""
    by_class = _is_by_class(batch, masks, rule)
    if not by_class:
        need_torch(where, rule.impl, "several labels per row, masks of pairs and aggregation='in'")
    if masks.key_excluded is not None:
        need_torch(where, rule.impl, "key_excluded")
    if rule.gather == "ring":
        need_torch(where, rule.impl, "gather='ring'")
        if not by_class:
            several = batch.labels is not None and batch.labels.dim() == 2
            found = f"aggregation={rule.aggregation!r}" + (" and several labels per row" if several else "")
            raise ValueError(
                f"{where}: expected one label per row and aggregation='out' with gather='ring', got {found}"
            )


def _is_by_class(batch: Batch, masks: Masks, rule: Rule) -> bool:
    """Return whether sums over classes give the positives."""
    one_label = batch.labels is not None and batch.labels.dim() == 1
    return one_label and masks.excluded is None and rule.aggregation == "out"


def _counted(count: Tensor, valid: Tensor | None, rule: Rule) -> Tensor:
    """Return the rows the loss is the mean of."""
    counted = count > 0 if rule.without_positives == "skip" else torch.ones_like(count, dtype=torch.bool)
    return counted if valid is None else counted & valid


def _row_losses(batch: Batch, every: Batch, extra: Batch | None, masks: Masks, rule: Rule) -> tuple[Tensor, Tensor]:
    """Return the loss of every row, 0 without positives, and how many positives it has."""
    units = rounded(units_of(every.x, rule.gather), rule.impl)
    keys = Keys(units, every.labels, every.valid)
    own, further = (keys, None) if extra is None else keys.split(batch.x.shape[0], extra)
    if rule.gather == "ring":
        logsumexp, energy, count = _ring(own, rule)
    else:
        keys, skip = _gathered(own) if rule.gather else (own, 0)
        if not _is_by_class(batch, masks, rule):
            keys = keys if further is None else _joined_keys(keys, further)
            return _pair_by_pair(own, keys, masks, skip, rule)
        logsumexp, energy, count = _by_class(own, keys, skip, rule)
    energy, count = _without_self(own, energy, count)
    if further is not None:
        more = _with_further(own, further, masks.key_excluded, rule)
        logsumexp, energy, count = torch.logaddexp(logsumexp, more[0]), energy + more[1], count + more[2]
    some = torch.where(count > 0, count, 1.0)
    losses = logsumexp - energy / (some * rule.temperature.value)
    return torch.where(count > 0, losses, 0.0), count


def _positives(labels: Tensor | None, key_labels: Tensor | None, masks: Masks) -> Positives:
    return Positives(labels, key_labels) if masks.positives is None else Positives(mask=masks.positives)


def _pair_by_pair(own: Keys, keys: Keys, masks: Masks, skip: int, rule: Rule) -> tuple[Tensor, Tensor]:
    options = Options(keys.valid, masks.all_excluded(keys.units.u.shape[0]), skip, rule.aggregation == "in")
    positives = _positives(own.labels, keys.labels, masks)
    losses, count = masked_rows(own.units, keys.units, rule.temperature.value, positives, options)
    return torch.where(count > 0, losses, 0.0), count


def _by_class(own: Keys, keys: Keys, skip: int, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """Return logsumexp, energy of the positives and their number from sums over classes."""
    value, least = rule.temperature
    if rule.gather:
        logsumexp = row_logsumexp(
            own.units, keys.units, value, key_valid=keys.valid, skip=skip, least=least, impl=rule.impl
        )
    else:
        logsumexp = self_logsumexp(own.units, value, valid=own.valid, least=least, impl=rule.impl)
    assert own.labels is not None and keys.labels is not None
    return logsumexp, *class_energy(own.units, own.labels, keys.units, keys.labels, keys.valid)


def _ring(own: Keys, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same with the rows of all ranks, which pass by block after block."""
    value, least = rule.temperature
    units, labels = own.units, own.labels
    assert labels is not None
    logsumexp = ring_logsumexp(units, units, value, key_valid=own.valid, skip_own=True, least=least)
    return logsumexp, *ring_class_energy(units, labels, units, labels, own.valid)


def _with_further(own: Keys, further: Keys, excluded: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same with extra keys, without pairs that are ``excluded (B, K)``."""
    value, least = rule.temperature
    assert own.labels is not None and further.labels is not None
    if excluded is None:
        logsumexp = row_logsumexp(own.units, further.units, value, key_valid=further.valid, least=least, impl=rule.impl)
        return logsumexp, *class_energy(own.units, own.labels, further.units, further.labels, further.valid)
    positives, options = Positives(own.labels, further.labels), Options(further.valid, excluded, None, False)
    logsumexp, score, count = masked_sums(own.units, further.units, value, positives, options)
    return logsumexp, score * count * value, count


def _without_self(own: Keys, energy: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Take each row out of the sum over its class; its energy with itself is 0, or -1 without a direction."""
    count = count - 1 if own.valid is None else count - own.valid.to(count.dtype)
    return energy + 2 * own.units.lost, count


def _joined(first: Batch, second: Batch) -> Batch:
    x = torch.cat([first.x, second.x.to(first.x.dtype)])
    return Batch(x, *_joined_labels(first, second, x.device))


def _joined_keys(first: Keys, second: Keys) -> Keys:
    units = Units(*(torch.cat(pair) for pair in zip(first.units, second.units, strict=True)))
    return Keys(units, *_joined_labels(first, second, units.u.device))


def _joined_labels(
    first: Batch | Keys, second: Batch | Keys, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    labels = None
    if first.labels is not None and second.labels is not None:
        labels = torch.cat([first.labels, second.labels])
    if first.valid is None and second.valid is None:
        return labels, None
    valid = []
    for rows in (first, second):
        size = rows.x.shape[0] if isinstance(rows, Batch) else rows.units.u.shape[0]
        valid.append(torch.ones(size, dtype=torch.bool, device=device) if rows.valid is None else rows.valid)
    return labels, torch.cat(valid)


def _gathered(own: Keys) -> tuple[Keys, int]:
    """Return the keys of all ranks and where the own ones start."""
    units, valid, offset = gather_units(own.units, own.valid)
    labels = None if own.labels is None else distributed.gather_rows(own.labels, "labels").rows
    return Keys(units, labels, valid), offset
