"""How rows are compared with keys for the supervised contrastive loss: by class, or pair by pair."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from ... import distributed
from ..._checks import as_mask, check_floating, check_integers, check_shape, check_tensor
from ..._similarity.dense import dense_rows, is_small
from ..._similarity.masked import Options, Positives, masked_rows
from ..._similarity.pairs import row_logsumexp, self_logsumexp
from ..._similarity.positives import class_energy
from ..._similarity.ring import ring_class_energy, ring_logsumexp
from ..._similarity.units import Units
from ...masking import zero_missing
from ._shared import Gather, Impl, Reduction, Temperature, gather_units, units_of

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
    aggregation: Aggregation
    without_positives: WithoutPositives
    reduction: Reduction
    gather: Gather
    impl: Impl
    validate: bool


class Batch(NamedTuple):
    """Rows ``x (B, D)``, what is absent zero, their labels ``(B,)`` or ``(B, C)``, and who is real ``(B,)``."""

    x: Tensor
    labels: Tensor | None
    valid: Tensor | None


class Masks(NamedTuple):
    """Pairs ``(B, K)`` that are positive, or that do not exist."""

    positives: Tensor | None
    excluded: Tensor | None


class Rule(NamedTuple):
    """How rows are compared."""

    temperature: Temperature
    aggregation: Aggregation
    gather: Gather
    impl: str


class Keys(NamedTuple):
    """Units of rows that are keys, their labels, and who is real."""

    units: Units
    labels: Tensor | None
    valid: Tensor | None

    def split(self, rows: int) -> tuple[Keys, Keys]:
        """Return the first ``rows`` and the others."""
        first, rest = self.units.split(rows)
        labels = (None, None) if self.labels is None else (self.labels[:rows], self.labels[rows:])
        valid = (None, None) if self.valid is None else (self.valid[:rows], self.valid[rows:])
        return Keys(first, labels[0], valid[0]), Keys(rest, labels[1], valid[1])


def row_losses(batch: Batch, extra: Batch | None, masks: Masks, rule: Rule) -> tuple[Tensor, Tensor]:
    """Return the loss of every row, 0 without positives, and how many positives it has."""
    size, every = batch.x.shape[0], batch if extra is None else _joined(batch, extra)
    if not rule.gather and rule.impl == "torch" and is_small(size, every.x.shape[0]):
        options = Options(every.valid, masks.excluded, 0, rule.aggregation == "in")
        positive, left_out = _positives(batch.labels, every.labels, masks).whole(size, every.x.shape[0], options)
        return dense_rows(every.x, size, rule.temperature.value, positive, left_out, options.inside)
    keys = Keys(units_of("sup_con_loss", every.x, rule.gather), every.labels, every.valid)
    own, further = (keys, None) if extra is None else keys.split(size)
    one_label = batch.labels is not None and batch.labels.dim() == 1
    by_class = one_label and masks.excluded is None and rule.aggregation == "out"
    if rule.gather == "ring":
        if not by_class:
            found = f"aggregation={rule.aggregation!r}" + ("" if one_label else " and several labels per row")
            raise ValueError(
                f"sup_con_loss: expected one label per row and aggregation='out' with gather='ring', got {found}"
            )
        logsumexp, energy, count = _ring(own, further, rule)
    else:
        skip = 0
        if rule.gather:
            keys, skip = _gathered(own)
            keys = keys if further is None else _joined_keys(keys, further)
        if not by_class:
            return _pair_by_pair(own, keys, masks, skip, rule)
        logsumexp, energy, count = _by_class(own, further, keys, skip, rule)
    some = torch.where(count > 0, count, 1.0)
    losses = logsumexp - energy / (some * rule.temperature.value)
    return torch.where(count > 0, losses, 0.0), count


def _positives(labels: Tensor | None, key_labels: Tensor | None, masks: Masks) -> Positives:
    return Positives(labels, key_labels) if masks.positives is None else Positives(mask=masks.positives)


def _pair_by_pair(own: Keys, keys: Keys, masks: Masks, skip: int, rule: Rule) -> tuple[Tensor, Tensor]:
    options = Options(keys.valid, masks.excluded, skip, rule.aggregation == "in")
    positives = _positives(own.labels, keys.labels, masks)
    losses, count = masked_rows(own.units, keys.units, rule.temperature.value, positives, options)
    return torch.where(count > 0, losses, 0.0), count


def _by_class(own: Keys, further: Keys | None, keys: Keys, skip: int, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """Return logsumexp, energy of the positives and their number from sums over classes."""
    value, least = rule.temperature
    if rule.gather:
        logsumexp = row_logsumexp(
            own.units, keys.units, value, key_valid=keys.valid, skip=skip, least=least, impl=rule.impl
        )
    else:
        logsumexp = self_logsumexp(own.units, value, valid=own.valid, least=least, impl=rule.impl)
        logsumexp = _with_further(logsumexp, own, further, rule)
    assert own.labels is not None and keys.labels is not None
    energy, count = class_energy(own.units, own.labels, keys.units, keys.labels, keys.valid)
    return logsumexp, *_without_self(own, energy, count)


def _ring(own: Keys, further: Keys | None, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same with the rows of all ranks, which pass by block after block."""
    value, least = rule.temperature
    units, labels = own.units, own.labels
    assert labels is not None
    logsumexp = ring_logsumexp(units, units, value, key_valid=own.valid, skip_own=True, least=least)
    energy, count = ring_class_energy(units, labels, units, labels, own.valid)
    if further is not None:
        assert further.labels is not None
        logsumexp = _with_further(logsumexp, own, further, rule)
        more = class_energy(units, labels, further.units, further.labels, further.valid)
        energy, count = energy + more[0], count + more[1]
    return logsumexp, *_without_self(own, energy, count)


