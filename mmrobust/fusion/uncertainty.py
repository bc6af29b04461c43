"""Weights from uncertainty, the sums they make, and the module on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .._checks import (
    as_mask,
    check_floating,
    check_option,
    check_range,
    check_same_shape,
    check_shape,
    stack_modalities,
)
from .._precision import no_autocast, widen
from ..masking import masked_softmax, zero_missing

Weighting = Literal["precision", "softmax_inverse_std"]
_WEIGHTINGS = ("precision", "softmax_inverse_std")


class FusionOutput(NamedTuple):
    """The fused vector ``(B, H)`` and the weights ``(B, M)``, or ``(B, M, H)`` per dimension."""

    fused: Tensor
    weights: Tensor


def uncertainty_weights(
    std: Tensor | Sequence[Tensor],
    present: Tensor | None = None,
    *,
    weighting: Weighting = "precision",
    power: float = 2.0,
    temperature: float = 1.0,
    per_dimension: bool = False,
    prior_expert: bool = False,
) -> Tensor:
    r"""Turn standard deviations into fusion weights.

    ``"precision"``: :math:`w_m \propto \sigma_m^{-k/\tau}`, which does not change when all stds are scaled alike;
    power :math:`k = 2` is inverse-variance weighting. Per sample, :math:`\log\sigma` is averaged over H.
    ``"softmax_inverse_std"``: :math:`w = \mathrm{softmax}(1 / ((\sigma_m + 10^{-6})\tau))`, per sample with the mean
    std, the published form; its sharpness depends on the scale of the stds.

    Args:
        std: Standard deviations ``(B, M, H)``, or a sequence of M tensors ``(B, H)``; floating, positive.
        present: Bool or integer 0/1 mask ``(B, M)``, True = present.
        weighting: ``"precision"`` or ``"softmax_inverse_std"``.
        power: Exponent k, for ``"precision"`` only, positive.
        temperature: Softness, positive.
        per_dimension: Whether every dimension has weights of its own.
        prior_expert: Whether a prior N(0, I) takes part with std 1; it keeps the share that the weights lack of 1.

    Returns:
        Weights ``(B, M)`` or ``(B, M, H)`` of the dtype of ``std``: exactly 0 where absent; they sum to 1 over the
        present ones (below 1 with a prior expert) and to 0 where nothing is present.

    Raises:
        TypeError: If ``std`` is not floating or ``present`` neither bool nor integer.
        ValueError: If a shape or an option does not fit.

    Source: product of experts, Wu and Goodman, arXiv 1802.05335, section 2.2 (precision); P-RMF, Zhu et al., ACL
    2025 (softmax of inverse stds). Deviations: the maximum is subtracted, so small stds do not overflow, and absent
    modalities are masked instead of being given a large std.

    Example:
        >>> std = torch.tensor([[[1.0], [2.0]]])
        >>> uncertainty_weights(std)
        tensor([[0.8000, 0.2000]])
        >>> uncertainty_weights(std, torch.tensor([[False, True]]))
        tensor([[0., 1.]])
    """
    where = "uncertainty_weights"
    _check_weighting(where, weighting, power, temperature)
    std = stack_modalities(where, "std", std)
    present = as_mask(where, "present", present, B=std.shape[0], M=std.shape[1])
    with no_autocast(std):
        known = _known_std(std, present)
        if weighting == "precision":
            logits = -(power / temperature) * known.log()
            logits = logits if per_dimension else logits.mean(-1)
        else:
            logits = 1.0 / (((known if per_dimension else known.mean(-1)) + 1e-6) * temperature)
        keep = torch.ones_like(logits, dtype=torch.bool) if present is None else present
        keep = keep.unsqueeze(-1).expand_as(logits) if keep.dim() < logits.dim() else keep
        if prior_expert:
            prior = 0.0 if weighting == "precision" else 1.0 / ((1.0 + 1e-6) * temperature)
            logits = torch.cat([logits, torch.full_like(logits[:, :1], prior)], dim=1)
            keep = torch.cat([keep, torch.ones_like(keep[:, :1])], dim=1)
        return masked_softmax(logits, keep, dim=1)[:, : std.shape[1]].to(std.dtype)


def weighted_sum(x: Tensor | Sequence[Tensor], weights: Tensor, present: Tensor | None = None) -> Tensor:
    r"""Add up modality vectors with weights: :math:`y = \sum_m w_m x_m`, without reading what is absent.

    Args:
        x: Vectors ``(B, M, H)``, or a sequence of M tensors ``(B, H)``; floating.
        weights: Weights ``(B, M)`` or ``(B, M, H)``, floating.
        present: Bool or integer 0/1 mask ``(B, M)``, True = present.

    Returns:
        The fused vector ``(B, H)`` of the dtype of ``x``; 0 where nothing is present.

    Raises:
        TypeError: If an argument is not floating or ``present`` neither bool nor integer.
        ValueError: If a shape does not fit.

    Example:
        >>> weighted_sum(torch.tensor([[[1.0], [float("nan")]]]), torch.ones(1, 2), torch.tensor([[True, False]]))
        tensor([[1.]])
    """
    x = stack_modalities("weighted_sum", "x", x)
    weights, present = _check_weights("weighted_sum", weights, x, present)
    with no_autocast(x):
        return (widen(weights) * widen(zero_missing(x, present))).sum(1).to(x.dtype)


def fused_std(
    std: Tensor | Sequence[Tensor],
    weights: Tensor,
    present: Tensor | None = None,
    *,
    prior_expert: bool = False,
) -> Tensor:
    r"""Compute the standard deviation of a weighted sum of independent Gaussians.

    :math:`\sigma^2 = \sum_m w_m^2 \sigma_m^2 + w_0^2` with :math:`w_0 = 1 - \sum_m w_m` the share of a prior expert
    N(0, I), else 0. With precision weights of power 2 per dimension this is the variance of the product of experts,
    :math:`1 / (1 + \sum_m \sigma_m^{-2})`.

    Args:
        std: Standard deviations ``(B, M, H)``, or a sequence of M tensors ``(B, H)``; floating.
        weights: Fusion weights ``(B, M)`` or ``(B, M, H)``, floating.
        present: Bool or integer 0/1 mask ``(B, M)``, True = present.
        prior_expert: Whether the weights were made with a prior expert.

    Returns:
        Standard deviations ``(B, H)`` of the dtype of ``std``; where nothing is present, 0, or 1 with a prior.

    Raises:
        TypeError: If an argument is not floating or ``present`` neither bool nor integer.
        ValueError: If a shape does not fit.

    Example:
        >>> std = torch.ones(1, 2, 1)
        >>> fused_std(std, uncertainty_weights(std)).square()
        tensor([[0.5000]])
    """
    std = stack_modalities("fused_std", "std", std)
    weights, present = _check_weights("fused_std", weights, std, present)
    with no_autocast(std):
        parts = widen(zero_missing(weights.expand_as(std), present)) * _known_std(std, present)
        if prior_expert:
            share = 1.0 - widen(zero_missing(weights, present)).sum(1, keepdim=True)
            parts = torch.cat([parts, share.expand_as(parts[:, :1])], dim=1)
        # Scaled by the largest part, so that squares neither overflow nor underflow.
        scale = parts.detach().abs().amax(1, keepdim=True).clamp(min=torch.finfo(parts.dtype).tiny)
        total: Tensor = torch.linalg.vector_norm(parts / scale, dim=1) * scale.squeeze(1)
        return total.to(std.dtype)


class UncertaintyWeightedFusion(nn.Module):
    """Fuse modality means with weights from their standard deviations: see :func:`uncertainty_weights`.

    Args:
        weighting: ``"precision"`` or ``"softmax_inverse_std"``.
        power: Exponent for ``"precision"``, positive.
        temperature: Softness, positive.
        per_dimension: Whether every dimension has weights of its own.
        prior_expert: Whether a prior N(0, I) takes part: a product of experts; :func:`fused_std` gives its std.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> mu, std = torch.tensor([[[0.0], [10.0]]]), torch.tensor([[[1.0], [3.0]]])
        >>> fused, weights = UncertaintyWeightedFusion()(mu, std)
        >>> fused, weights
        (tensor([[1.0000]]), tensor([[0.9000, 0.1000]]))
    """

    def __init__(
        self,
        *,
        weighting: Weighting = "precision",
        power: float = 2.0,
        temperature: float = 1.0,
        per_dimension: bool = False,
        prior_expert: bool = False,
    ) -> None:
        super().__init__()
        _check_weighting("UncertaintyWeightedFusion", weighting, power, temperature)
        self.weighting, self.power, self.temperature = weighting, power, temperature
        self.per_dimension, self.prior_expert = per_dimension, prior_expert

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return (
            f"weighting={self.weighting!r}, power={self.power}, temperature={self.temperature}, "
            f"per_dimension={self.per_dimension}, prior_expert={self.prior_expert}"
        )

    def weights(self, std: Tensor | Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Return the weights alone, ``(B, M)`` or ``(B, M, H)``."""
        return uncertainty_weights(
            std,
            present,
            weighting=self.weighting,
            power=self.power,
            temperature=self.temperature,
            per_dimension=self.per_dimension,
            prior_expert=self.prior_expert,
        )

    def forward(
        self, mu: Tensor | Sequence[Tensor], std: Tensor | Sequence[Tensor], present: Tensor | None = None
    ) -> FusionOutput:
        """Fuse ``mu`` and ``std``, each ``(B, M, H)`` or M tensors ``(B, H)``, with ``present (B, M)``.

        Raises:
            TypeError: If an input is not floating or ``present`` neither bool nor integer.
            ValueError: If a shape does not fit.
        """
        mu, std = stack_gaussians("UncertaintyWeightedFusion", mu, std)
        present = as_mask("UncertaintyWeightedFusion", "present", present, B=mu.shape[0], M=mu.shape[1])
        weights = self.weights(std, present)
        return FusionOutput(weighted_sum(mu, weights, present), weights.to(mu.dtype))


