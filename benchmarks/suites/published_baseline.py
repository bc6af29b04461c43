"""The published ``attention`` baseline of MERBench, written plainly from its formulas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# What rebuilds it with AttentionFusionClassifier.
OPTIONS: dict[str, Any] = {"normalize": "none", "absence": "zero_fill"}


class PublishedBaseline(nn.Module):
    """Encode, weigh by an MLP over all modalities without a softmax, add up, classify and regress."""

    def __init__(self, in_features: Sequence[int], hidden: int, dropout: float) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(_mlp(size, hidden, dropout) for size in in_features)
        self.attention = _mlp(len(in_features) * hidden, hidden, dropout)
        self.weights = nn.Linear(hidden, len(in_features))
        self.classes, self.values = nn.Linear(hidden, 6), nn.Linear(hidden, 1)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden = [encoder(x) for encoder, x in zip(self.encoders, inputs, strict=True)]
        weights = self.weights(self.attention(torch.cat(hidden, dim=1)))
        fused = torch.bmm(torch.stack(hidden, dim=2), weights.unsqueeze(2)).squeeze(2)
        return self.classes(fused), self.values(fused), weights, fused.new_zeros(())


def _mlp(in_features: int, hidden: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Dropout(dropout)]
    for size in (in_features, hidden, hidden):
        layers += [nn.Linear(size, hidden), nn.ReLU()]
    return nn.Sequential(*layers)
