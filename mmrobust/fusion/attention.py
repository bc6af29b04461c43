"""Deterministic attention over modalities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from .._checks import as_mask, check_option, check_range, check_shape, check_size, stack_modalities
from ..masking import masked_softmax, zero_missing
from .uncertainty import FusionOutput, weighted_sum


class AttentionFusion(nn.Module):
    r"""Fuse by weights that an MLP reads from all modalities together.

    :math:`w = n(\mathrm{MLP}([x_1; \dots; x_M]))`, fused :math:`= \sum_m w_m x_m`. The MLP is dropout on the input,
    then ``num_layers`` of Linear-ReLU, H wide, then Linear(H, M).

    Args:
        hidden_features: Width H.
        num_modalities: Number of modalities M.
        normalize: ``"softmax"`` over the present modalities, or ``"none"``: the weights are the raw outputs,
            possibly negative, as in the MERBench baseline.
        dropout: Dropout probability on the input of the MLP.
        num_layers: Hidden layers of the MLP.

    Raises:
        ValueError: If a size or an option is out of range.

    Source: MERBench, Lian et al., arXiv 2401.03429, model ``attention``.

    Example:
        >>> fused, weights = AttentionFusion(8, 3)([torch.randn(2, 8) for _ in range(3)])
        >>> fused.shape, weights.shape
        (torch.Size([2, 8]), torch.Size([2, 3]))
    """

    def __init__(
        self,
        hidden_features: int,
        num_modalities: int,
        *,
        normalize: Literal["softmax", "none"] = "softmax",
        dropout: float = 0.0,
        num_layers: int = 3,
    ) -> None:
        super().__init__()
        check_size("AttentionFusion", "hidden_features", hidden_features)
        check_size("AttentionFusion", "num_modalities", num_modalities)
        check_size("AttentionFusion", "num_layers", num_layers)
        check_option("AttentionFusion", "normalize", normalize, ("softmax", "none"))
        check_range("AttentionFusion", "dropout", dropout, 0.0, 1.0, high_open=True)
        self.hidden_features, self.num_modalities, self.normalize = hidden_features, num_modalities, normalize
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        for index in range(num_layers):
            layers += [nn.Linear((num_modalities if index == 0 else 1) * hidden_features, hidden_features), nn.ReLU()]
        self.attention = nn.Sequential(*layers, nn.Linear(hidden_features, num_modalities))

    def forward(self, x: Tensor | Sequence[Tensor], present: Tensor | None = None) -> FusionOutput:
        """Fuse ``x (B, M, H)``, or M tensors ``(B, H)``, with ``present (B, M)``.

        Raises:
            TypeError: If ``x`` is not floating or ``present`` neither bool nor integer.
            ValueError: If a shape does not fit.
        """
        x = stack_modalities("AttentionFusion", "x", x)
        check_shape("AttentionFusion", "x", x, B=None, M=self.num_modalities, H=self.hidden_features)
        present = as_mask("AttentionFusion", "present", present, B=x.shape[0], M=x.shape[1])
        logits = self.attention(zero_missing(x, present).flatten(1))
        weights = masked_softmax(logits, present) if self.normalize == "softmax" else zero_missing(logits, present)
        weights = weights.to(x.dtype)
        return FusionOutput(weighted_sum(x, weights, present), weights)
