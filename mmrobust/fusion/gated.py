"""A learned gate beside the uncertainty weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._checks import as_mask, check_range, check_shape, check_size
from .._precision import no_autocast, widen
from ..masking import masked_softmax, zero_missing
from .uncertainty import FusionOutput, UncertaintyWeightedFusion, Weighting, stack_gaussians, weighted_sum


class GatedUncertaintyFusion(nn.Module):
    r"""Mix uncertainty weights with a learned gate.

    :math:`w = \alpha\,w_\sigma + (1 - \alpha)\,\mathrm{softmax}(\mathrm{MLP}([\mu_1; \dots; \mu_M]))`, with the
    logits of absent modalities masked before the softmax. The gate is Linear(MH, H)-GELU-Dropout-Linear(H, M).

    Args:
        hidden_features: Width H.
        num_modalities: Number of modalities M.
        alpha: Share of the uncertainty weights, in [0, 1].
        learn_alpha: Whether alpha is learned, through a sigmoid; it must then start inside (0, 1).
        dropout: Dropout probability in the gate.
        weighting: As in :class:`UncertaintyWeightedFusion`, like the options below.
        power: Exponent for ``"precision"``, positive.
        temperature: Softness, positive.
        per_dimension: Whether every dimension has uncertainty weights of its own (the gate has one per modality).
        prior_expert: Whether a prior N(0, I) takes part in the uncertainty weights.

    Raises:
        ValueError: If a size or an option is out of range.

    Example:
        >>> fused, weights = GatedUncertaintyFusion(8, 3)(torch.randn(2, 3, 8), torch.ones(2, 3, 8))
        >>> fused.shape, weights.sum(1).allclose(torch.ones(2))
        (torch.Size([2, 8]), True)
    """

    def __init__(
        self,
        hidden_features: int,
        num_modalities: int,
        *,
        alpha: float = 0.5,
        learn_alpha: bool = False,
        dropout: float = 0.1,
        weighting: Weighting = "precision",
        power: float = 2.0,
        temperature: float = 1.0,
        per_dimension: bool = False,
        prior_expert: bool = False,
    ) -> None:
        super().__init__()
        where = "GatedUncertaintyFusion"
        check_size(where, "hidden_features", hidden_features)
        check_size(where, "num_modalities", num_modalities)
        check_range(where, "alpha", alpha, 0.0, 1.0, low_open=learn_alpha, high_open=learn_alpha)
        check_range(where, "dropout", dropout, 0.0, 1.0, high_open=True)
        self.hidden_features, self.num_modalities, self.learn_alpha = hidden_features, num_modalities, learn_alpha
        self.uncertainty = UncertaintyWeightedFusion(
            weighting=weighting,
            power=power,
            temperature=temperature,
            per_dimension=per_dimension,
            prior_expert=prior_expert,
        )
        self.gate = nn.Sequential(
            nn.Linear(num_modalities * hidden_features, hidden_features),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_features, num_modalities),
        )
        start = torch.tensor(float(alpha))
        if learn_alpha:
            self.alpha_logit = nn.Parameter(torch.logit(start))
        else:
            self.register_buffer("fixed_alpha", start)

    @property
    def alpha(self) -> Tensor:
        """The share of the uncertainty weights, a scalar tensor in [0, 1]."""
        return self.alpha_logit.sigmoid() if self.learn_alpha else self.get_buffer("fixed_alpha")

    def forward(
        self, mu: Tensor | Sequence[Tensor], std: Tensor | Sequence[Tensor], present: Tensor | None = None
    ) -> FusionOutput:
        """Fuse ``mu`` and ``std``, each ``(B, M, H)`` or M tensors ``(B, H)``, with ``present (B, M)``.

        Raises:
            TypeError: If an input is not floating or ``present`` neither bool nor integer.
            ValueError: If a shape does not fit.
        """
        mu, std = stack_gaussians("GatedUncertaintyFusion", mu, std)
        check_shape("GatedUncertaintyFusion", "mu", mu, B=None, M=self.num_modalities, H=self.hidden_features)
        present = as_mask("GatedUncertaintyFusion", "present", present, B=mu.shape[0], M=mu.shape[1])
        uncertain = self.uncertainty.weights(std, present)
        gate = masked_softmax(self.gate(zero_missing(mu, present).flatten(1)), present)
        gate = gate if uncertain.dim() == 2 else gate.unsqueeze(-1)
        with no_autocast(mu):
            alpha = widen(self.alpha)
            weights = (alpha * widen(uncertain) + (1 - alpha) * widen(gate)).to(mu.dtype)
        return FusionOutput(weighted_sum(mu, weights, present), weights)