def _with_further(logsumexp: Tensor, own: Keys, further: Keys | None, rule: Rule) -> Tensor:
    if further is None:
        return logsumexp
    value, least = rule.temperature
    other = row_logsumexp(own.units, further.units, value, key_valid=further.valid, least=least, impl=rule.impl)
    return torch.logaddexp(logsumexp, other)


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


def check_together(where: str, positives: Tensor | None, ignore_index: int | None, **extra: Tensor | None) -> None:
    """Raise where an argument would be left unread: ``extra`` are keys and what describes them."""
    if positives is not None and ignore_index is not None:
        raise ValueError(f"{where}: expected no ignore_index with positives, got {ignore_index}")
    if extra["keys"] is None and any(x is not None for x in extra.values()):
        raise ValueError(f"{where}: expected keys with key_labels and key_present, got none")


def checked_rows(
    where: str, x: Tensor, labels: Tensor | None, present: Tensor | None, ignore_index: int | None, prefix: str
) -> Batch:
    """Return rows, labels and who is real; ``prefix`` is ``"key_"`` for extra keys."""
    name, size = ("keys", "K") if prefix else ("features", "B")
    check_floating(where, name, x)
    check_shape(where, name, x, **{size: None, "D": None})
    valid = as_mask(where, f"{prefix}present", present, **{size: x.shape[0]})
    if labels is not None:
        labels = _checked_labels(where, f"{prefix}labels", labels, ignore_index, **{size: x.shape[0]})
        if ignore_index is not None:
            known = labels != ignore_index
            valid = known if valid is None else valid & known
    return Batch(zero_missing(x, valid), labels, valid)


def _checked_labels(where: str, name: str, labels: Tensor, ignore_index: int | None, **rows: int) -> Tensor:
    """Return labels as int64, or several per row as float32: how many two rows share is a matrix product."""
    check_tensor(where, name, labels)
    if labels.dim() != 2:
        check_shape(where, name, labels, **rows)
        check_integers(where, name, labels)
        return labels.long()
    if labels.shape[1] == 1 and labels.dtype != torch.bool:
        raise ValueError(
            f"{where}: expected {name} of shape ({', '.join(rows)},) or several per row, got {tuple(labels.shape)}"
        )
    if ignore_index is not None:
        raise ValueError(f"{where}: expected no ignore_index with several {name} per row, got {ignore_index}")
    several = as_mask(where, name, labels, **rows, C=None)
    assert several is not None
    return several.to(torch.float32)


def checked_masks(
    where: str, batch: Batch, extra: Batch | None, positives: Tensor | None, excluded: Tensor | None, gather: Gather
) -> Masks:
    """Return masks of pairs whose shapes fit rows and keys; raise where options exclude each other."""
    size = batch.x.shape[0]
    keys = size + (0 if extra is None else extra.x.shape[0])
    if (batch.labels is None) == (positives is None):
        raise ValueError(f"{where}: expected either labels or positives, got {'none' if positives is None else 'both'}")
    if extra is not None:
        check_shape(where, "keys", extra.x, K=None, D=batch.x.shape[1])
        if batch.labels is None and extra.labels is not None:
            raise ValueError(f"{where}: expected no key_labels with positives, got both")
        if batch.labels is not None and (extra.labels is None or extra.labels.dim() != batch.labels.dim()):
            found = "none" if extra.labels is None else f"{tuple(extra.labels.shape)} with {tuple(batch.labels.shape)}"
            raise ValueError(f"{where}: expected key_labels in the form of labels, of every row of keys, got {found}")
        if batch.labels is not None and batch.labels.dim() == 2:
            check_shape(where, "key_labels", extra.labels, K=None, C=batch.labels.shape[1])  # type: ignore[arg-type]
    if gather and not (positives is None and excluded is None):
        raise ValueError(
            f"{where}: expected neither positives nor excluded, which know of one rank's keys, with gather, "
            f"got gather={gather!r}"
        )
    return Masks(
        as_mask(where, "positives", positives, B=size, K=keys), as_mask(where, "excluded", excluded, B=size, K=keys)
    )
