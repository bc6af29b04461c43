"""The rows, labels and masks of the supervised contrastive loss, checked at its door."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._checks import as_mask, check_floating, check_integers, check_shape, check_tensor
from ...masking import zero_missing
from ._shared import Gather
from ._validation import Values


class Batch(NamedTuple):
    """Rows ``x (B, D)``, what is absent zero, their labels ``(B,)`` or ``(B, C)``, and who is real ``(B,)``."""

    x: Tensor
    labels: Tensor | None
    valid: Tensor | None


class Masks(NamedTuple):
    """Pairs ``(B, B + K)`` that are positive, or that do not exist; ``key_excluded (B, K)`` of extra keys only."""

    positives: Tensor | None
    excluded: Tensor | None
    key_excluded: Tensor | None

    def all_excluded(self, keys: int) -> Tensor | None:
        """Return the pairs ``(B, keys)`` that do not exist; extra keys are the last of them."""
        if self.key_excluded is None:
            return self.excluded
        extra = F.pad(self.key_excluded, (keys - self.key_excluded.shape[1], 0))
        return extra if self.excluded is None else self.excluded | extra


def check_together(where: str, positives: Tensor | None, ignore_index: int | None, **extra: Tensor | None) -> None:
    """Raise where an argument would be left unread: ``extra`` are keys and what describes them."""
    if positives is not None and ignore_index is not None:
        raise ValueError(f"{where}: expected no ignore_index with positives, got {ignore_index}")
    for name, x in extra.items():
        if extra["keys"] is None and x is not None:
            raise ValueError(f"{where}: expected keys with {name}, got none")
    if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, int)):
        raise TypeError(f"{where}: expected ignore_index to be an integer, got {type(ignore_index).__name__}")


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
    where: str,
    batch: Batch,
    extra: Batch | None,
    gather: Gather,
    positives: Tensor | None,
    excluded: Tensor | None,
    key_excluded: Tensor | None,
) -> Masks:
    """Return masks of pairs whose shapes fit rows and keys; raise where options exclude each other."""
    size, more = batch.x.shape[0], 0 if extra is None else extra.x.shape[0]
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
            f"{where}: expected neither positives nor excluded, which know of one rank's rows, with gather "
            f"(labels and key_excluded can be), got gather={gather!r}"
        )
    return Masks(
        _as_pairs(where, "positives", positives, size, more),
        _as_pairs(where, "excluded", excluded, size, more),
        as_mask(where, "key_excluded", key_excluded, B=size, K=more),
    )


def _as_pairs(where: str, name: str, mask: Tensor | None, rows: int, extra: int) -> Tensor | None:
    """Return a mask of pairs of rows with rows and then extra keys."""
    if isinstance(mask, Tensor) and mask.shape != (rows, rows + extra):
        raise ValueError(
            f"{where}: expected {name} of shape (B, B + K) = ({rows}, {rows + extra}), got {tuple(mask.shape)}"
        )
    return as_mask(where, name, mask, B=rows, K=rows + extra)


def supervised_values(
    batch: Batch,
    extra: Batch | None,
    temperature: float | Tensor,
    weight: Tensor | None,
    labels: Tensor | None,
    key_labels: Tensor | None,
) -> Values:
    """Return what ``validate`` looks at; labels as they were given, before they became numbers."""
    several: dict[str, Tensor | None] = {}
    for name, rows, given in (("labels", batch, labels), ("key_labels", extra, key_labels)):
        there = rows is not None and given is not None and given.dim() == 2
        several[name] = zero_missing(given, rows.valid) if there else None  # type: ignore[arg-type, union-attr]
    rows_of = {"features": batch.x, "keys": None if extra is None else extra.x}
    return Values(rows_of, temperature, None if weight is None else zero_missing(weight, batch.valid), several)