def _check_weighting(where: str, weighting: str, power: float, temperature: float) -> None:
    check_option(where, "weighting", weighting, _WEIGHTINGS)
    check_range(where, "power", power, 0.0, low_open=True)
    check_range(where, "temperature", temperature, 0.0, low_open=True)


def _check_weights(where: str, weights: Tensor, x: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the weights as ``(B, M, H or 1)`` and the checked mask."""
    check_floating(where, "weights", weights)
    if weights.dim() == 3:
        check_same_shape(where, "weights", weights, "x", x)
    else:
        check_shape(where, "weights", weights, B=x.shape[0], M=x.shape[1])
        weights = weights.unsqueeze(-1)
    present = as_mask(where, "present", present, B=x.shape[0], M=x.shape[1])
    return zero_missing(weights, present), present


def stack_gaussians(where: str, mu: Tensor | Sequence[Tensor], std: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return both as ``(B, M, H)``, of one shape."""
    mu, std = stack_modalities(where, "mu", mu), stack_modalities(where, "std", std)
    check_same_shape(where, "std", std, "mu", mu)
    return mu, std


def _known_std(std: Tensor, present: Tensor | None) -> Tensor:
    """Return the stds in float32 within what has a finite logarithm; absent ones are 1."""
    known = widen(std)
    if present is not None:
        known = torch.where(present.unsqueeze(-1), known, known.new_ones(()))
    limits = torch.finfo(known.dtype)
    return known.clamp(limits.tiny, limits.max)
