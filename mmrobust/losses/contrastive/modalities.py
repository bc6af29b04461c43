"""InfoNCE over every pair of modalities of the same samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..._checks import as_mask, check_shape, check_size, stack_modalities
from ..._precision import no_autocast, widen
from ..._similarity.dense import dense_pairs, is_small
from ..._similarity.pairs import both_logsumexp
from ..._similarity.positives import partner_energy
from ..._similarity.units import Units, centred_units
from ...masking import zero_missing
from ._shared import Temperature, TemperatureModule, as_temperature


def modality_contrastive_loss(
    features: Tensor | Sequence[Tensor], present: Tensor | None = None, *, temperature: float | Tensor = 0.07
) -> Tensor:
    r"""Compute symmetric InfoNCE between every two modalities of the same samples.

    .. math:: L = \frac{1}{|P|} \sum_{(a, b) \in P} \mathrm{InfoNCE}(x_a, x_b)

    over the pairs :math:`P` of modalities that at least one sample has together. In a pair only the samples that have
    both modalities are queries and keys.

    Args:
        features: Floating tensor ``(B, M, D)`` or a sequence of M tensors ``(B, D)``; needs no normalisation.
        present: Bool or integer 0/1 ``(B, M)``, True = the sample has the modality. What is absent is never read.
        temperature: Divides the cosine similarities; > 0. A scalar tensor gets its gradient.

    Returns:
        A float32 scalar (float64 for float64); 0 and attached to the graph when no sample has two modalities.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape or the temperature is wrong.

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
    x = stack_modalities(where, "features", features)
    chosen = as_temperature(where, temperature, x)
    keep = as_mask(where, "present", present, B=x.shape[0], M=x.shape[1])
    first, second = torch.triu_indices(x.shape[1], x.shape[1], 1, device=x.device)
    if not first.shape[0]:
        return widen(x[:, :0]).sum() + 0.0 * chosen.value  # attached to the graph, and reads nothing
    with no_autocast(x):
        valid = None if keep is None else (keep[:, first] & keep[:, second]).T
        weight = _weights(valid, first.shape[0], x.shape[0], chosen.value)
        x = zero_missing(x, keep).transpose(0, 1)
        if is_small(x.shape[1], x.shape[1], batch=first.shape[0]):
            return dense_pairs(x, first, second, chosen.value, valid, weight, symmetric=True)
        losses = _row_losses(x, first, second, chosen, valid)
        return ((losses if valid is None else torch.where(valid, losses, 0.0)) * weight).sum()


def _weights(valid: Tensor | None, pairs: int, batch: int, like: Tensor) -> Tensor:
    """Return the weight ``(P, B)`` of each row in a mean over its pair, and of pairs that have a row."""
    if valid is None:
        return like.new_full((pairs, batch), 1 / max(pairs * batch, 1))
    share = valid.to(like.dtype) / valid.sum(1, keepdim=True).clamp(min=1)
    return share / valid.any(1).sum().clamp(min=1)


def _row_losses(x: Tensor, first: Tensor, second: Tensor, temperature: Temperature, valid: Tensor | None) -> Tensor:
    """Return the losses ``(P, B)`` between the sets ``first (P,)`` and ``second (P,)`` of ``x (M, B, D)``."""
    value, least = temperature
    units = centred_units(x)
    queries, keys = (Units(units.u[side], units.lost[side]) for side in (first, second))
    rows, columns = both_logsumexp(queries, keys, value, query_valid=valid, key_valid=valid, least=least)
    return (rows + columns) / 2 - partner_energy(queries, keys) / value


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

    Raises:
        TypeError: If a size is no integer or the temperature no number.
        ValueError: If one of them is out of range.

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
    ) -> None:
        super().__init__()
        where = "ModalityContrastiveLoss"
        check_size(where, "hidden_features", hidden_features)
        check_size(where, "num_modalities", num_modalities)
        check_size(where, "projection_features", projection_features)
        self.hidden_features, self.num_modalities = hidden_features, num_modalities
        self.temperature = TemperatureModule(where, temperature, learnable_temperature, temperature_range)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(hidden_features, hidden_features),
                nn.ReLU(),
                nn.Linear(hidden_features, projection_features),
            )
            for _ in range(num_modalities)
        )

    def forward(self, mu: Tensor | Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Return the loss of ``mu (B, M, H)`` (or M tensors ``(B, H)``) with ``present (B, M)``, True = present.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape is wrong.
        """
        x = stack_modalities("ModalityContrastiveLoss", "mu", mu)
        check_shape("ModalityContrastiveLoss", "mu", x, B=None, M=self.num_modalities, H=self.hidden_features)
        keep = as_mask("ModalityContrastiveLoss", "present", present, B=x.shape[0], M=x.shape[1])
        parts = zero_missing(x, keep).unbind(1)
        projected = torch.stack([head(part) for head, part in zip(self.heads, parts, strict=True)], dim=1)
        return modality_contrastive_loss(projected, keep, temperature=self.temperature())
