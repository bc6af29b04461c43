"""The interchangeable parts of the variational model, by the names of its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._checks import as_mask, check_option, check_same_shape
from .._precision import widen
from ..attention import ProxyCrossModalAttention
from ..encoders import ModalityDecoder, VariationalLSTMEncoder, VariationalMLPEncoder, VariationalOutput
from ..fusion import FusionOutput, GatedUncertaintyFusion, UncertaintyWeightedFusion, weighted_sum
from ..masking import masked_softmax, zero_missing
from ._inputs import FusionClassifierOutput, InputReader, ModalityInputs

# What the published system gives a modality that its dropout took away, instead of leaving it out.
_PUBLISHED_ABSENT_STD = 1e6


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


def build_fusion(
    where: str, kind: str, hidden: int, count: int, alpha: float, weighing: dict[str, Any], quality: str
) -> nn.Module:
    check_option(where, "fusion", kind, ("uncertainty", "gated", "mean"))
    for name in ("per_dimension", "prior_expert"):
        if kind == "mean" and weighing[name]:
            raise ValueError(f"{where}: expected {name}=False with fusion='mean', which weighs all alike, got True")
    if kind == "mean" and quality != "none":
        raise ValueError(
            f"{where}: expected quality='none' with fusion='mean', which weighs all alike, got {quality!r}"
        )
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


def encode(encoders: nn.ModuleList, x: ModalityInputs, visible: Tensor | None) -> VariationalOutput:
    """Encode all modalities into one ``(B, M, H)`` Gaussian."""
    outputs = []
    for index, (encoder, features, mask) in enumerate(zip(encoders, x.features, x.masks, strict=True)):
        column = None if visible is None else visible[:, index]
        if mask is not None and column is not None:
            mask = mask & column.unsqueeze(1)
        outputs.append(encoder(features, column if mask is None else mask))
    return VariationalOutput(*(torch.stack(parts, dim=1) for parts in zip(*outputs, strict=True)))


def fuse(
    fusion: nn.Module, attention: nn.Module | None, seen: Tensor, std: Tensor, kept: Tensor, exclude: bool
) -> tuple[Tensor, Tensor]:
    """Weigh vectors ``(B, M, H)`` by their stds, add them up, and look back at them.

    Stds ``(B, M, 1)`` are the same in all dimensions, which spares the logarithms of most.
    """
    visible = kept if exclude else None
    if visible is None:
        seen = zero_missing(seen, kept)
        std = torch.where(kept.unsqueeze(-1), widen(std), _PUBLISHED_ABSENT_STD)
    if std.shape[-1] == 1 and isinstance(fusion, UncertaintyWeightedFusion):
        weights = fusion.weights(std, visible)
        weights = weights.expand_as(seen) if weights.dim() == 3 else weights
        fused = weighted_sum(seen, weights, visible)
    else:
        fused, weights = fusion(seen, std.expand_as(seen), visible)
    if attention is not None:
        fused = attention(fused, seen, weights.mean(-1) if weights.dim() == 3 else weights, visible)
    return fused, weights


def decode(decoders: nn.ModuleList | None, sources: Sequence[Tensor], x: ModalityInputs) -> list[Tensor | None]:
    """Decode every modality from its source ``(B, H)``; without decoders there is nothing."""
    if decoders is None:
        return [None] * len(sources)
    return [
        decoder(source, None if mask is None else mask.shape[1])
        for decoder, source, mask in zip(decoders, sources, x.masks, strict=True)
    ]


def complete_targets(x: ModalityInputs, names: Sequence[str], targets: Mapping[str, Tensor] | None) -> list[Tensor]:
    """Return what to reconstruct, in order: the targets that are given, the inputs elsewhere."""
    given = targets or {}
    for name in given:
        check_option("VariationalFusionClassifier", "targets", name, names)
    return [given.get(name, own) for name, own in zip(names, x.features, strict=True)]


def check_views(where: str, views: Tensor, present: Tensor) -> Tensor:
    """Return ``views (V, B, M)`` as bool masks of what is also present."""
    keep = as_mask(where, "views", views, V=None, B=present.shape[0], M=present.shape[1])
    assert keep is not None
    if not len(keep):
        raise ValueError(f"{where}: expected views with at least one view, got shape {tuple(views.shape)}")
    return keep & present


def repeat_views(kept: Tensor, seen: Tensor, std: Tensor, mu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Repeat ``(B, M, H)`` for every view, as ``(V * B, M, H)``; what a view ``(V, B, M)`` lacks is nothing known."""
    keep = kept.flatten(0, 1)  # before and not after the selection: torch.export takes no broadcast that is flattened
    stds = torch.where(keep.unsqueeze(-1), std.repeat(len(kept), 1, 1), 1.0)
    means = zero_missing(mu.repeat(len(kept), 1, 1), keep)
    return means if seen is mu else zero_missing(seen.repeat(len(kept), 1, 1), keep), stds, means


def unflatten_views(output: FusionClassifierOutput, sizes: torch.Size) -> FusionClassifierOutput:
    """Split the first dimension V * B of all fields into (V, B); the auxiliary loss and the presence stay."""
    found = output._asdict()
    for name, part in found.items():
        if part is not None and name not in ("aux_loss", "present"):
            found[name] = part.unflatten(0, sizes)
    return FusionClassifierOutput(**found)


def spoilt_rows(x: ModalityInputs, targets: Sequence[Tensor]) -> Tensor:
    """Mark ``(B, M)`` where an input differs from its clean target in what is real."""
    columns = []
    for index, (features, target, mask) in enumerate(zip(x.features, targets, x.masks, strict=True)):
        check_same_shape("VariationalFusionClassifier", f"targets[{index}]", target, f"inputs[{index}]", features)
        differs = (features != target.to(features.dtype)).any(-1)
        columns.append(differs if mask is None else (differs & mask).any(1))
    return torch.stack(columns, dim=1)
