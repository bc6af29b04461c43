"""The interchangeable parts of the variational model, by the names of its options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._checks import check_option, check_same_shape
from ..attention import ProxyCrossModalAttention
from ..encoders import ModalityDecoder, VariationalLSTMEncoder, VariationalMLPEncoder
from ..fusion import FusionOutput, GatedUncertaintyFusion, UncertaintyWeightedFusion, weighted_sum
from ..masking import masked_softmax
from ._inputs import InputReader, ModalityInputs


class _MeanFusion(nn.Module):
    """Give equal weights to what is present: the simple baseline that takes no notice of uncertainty."""

    def forward(self, mu: Tensor, std: Tensor, present: Tensor | None = None) -> FusionOutput:
        weights = masked_softmax(mu.new_zeros(mu.shape[:2]), present)
        return FusionOutput(weighted_sum(mu, weights, present), weights)


def build_encoders(
    reader: InputReader, hidden: int, dropout: float, logvar_bound: Literal["soft", "clamp"]
) -> nn.ModuleList:
    encoders: list[nn.Module] = []
    for name, size in reader.sizes.items():
        kind = VariationalLSTMEncoder if name in reader.sequences else VariationalMLPEncoder
        encoders.append(kind(size, hidden, dropout, logvar_bound=logvar_bound))
    return nn.ModuleList(encoders)


def build_decoders(reader: InputReader, hidden: int, dropout: float) -> nn.ModuleList:
    return nn.ModuleList(
        ModalityDecoder(hidden, size, dropout, sequence=name in reader.sequences) for name, size in reader.sizes.items()
    )


def build_fusion(where: str, kind: str, hidden: int, count: int, alpha: float, weighing: dict[str, Any]) -> nn.Module:
    check_option(where, "fusion", kind, ("uncertainty", "gated", "mean"))
    for name in ("per_dimension", "prior_expert"):
        if kind == "mean" and weighing[name]:
            raise ValueError(f"{where}: expected {name}=False with fusion='mean', which weighs all alike, got True")
    uncertainty = UncertaintyWeightedFusion(**weighing)
    if kind == "gated":
        return GatedUncertaintyFusion(hidden, count, alpha=alpha, **weighing)
    return uncertainty if kind == "uncertainty" else _MeanFusion()


def build_attention(
    where: str, kind: str, hidden: int, heads: int, dropout: float, count: int
) -> ProxyCrossModalAttention | None:
    check_option(where, "attention", kind, ("joint", "per_modality", "none"))
    if kind == "none":
        return None
    if kind == "joint":
        return ProxyCrossModalAttention(hidden, heads, dropout)
    return ProxyCrossModalAttention(hidden, heads, dropout, mode="per_modality", num_modalities=count)


def spoilt_rows(x: ModalityInputs, targets: Sequence[Tensor]) -> Tensor:
    """Mark ``(B, M)`` where an input differs from its clean target in what is real."""
    columns = []
    for index, (features, target, mask) in enumerate(zip(x.features, targets, x.masks, strict=True)):
        check_same_shape("VariationalFusionClassifier", f"targets[{index}]", target, f"inputs[{index}]", features)
        differs = (features != target.to(features.dtype)).any(-1)
        columns.append(differs if mask is None else (differs & mask).any(1))
    return torch.stack(columns, dim=1)
