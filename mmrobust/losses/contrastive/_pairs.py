"""What InfoNCE and NT-Xent share: two sets of vectors whose rows are pairs, and extra negatives."""

from __future__ import annotations

import math
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from ..._checks import as_mask, check_floating, check_shape
from ..._similarity.dense import is_small
from ..._similarity.implementation import need_torch, resolve, rounded
from ..._similarity.masked import masked_logsumexp
from ..._similarity.pairs import row_logsumexp
from ..._similarity.ring import ring_logsumexp
from ..._similarity.units import Units
from ...masking import zero_missing
from ._shared import (
    ContrastiveOutput,
    Gather,
    Impl,
    Reduction,
    Temperature,
    as_temperature,
    check_choices,
    check_weight,
    gather_units,
    reduce_rows,
    row_weights,
    split_units,
    units_of,
)
from ._validation import Values, check_gather, check_values, checked


class PairOptions(TypedDict, total=False):
    """The keyword arguments that InfoNCE and NT-Xent share, for type checkers."""

    temperature: float | Tensor
    present: Tensor | None
    weight: Tensor | None
    negatives: Tensor | None
    negatives_present: Tensor | None
    negatives_excluded: Tensor | None
    reduction: Reduction
    gather: Gather
    impl: Impl
    validate: bool


class Options(NamedTuple):
    """The same as given."""

    temperature: float | Tensor
    present: Tensor | None
    weight: Tensor | None
    negatives: Tensor | None
    negatives_present: Tensor | None
    negatives_excluded: Tensor | None
    reduction: Reduction
    gather: Gather
    impl: Impl
    validate: bool


