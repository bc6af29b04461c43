"""Attention between the tokens of different branches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import as_mask, check_floating, check_range, check_shape, check_size
from ..masking import zero_missing


class FeatureTokenFusion(nn.Module):
    r"""Let the tokens of each branch look at those of all others: cross-attention both ways, then a feed-forward layer.

    For every branch m, with :math:`K_m` the normalised tokens of the other branches,

    .. math:: h_m = x_m + \mathrm{Attention}_m(\mathrm{LN}(x_m), K_m), \qquad
              y_m = h_m + \mathrm{FFN}_m(\mathrm{LN}(h_m))

    by ``scaled_dot_product_attention``, which holds no matrix of weights where a fused kernel exists. Absent branches
    are never read and come out as zeros; a branch that is alone goes through its feed-forward layer only.

    Args:
        token_features: Width E of a token.
        num_heads: Number of heads; divides E.
        num_branches: Number of branches M.
        dropout: Dropout probability on attention and in the feed-forward layer, in [0, 1).

    Raises:
        ValueError: If a size or an option does not fit.

    Source: bidirectional cross-attention as in LXMERT, Tan and Bansal, arXiv:1908.07490, section 2.2, with the
    normalisation before each part (Xiong et al., arXiv:2002.04745).

    Example:
        >>> fuse = FeatureTokenFusion(8, num_heads=2)
        >>> first, second = fuse([torch.randn(4, 5, 8), torch.randn(4, 9, 8)])
        >>> first.shape, second.shape
        (torch.Size([4, 5, 8]), torch.Size([4, 9, 8]))
    """

    def __init__(self, token_features: int, num_heads: int, num_branches: int = 2, *, dropout: float = 0.0) -> None:
        super().__init__()
        where = "FeatureTokenFusion"
        check_size(where, "token_features", token_features)
        check_size(where, "num_heads", num_heads)
        check_size(where, "num_branches", num_branches)
        check_range(where, "dropout", dropout, 0.0, 1.0, high_open=True)
        if token_features % num_heads:
            raise ValueError(
                f"{where}: expected num_heads to divide token_features = {token_features}, got {num_heads}"
            )
        self.token_features, self.num_heads, self.num_branches = token_features, num_heads, num_branches
        self.branches = nn.ModuleList(_Branch(token_features, num_heads, dropout) for _ in range(num_branches))

    def forward(self, tokens: Sequence[Tensor], present: Tensor | None = None) -> list[Tensor]:
        """Fuse ``tokens``, M tensors ``(B, T_m, E)``; ``present (B, M)`` bool or integer 0/1, True = present.

        Returns:
            M tensors of the shapes and dtype given, zeros where absent.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape or the number of branches is wrong.
        """
        where = "FeatureTokenFusion"
        if len(tokens) != self.num_branches:
            raise ValueError(f"{where}: expected tokens of {self.num_branches} branches, got {len(tokens)}")
        for m, x in enumerate(tokens):
            check_floating(where, f"tokens[{m}]", x)
            check_shape(where, f"tokens[{m}]", x, B=tokens[0].shape[0], T=None, E=self.token_features)
        keep = as_mask(where, "present", present, B=tokens[0].shape[0], M=self.num_branches)
        columns: list[Tensor | None] = [None] * self.num_branches
        if keep is not None:
            columns = list(keep.unbind(1))
        parts = [zero_missing(x, column) for x, column in zip(tokens, columns, strict=True)]
        normed: list[Tensor] = [branch.norm(x) for branch, x in zip(self.branches, parts, strict=True)]  # type: ignore[operator]
        fused = []
        for m, branch in enumerate(self.branches):
            others = [n for n in range(self.num_branches) if n != m]
            mask = None if keep is None else _steps(keep, others, parts)
            keys = torch.cat([normed[n] for n in others], dim=1) if others else None
            fused.append(zero_missing(branch(parts[m], normed[m], keys, mask), columns[m]))
        return fused


def _steps(keep: Tensor, branches: list[int], parts: list[Tensor]) -> Tensor:
    """Return which tokens of some branches are there ``(B, T)``."""
    columns = [keep[:, n : n + 1].expand(-1, parts[n].shape[1]) for n in branches]
    return torch.cat(columns, dim=1) if columns else keep[:, :0]


class _Branch(nn.Module):
    def __init__(self, features: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.rate = num_heads, dropout
        self.norm = nn.LayerNorm(features)
        self.query = nn.Linear(features, features)
        self.key_value = nn.Linear(features, 2 * features)
        self.out = nn.Linear(features, features)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(features),
            nn.Linear(features, 2 * features),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * features, features),
        )

    def forward(self, x: Tensor, normed: Tensor, keys: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return tokens ``(B, T, E)`` that have seen ``keys (B, K, E)``, of which ``mask (B, K)`` are there."""
        if keys is not None and keys.shape[1]:
            x = x + self._attend(normed, keys, mask)
        fused: Tensor = x + self.feed_forward(x)
        return fused

    def _attend(self, normed: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        q = self._heads(self.query(normed))
        k, v = (self._heads(x) for x in self.key_value(keys).chunk(2, dim=-1))
        there = None if mask is None else mask.any(1)
        # Softmax over no key at all is NaN: such rows look at all of their keys, zeros, and forget what they saw.
        seen = None if mask is None or there is None else (mask | ~there.unsqueeze(1))[:, None, None]
        rate = self.rate if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=rate)
        joined: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return zero_missing(joined, there)

    def _heads(self, x: Tensor) -> Tensor:
        batch, steps, features = x.shape
        return x.reshape(batch, steps, self.num_heads, features // self.num_heads).transpose(1, 2)
