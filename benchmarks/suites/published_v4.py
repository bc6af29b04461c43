"""The published V4 arithmetic, written plainly from its formulas, as the opponent of VariationalFusionClassifier.

Deterministic parts only differ from ours where the published system does: a softmax of inverse stds, one attention per
modality over a single key, dropout of latents after encoding. ``vectorised`` replaces the published Python loop
over samples by tensor operations, so that a comparison is not about that loop alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What rebuilds it with VariationalFusionClassifier.
OPTIONS: dict[str, Any] = {
    "weighting": "softmax_inverse_std",
    "attention": "per_modality",
    "absence": "zero_fill",
    "latent_reduction": "sum",
    "symmetric_cross_kl": False,
    "logvar_bound": "clamp",
}
_PATTERNS = ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2))  # which modalities go


class Encoder(nn.Module):
    """Dropout on the input, two Linear-LayerNorm-GELU with a residual projection, mean and clamped log-variance."""

    def __init__(self, in_features: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear1, self.norm1 = nn.Linear(in_features, hidden), nn.LayerNorm(hidden)
        self.linear2, self.norm2 = nn.Linear(hidden, hidden), nn.LayerNorm(hidden)
        self.residual = nn.Linear(in_features, hidden)
        self.mu, self.logvar = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.dropout(x)
        h = F.gelu(self.norm1(self.linear1(x)))
        h = F.gelu(self.norm2(self.linear2(h))) + self.residual(x)
        mu = self.mu(h)
        logvar = torch.clamp(self.logvar(h), -10, 10)
        std = torch.exp(0.5 * logvar)
        z = mu + std * torch.randn_like(std) if self.training else mu
        return z, mu, logvar, std


class Attention(nn.Module):
    """One nn.MultiheadAttention per modality, each from the proxy to a single key; residual, LayerNorm, FFN."""

    def __init__(self, hidden: int, heads: int, dropout: float, count: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            nn.MultiheadAttention(hidden, heads, dropout=dropout, batch_first=True) for _ in range(count)
        )
        self.norm = nn.LayerNorm(hidden)
        self.ffn = nn.Sequential(
            nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * hidden, hidden)
        )

    def forward(self, proxy: Tensor, mus: Sequence[Tensor], weights: Tensor) -> Tensor:
        fused = proxy
        for index, (attention, mu) in enumerate(zip(self.attentions, mus, strict=True)):
            key = mu.unsqueeze(1)
            fused = fused + weights[:, index : index + 1] * attention(proxy.unsqueeze(1), key, key)[0].squeeze(1)
        fused = self.norm(fused)
        return fused + self.ffn(fused)


class PublishedV4(nn.Module):
    """The whole model: returns logits, values, fusion weights and the auxiliary loss (0 in eval mode)."""

    def __init__(
        self,
        in_features: Sequence[int],
        hidden: int,
        gated: bool,
        contrastive: bool,
        dropout: float,
        modality_dropout: float,
        vectorised: bool = False,
    ) -> None:
        super().__init__()
        count = len(in_features)
        self.encoders = nn.ModuleList(Encoder(size, hidden, dropout) for size in in_features)
        self.gate = nn.Sequential(
            nn.Linear(count * hidden, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, count)
        )
        self.attention = Attention(hidden, 4, dropout, count)
        self.dropout = nn.Dropout(dropout)
        self.classes, self.values = nn.Linear(hidden, 6), nn.Linear(hidden, 1)
        self.decoders = nn.ModuleList(_decoder(hidden, size, dropout) for size in in_features)
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 64)) for _ in in_features
        )
        self.gated, self.contrastive = gated, contrastive
        self.modality_dropout, self.vectorised = modality_dropout, vectorised
        if not gated:
            del self.gate
        if not contrastive:
            del self.projections

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        latents = [encoder(x) for encoder, x in zip(self.encoders, inputs, strict=True)]
        mus, stds = [latent[1] for latent in latents], [latent[3] for latent in latents]
        if self.training and self.modality_dropout > 0:
            keep = self._drawn(inputs[0]) if self.vectorised else self._looped(inputs[0])
            mus = [mu * keep[:, index : index + 1] for index, mu in enumerate(mus)]
            stds = [torch.where(mu.abs().sum(-1, keepdim=True) == 0, 1e6, s) for mu, s in zip(mus, stds, strict=True)]
        weights = self._weights(mus, stds)
        proxy = sum(weights[:, index : index + 1] * mu for index, mu in enumerate(mus))
        assert isinstance(proxy, Tensor)
        features = self.dropout(self.attention(proxy, mus, weights))
        aux = self._aux(inputs, latents) if self.training else features.new_zeros(())
        return self.classes(features), self.values(features), weights, aux

    def _looped(self, like: Tensor) -> Tensor:
        keep = torch.ones(len(like), len(self.encoders), device=like.device, dtype=like.dtype)
        for row in range(len(like)):
            if torch.rand(1).item() < self.modality_dropout:
                for modality in _PATTERNS[int(torch.randint(len(_PATTERNS), (1,)).item())]:
                    keep[row, modality] = 0.0
        return keep

    def _drawn(self, like: Tensor) -> Tensor:
        table = torch.ones(len(_PATTERNS), len(self.encoders), dtype=like.dtype)
        for row, pattern in enumerate(_PATTERNS):
            table[row, list(pattern)] = 0.0
        drawn = table.to(like.device)[torch.randint(len(_PATTERNS), (len(like),), device=like.device)]
        return torch.where(torch.rand(len(like), 1, device=like.device) < self.modality_dropout, drawn, 1.0)

    def _weights(self, mus: list[Tensor], stds: list[Tensor]) -> Tensor:
        mean = torch.stack([std.mean(-1) for std in stds], dim=-1)
        weights = torch.softmax(1 / (mean + 1e-6), dim=-1)
        if self.gated:
            weights = 0.5 * weights + 0.5 * torch.softmax(self.gate(torch.cat(mus, dim=-1)), dim=-1)
        return weights

    def _aux(self, inputs: Sequence[Tensor], latents: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> Tensor:
        count = len(latents)
        kl = sum(-0.5 * (1 + ell - mu**2 - ell.exp()).sum(-1).mean() for _, mu, ell, _ in latents) / count
        rebuilt = [decoder(latent[0]) for decoder, latent in zip(self.decoders, latents, strict=True)]
        errors = sum(F.mse_loss(out, x) for out, x in zip(rebuilt, inputs, strict=True)) / count
        pairs = list(combinations(range(count), 2))
        cross = sum(_kl(*latents[a][1:3], *latents[b][1:3]) for a, b in pairs) / len(pairs)
        aux = 0.01 * kl + 0.1 * errors + 0.01 * cross
        if self.contrastive:
            projected = [F.normalize(net(ls[1]), dim=-1) for net, ls in zip(self.projections, latents, strict=True)]
            aux = aux + 0.1 * sum(_info_nce(projected[a], projected[b]) for a, b in pairs) / len(pairs)
        assert isinstance(aux, Tensor)
        return aux


def _decoder(hidden: int, out_features: int, dropout: float) -> nn.Sequential:
    first, second, last = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, out_features)
    return nn.Sequential(first, nn.ReLU(), nn.Dropout(dropout), second, nn.ReLU(), last)


def _kl(mu_a: Tensor, ell_a: Tensor, mu_b: Tensor, ell_b: Tensor) -> Tensor:
    return 0.5 * (ell_b - ell_a + (ell_a.exp() + (mu_a - mu_b) ** 2) / ell_b.exp() - 1).mean()


def _info_nce(a: Tensor, b: Tensor) -> Tensor:
    logits = a @ b.T / 0.07
    labels = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def copy_in_order(target: nn.Module, source: nn.Module) -> None:
    """Copy the parameters of one module into another that registers the same ones in the same order."""
    with torch.no_grad():
        for to, value in zip(target.parameters(), source.parameters(), strict=True):
            if to.shape != value.shape:
                raise ValueError(
                    f"copy_in_order: expected equal shapes, got {tuple(to.shape)} and {tuple(value.shape)}"
                )
            to.copy_(value)


def load(model: Any, published: Any) -> None:
    """Give a VariationalFusionClassifier built with ``OPTIONS`` the parameters of a PublishedV4."""
    copy_in_order(model.encoders, published.encoders)
    copy_in_order(model.decoders, published.decoders)
    copy_in_order(model.heads, nn.ModuleList([published.classes, published.values]))
    copy_in_order(model.attention.norm, published.attention.norm)
    copy_in_order(model.attention.feed_forward, published.attention.ffn)
    for ours, theirs in zip(model.attention.attentions, published.attention.attentions, strict=True):
        _load_attention(ours, theirs)
    if published.gated:
        copy_in_order(model.fusion.gate, published.gate)
    if published.contrastive:
        copy_in_order(model.contrastive, published.projections)


@torch.no_grad()
def _load_attention(ours: Any, theirs: nn.MultiheadAttention) -> None:
    """Unpack the joint input projection; a bias of the keys cancels in the softmax, and ours has none."""
    query, key, value = theirs.in_proj_weight.chunk(3)
    query_bias, _, value_bias = theirs.in_proj_bias.chunk(3)
    for part, weight in ((ours.query, query), (ours.key, key), (ours.value, value)):
        part.weight.copy_(weight)
    ours.query.bias.copy_(query_bias)
    ours.value.bias.copy_(value_bias)
    copy_in_order(ours.out, theirs.out_proj)
