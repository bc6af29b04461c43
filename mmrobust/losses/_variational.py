"""The arithmetic under the variational losses: Gaussian divergence, squared error, means over what counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._checks import as_mask, check_floating, check_option, check_same_shape, check_tensor
from .._precision import no_autocast, widen
from ..masking import zero_missing

# Bounded encoders stay below: two log-variances in [-10, 10] differ by at most 20.
_MAX_EXPONENT = 25.0


def tangent_exp(x: Tensor) -> Tensor:
    """Return ``exp(x)``, continued by its tangent where the exponent is above 25."""
    bounded = x.clamp(max=_MAX_EXPONENT)
    return bounded.exp() * (1.0 + (x - bounded))


def divergence(shift: Tensor, logvar_gap: Tensor) -> Tensor:
    """Return twice the KL of two Gaussians per dimension, from (mu - mu') / std' and logvar - logvar'."""
    bounded = logvar_gap.clamp(max=_MAX_EXPONENT)
    excess = bounded.expm1()  # of the variance ratio over 1; exact where two Gaussians nearly agree
    excess = torch.addcmul(excess, logvar_gap - bounded, excess + 1.0)
    return torch.addcmul(excess - logvar_gap, shift, shift)


def prior_kl(mu: Tensor, logvar: Tensor, keep: Tensor | None, reduction: str, free_bits: float) -> Tensor:
    """Average the KL to the prior; absent rows are zero already, in float32."""
    twice_kl = divergence(mu, logvar)
    if free_bits > 0.0:
        twice_kl = twice_kl.clamp(min=2.0 * free_bits)
    return mean_rows(twice_kl, reduction, keep)


def pair_kl(mu: Tensor, logvar: Tensor, keep: Tensor | None, reduction: str, symmetric: bool) -> Tensor:
    """Average the KL between modalities; absent rows are zero already, in float32."""
    # All ordered pairs at once, (B, M, M, H): no index kernels, and M is small.
    shift = (mu.unsqueeze(2) - mu.unsqueeze(1)) * tangent_exp(-0.5 * logvar).unsqueeze(1)
    twice_kl = divergence(shift, logvar.unsqueeze(2) - logvar.unsqueeze(1))
    pairs = torch.ones(mu.shape[1], mu.shape[1], dtype=torch.bool, device=mu.device).triu(1)
    pairs = pairs | pairs.mT if symmetric else pairs
    valid = pairs if keep is None else pairs & keep.unsqueeze(2) & keep.unsqueeze(1)
    return mean_rows(twice_kl, reduction, valid.expand(twice_kl.shape[:-1]))


def mean_rows(twice_kl: Tensor, reduction: str, valid: Tensor | None) -> Tensor:
    """Halve, sum or average the last dimension, then average the rows that are valid."""
    rows = 0.5 * (twice_kl.sum(-1) if reduction == "sum" else twice_kl.mean(-1))
    if valid is None:
        return rows.sum() / max(rows.numel(), 1)
    return torch.where(valid, rows, 0.0).sum() / valid.sum().clamp(min=1)


def check_gaussians(where: str, mu: Tensor, logvar: Tensor, present: Tensor | None, reduction: str) -> Tensor | None:
    """Raise unless the two fit each other and the reduction is known; return the mask of their rows."""
    check_floating(where, "mu", mu)
    check_floating(where, "logvar", logvar)
    if mu.dim() < 2:
        raise ValueError(f"{where}: expected mu of shape (B, ..., H), got {tuple(mu.shape)}")
    check_same_shape(where, "logvar", logvar, "mu", mu)
    check_option(where, "latent_reduction", reduction, ("sum", "mean"))
    return as_mask(where, "present", present, **_leading(mu, mu.dim() - 1, "M"))


def squared_error(
    where: str,
    names: tuple[str, str, str],
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None,
    reduction: str,
    batch: int | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the squared error added up over what counts, and how much counts.

    ``names`` are the arguments in error messages; ``rows (B,)`` is a second, checked mask.
    """
    check_floating(where, names[0], prediction)
    check_floating(where, names[1], target)
    if prediction.dim() < 2 or (batch is not None and prediction.shape[0] != batch):
        expected = "(B, ..., D)" if batch is None else f"(B, ..., D) with B = {batch}"
        raise ValueError(f"{where}: expected {names[0]} of shape {expected}, got {tuple(prediction.shape)}")
    check_same_shape(where, names[1], target, names[0], prediction)
    check_option(where, "feature_reduction", reduction, ("sum", "mean"))
    keep = rows
    if mask is not None:
        check_tensor(where, names[2], mask)
        keep = as_mask(where, names[2], mask, **_leading(prediction, mask.dim(), "T"))
        if rows is not None and keep is not None:
            keep = keep & rows.reshape(rows.shape + (1,) * (keep.dim() - 1))
    with no_autocast(prediction):
        # A difference hands its gradient on unchanged, so zeroing after it is as safe as before it, and half the work.
        error = zero_missing(widen(prediction) - widen(target.detach()), keep)
        return error.square().sum(), _count(keep, prediction, reduction)


def mean_errors(
    where: str,
    reconstructions: Sequence[Tensor | None],
    targets: Sequence[Tensor | None],
    masks: Sequence[Tensor | None],
    batch: int,
    keep: Tensor | None,
    reduction: str,
) -> Tensor | None:
    """Average the squared errors of the modalities of which something counts; None when none is reconstructed."""
    totals, counts = [], []
    for m, (prediction, target) in enumerate(zip(reconstructions, targets, strict=True)):
        if prediction is not None and target is not None:
            names = (f"reconstructions[{m}]", f"targets[{m}]", f"masks[{m}]")
            rows = None if keep is None else keep[:, m]
            total, counted = squared_error(where, names, prediction, target, masks[m], reduction, batch, rows)
            totals.append(total)
            counts.append(counted)
    if not totals:
        return None
    count = torch.stack(counts)
    return (torch.stack(totals) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)


def _count(keep: Tensor | None, x: Tensor, reduction: str) -> Tensor:
    """Count the features that count, or for ``"sum"`` the rows that have any."""
    keep = x.new_ones(x.shape[:1], dtype=torch.bool) if keep is None else keep
    if keep.dim() == x.dim():
        return keep.any(-1).sum() if reduction == "sum" else keep.sum()
    return keep.sum() * math.prod(x.shape[keep.dim() : -1 if reduction == "sum" else None])


def _leading(x: Tensor, dims: int, second: str) -> dict[str, int | None]:
    """Name the first ``dims`` dimensions of ``x``: what a mask of its rows must look like."""
    letters = ["B", second, *(f"d{index}" for index in range(2, x.dim()))]
    letters[x.dim() - 1] = "D"
    return dict(zip(letters[: min(dims, x.dim())], x.shape, strict=False))