class Pairs(NamedTuple):
    """Checked pairs: ``parts`` are the B first rows, the B second, then negatives; ``valid`` says who is real."""

    where: str
    parts: list[Tensor]
    size: int
    valid: Tensor | None
    extra_valid: Tensor | None
    extra_excluded: Tensor | None
    temperature: Temperature
    reduction: Reduction
    gather: Gather
    impl: str

    def is_small(self, rows: int) -> bool:
        """Return whether one matrix of all pairs of so many rows is possible, and the quicker way."""
        alone = not self.gather and self.impl == "torch" and len(self.parts) == 2 and self.reduction != "none"
        return alone and is_small(rows, rows)

    def weights(self, shape: tuple[int, ...], options: Options) -> tuple[Tensor, Tensor]:
        """Return the weights ``(..., B)`` of losses in their mean or sum, and how many count."""
        value, rows = self.temperature.value, math.prod(shape)
        if self.valid is None and options.weight is None:
            each = 1 / max(rows, 1) if self.reduction == "mean" else 1.0
            return value.new_full(shape, each), torch.full((), rows, device=value.device)
        counted = torch.ones(shape, dtype=torch.bool, device=value.device)
        counted = counted if self.valid is None else counted & self.valid
        return row_weights(counted, options.weight, self.reduction, value.dtype)

    def units(self) -> tuple[Units, Units | None]:
        """Return the units of both sets and of negatives, around a common centre."""
        units = rounded(units_of(torch.cat(self.parts), self.gather), self.impl)
        return (units, None) if len(self.parts) == 2 else split_units(units, 2 * self.size, self.parts[2])

    def with_negatives(self, rows: Tensor, queries: Units, extra: Units | None) -> Tensor:
        """Add extra negatives to the logsumexp of queries."""
        if extra is None:
            return rows
        value, least = self.temperature
        if self.extra_excluded is None:
            other = row_logsumexp(queries, extra, value, key_valid=self.extra_valid, least=least, impl=self.impl)
        else:
            excluded = self.extra_excluded.repeat(queries.u.shape[0] // max(self.size, 1), 1)
            other = masked_logsumexp(queries, extra, value, self.extra_valid, excluded)
        return torch.logaddexp(rows, other)

    def over_ranks(self, own: Units, other: Units, valid: Tensor | None, own_pair: bool = False) -> Tensor:
        """Return the logsumexp of the own rows over the other rows of all ranks, without themselves if ``own_pair``."""
        value, least = self.temperature
        if self.gather == "ring":
            return ring_logsumexp(own, other, value, key_valid=valid, skip_own=own_pair, least=least)
        every, valid, offset = gather_units(other, valid)
        skip = offset if own_pair else None
        return row_logsumexp(own, every, value, key_valid=valid, skip=skip, least=least, impl=self.impl)

    def reduce(self, losses: Tensor, options: Options) -> ContrastiveOutput:
        """Reduce losses ``(..., B)``."""
        counted = torch.ones_like(losses, dtype=torch.bool)
        if self.valid is not None:
            counted = counted & self.valid
            losses = torch.where(counted, losses, 0.0)
        return reduce_rows(losses, counted, options.weight, options.reduction, options.gather)


def checked_pairs(
    where: str, first: tuple[str, Tensor], second: tuple[str, Tensor], options: Options, symmetric: bool = True
) -> Pairs:
    """Check all arguments and return the pairs, what is absent zero."""
    gather, (name, x), (other, y) = options.gather, first, second
    pairs = checked(lambda: _checked_pairs(where, first, second, options), x, gather)
    if gather or options.validate:
        found = dict(zip((name, other, "negatives"), (*pairs.parts, None), strict=False))
        weight = None if options.weight is None else zero_missing(options.weight, pairs.valid)
        values = Values(found, options.temperature, weight)
        agree: dict[str, object] = {
            "reduction": options.reduction,
            "symmetric": symmetric,
            "validate": options.validate,
        }
        agree |= {"impl": pairs.impl, f"dtypes of {name} and {other}": (x.dtype, y.dtype)}
        check_gather(where, (name, pairs.parts[0]), values, gather, **agree)
        if options.validate:
            check_values(where, values, gather)
    return pairs


def _checked_pairs(where: str, first: tuple[str, Tensor], second: tuple[str, Tensor], options: Options) -> Pairs:
    (name, x), (other, y) = first, second
    check_choices(where, options.reduction, options.gather, options.impl)
    check_floating(where, name, x)
    check_floating(where, other, y)
    check_shape(where, name, x, B=None, D=None)
    check_shape(where, other, y, B=x.shape[0], D=x.shape[1])
    check_weight(where, options.weight, x.shape[0], options.gather)
    valid = as_mask(where, "present", options.present, B=x.shape[0])
    dtype, impl = torch.promote_types(x.dtype, y.dtype), resolve(where, options.impl, x)
    parts = [zero_missing(part, valid).to(dtype) for part in (x, y)]
    extra, extra_valid, excluded = _checked_negatives(where, parts[0], options)
    if excluded is not None:
        need_torch(where, impl, "negatives_excluded")
    if options.gather == "ring":
        need_torch(where, impl, "gather='ring'")
    return Pairs(
        where,
        parts + extra,
        x.shape[0],
        valid,
        extra_valid,
        excluded,
        as_temperature(where, options.temperature, parts[0]),
        options.reduction,
        options.gather,
        impl,
    )


def _checked_negatives(where: str, x: Tensor, options: Options) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
    """Return extra negatives, if there are any, who of them is real, and which pairs with them do not exist."""
    extra = options.negatives
    if extra is None:
        for name in ("negatives_present", "negatives_excluded"):
            if getattr(options, name) is not None:
                raise ValueError(f"{where}: expected negatives with {name}, got none")
        return [], None, None
    check_floating(where, "negatives", extra)
    check_shape(where, "negatives", extra, N=None, D=x.shape[1])
    valid = as_mask(where, "negatives_present", options.negatives_present, N=extra.shape[0])
    excluded = as_mask(where, "negatives_excluded", options.negatives_excluded, B=x.shape[0], N=extra.shape[0])
    return [zero_missing(extra, valid).to(x.dtype)], valid, excluded
