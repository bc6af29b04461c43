"""InfoNCE over every pair of modalities of the same samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..._checks import as_mask, check_shape, check_size, stack_modalities
from ..._layouts import world_size
from ..._precision import no_autocast, widen
from ..._similarity.dense import dense_pairs, is_small
from ..._similarity.implementation import need_torch, resolve, rounded
from ..._similarity.pairs import both_logsumexp, row_logsumexp
from ..._similarity.positives import partner_energy
from ..._similarity.ring import ring_logsumexp
from ..._similarity.units import Units, centred_units
from ...distributed import global_sum
from ...masking import zero_missing
from ._sets import Sets, gather_sets
from ._shared import (
    Gather,
    Impl,
    Reduction,
    Temperature,
    TemperatureModule,
    as_temperature,
    check_choices,
    check_weight,
    units_of,
)
from ._validation import Values, check_gather, check_values, checked


def modality_contrastive_loss(
    features: Tensor | Sequence[Tensor],
    present: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    gather: Gather = False,
    impl: Impl = "auto",
    validate: bool = False,
) -> Tensor:
    r"""Compute symmetric InfoNCE between every two modalities of the same samples.

    .. math:: L = \frac{1}{|P|} \sum_{(a, b) \in P} \mathrm{InfoNCE}(x_a, x_b)

    over the pairs :math:`P` of modalities that at least one sample has together. In a pair only the samples that have
    both modalities are queries and keys.

    Args:
        features: Floating tensor ``(B, M, D)`` or a sequence of M tensors ``(B, D)``; needs no normalisation. Vectors
            shorter than 1e-12 have no direction: their similarities and gradients are 0.
        present: Bool or integer 0/1 ``(B, M)``, True = the sample has the modality. What is absent is never read.
        temperature: Divides the cosine similarities; > 0. A scalar tensor gets its gradient.
        weight: Floating tensor ``(B,)`` of samples: the mean of each pair becomes a weighted one. With ``gather`` it
            gets no gradient.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, the losses ``(P, B)`` of the P = M (M - 1) / 2 pairs of
            modalities in the order (0, 1), (0, 2), ..., (1, 2), ..., 0 where one of both is absent.
        gather: False, True or ``"ring"``, as in :func:`info_nce_loss`.
        impl: ``"torch"``, ``"triton"`` (raises where it cannot run), or ``"auto"``.
        validate: Check values, which waits for the device: features are finite, weights finite and not negative, a
            temperature that is a tensor positive.

    Returns:
        A float32 scalar (float64 for float64), or ``(P, B)``; 0 and attached to the graph when no sample has two
        modalities.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape, an option or the temperature is wrong.
        RuntimeError: If the loss is differentiated twice, or ``impl="triton"`` cannot run.

    Source: all pairs of modalities with the loss of Radford et al., arXiv:2103.00020. Deviation: pairs with an absent
    side leave the loss instead of entering it as zero vectors.

    Example:
        >>> features = torch.eye(2).unsqueeze(1).repeat(1, 3, 1)
        >>> modality_contrastive_loss(features, temperature=1.0)
        tensor(0.3133)
        >>> modality_contrastive_loss(features, torch.tensor([[True, False, False], [False, True, False]]))
        tensor(0.)
    """
    where = "modality_contrastive_loss"

    def check() -> tuple[Tensor, Tensor | None, Temperature, str]:
        check_choices(where, reduction, gather, impl)
        x = stack_modalities(where, "features", features)
        keep = as_mask(where, "present", present, B=x.shape[0], M=x.shape[1])
        check_weight(where, weight, x.shape[0], gather)
        resolved = resolve(where, impl, x)
        if gather == "ring":
            need_torch(where, resolved, "gather='ring'")
        return zero_missing(x, keep), keep, as_temperature(where, temperature, x), resolved

    like = features if isinstance(features, Tensor) else next(iter(features), None)
    x, keep, chosen, resolved = checked(check, like, gather)
    if gather or validate:
        compared = None if keep is None else keep.sum(1) > 1
        values = Values({"features": x}, temperature, None if weight is None else zero_missing(weight, compared))
        check_gather(where, ("features", x), values, gather, reduction=reduction, validate=validate, impl=resolved)
        if validate:
            check_values(where, values, gather)
    with no_autocast(x):
        how = _How(chosen, reduction, gather, resolved)
        return _loss(x.transpose(0, 1), None if keep is None else keep.T, weight, how)


class _How(NamedTuple):
    temperature: Temperature
    reduction: Reduction
    gather: Gather
    impl: str


def _loss(x: Tensor, keep: Tensor | None, weight: Tensor | None, how: _How) -> Tensor:
    """Return the loss of ``x (M, B, D)``, of which ``keep (M, B)`` is there."""
    value = how.temperature.value
    first, second = torch.triu_indices(x.shape[0], x.shape[0], 1, device=x.device)
    if not len(first):  # attached to the graph, and reads nothing
        nothing = widen(x[:0]).sum(-1) + 0.0 * value
        return nothing if how.reduction == "none" else nothing.sum()
    valid = None if keep is None else keep[first] & keep[second]
    share = _shares(valid, weight, (len(first), x.shape[1]), value, how)
    one_by_one = bool(how.gather) or how.impl != "torch"
    if not one_by_one and how.reduction != "none" and is_small(x.shape[1], x.shape[1], batch=len(first)):
        return dense_pairs(x, first, second, value, valid, share, symmetric=True)
    losses = _pair_by_pair(x, keep, how) if one_by_one else _row_losses(x, first, second, how.temperature, valid)
    losses = (losses if valid is None else torch.where(valid, losses, 0.0)) * share
    return losses if how.reduction == "none" else losses.sum()


def _shares(valid: Tensor | None, weight: Tensor | None, shape: tuple[int, int], like: Tensor, how: _How) -> Tensor:
    """Return the weight ``(P, B)`` of each row in a mean over its pair, and of pairs that have a row anywhere."""
    if valid is None and weight is None and how.reduction == "mean" and not how.gather:
        return like.new_full(shape, 1 / max(math.prod(shape), 1))
    share = like.new_ones(shape) if weight is None else weight.to(like.dtype).expand(shape)
    share = share if valid is None else torch.where(valid, share, 0.0)
    if how.reduction != "mean":
        return share
    amount = share.sum(1)
    if how.gather:
        amount, share = global_sum(amount), share * world_size()
    there = amount > 0
    return share / torch.where(there, amount, 1.0).unsqueeze(1) / there.sum().clamp(min=1)


def _row_losses(x: Tensor, first: Tensor, second: Tensor, temperature: Temperature, valid: Tensor | None) -> Tensor:
    """Return the losses ``(P, B)`` between the sets ``first (P,)`` and ``second (P,)`` of ``x (M, B, D)``."""
    value, least = temperature
    units = centred_units(x)
    queries, keys = (Units(units.u[side], units.lost[side]) for side in (first, second))
    rows, columns = both_logsumexp(queries, keys, value, query_valid=valid, key_valid=valid, least=least)
    return (rows + columns) / 2 - partner_energy(queries, keys) / value


def _pair_by_pair(x: Tensor, keep: Tensor | None, how: _How) -> Tensor:
    """Return the same one pair after the other: kernels and ranks know two sets."""
    (value, least), flat = how.temperature, x.flatten(0, 1)
    units = rounded(units_of(flat, how.gather), how.impl)
    own = Sets(Units(units.u.view(x.shape), units.lost.view(x.shape[:2])), keep)
    every = gather_sets(own) if how.gather is True else own
    losses = []
    for a, b in combinations(range(len(x)), 2):
        queries, keys, valid = own.of(a), own.of(b), own.both(a, b)
        if how.gather == "ring":
            rows = ring_logsumexp(queries, keys, value, key_valid=valid, least=least)
            columns = ring_logsumexp(keys, queries, value, key_valid=valid, least=least)
        elif how.gather:
            there = every.both(a, b)
            rows = row_logsumexp(queries, every.of(b), value, key_valid=there, least=least, impl=how.impl)
            columns = row_logsumexp(keys, every.of(a), value, key_valid=there, least=least, impl=how.impl)
        else:
            rows, columns = both_logsumexp(
                queries, keys, value, query_valid=valid, key_valid=valid, least=least, impl=how.impl
            )
        losses.append((rows + columns) / 2 - partner_energy(queries, keys) / value)
    return torch.stack(losses)


class ModalityContrastiveLoss(nn.Module):
    """Project every modality by a head of its own, then apply :func:`modality_contrastive_loss`.

    A head is Linear(H, H), ReLU, Linear(H, P). What is absent is never read and gives the heads no gradient.

    Args:
        hidden_features: Features H of every modality.
        num_modalities: Number of modalities M.
        projection_features: Features P in which similarities are taken.
        temperature: Divides the cosine similarities; > 0. Where a learned one starts.
        learnable_temperature: Learn its logarithm (``temperature.log_temperature``).
        temperature_range: What a learned temperature is kept in.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        gather: False, True or ``"ring"``.
        impl: ``"auto"``, ``"torch"`` or ``"triton"``.
        validate: Check values, which waits for the device.

    Raises:
        TypeError: If a size is no integer or the temperature no number.
        ValueError: If one of them is out of range, or an option is none of the allowed ones.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> loss = ModalityContrastiveLoss(8, 3)
        >>> loss(torch.randn(4, 3, 8), torch.tensor([[True, True, False]]).expand(4, 3)).shape
        torch.Size([])
    """

    def __init__(
        self,
        hidden_features: int,
        num_modalities: int,
        projection_features: int = 64,
        temperature: float = 0.07,
        *,
        learnable_temperature: bool = False,
        temperature_range: tuple[float, float] = (0.01, 1.0),
        reduction: Reduction = "mean",
        gather: Gather = False,
        impl: Impl = "auto",
        validate: bool = False,
    ) -> None:
        super().__init__()
        where = "ModalityContrastiveLoss"
        check_choices(where, reduction, gather, impl)
        check_size(where, "hidden_features", hidden_features)
        check_size(where, "num_modalities", num_modalities)
        check_size(where, "projection_features", projection_features)
        self.hidden_features, self.num_modalities = hidden_features, num_modalities
        self.reduction, self.gather, self.impl, self.validate = reduction, gather, impl, validate
        self.temperature = TemperatureModule(where, temperature, learnable_temperature, temperature_range)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(hidden_features, hidden_features),
                nn.ReLU(),
                nn.Linear(hidden_features, projection_features),
            )
            for _ in range(num_modalities)
        )

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"reduction={self.reduction!r}, gather={self.gather!r}, impl={self.impl!r}, validate={self.validate}"

    def project(self, mu: Tensor | Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Return the embeddings ``(B, M, P)`` that are compared; those of absent modalities are of zero vectors.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape is wrong.
        """
        x = stack_modalities("ModalityContrastiveLoss", "mu", mu)
        check_shape("ModalityContrastiveLoss", "mu", x, B=None, M=self.num_modalities, H=self.hidden_features)
        keep = as_mask("ModalityContrastiveLoss", "present", present, B=x.shape[0], M=x.shape[1])
        parts = zero_missing(x, keep).unbind(1)
        return torch.stack([head(part) for head, part in zip(self.heads, parts, strict=True)], dim=1)

    def forward(
        self, mu: Tensor | Sequence[Tensor], present: Tensor | None = None, *, weight: Tensor | None = None
    ) -> Tensor:
        """Return the loss of ``mu (B, M, H)`` (or M tensors ``(B, H)``) with ``present (B, M)``, True = present.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape is wrong.
        """
        projected = self.project(mu, present)
        return modality_contrastive_loss(
            projected,
            present,
            temperature=self.temperature(),
            weight=weight,
            reduction=self.reduction,
            gather=self.gather,
            impl=self.impl,
            validate=self.validate,
        )
