"""Cross-attention from a fused vector, the proxy, back to the modalities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor, nn

from .._checks import as_mask, check_floating, check_option, check_range, check_shape, check_size, stack_modalities
from .._precision import widen
from ..masking import masked_softmax, zero_missing


class _SingleQueryAttention(nn.Module):
    """Multi-head attention for one query, in a form that never projects the keys or the values.

    ``q W_k x`` is computed as ``(q W_k) x`` and ``sum_t a_t W_v x_t`` as ``W_v sum_t a_t x_t``: the same numbers at a
    cost of O(T H heads) instead of O(T H^2). A bias of the keys would cancel in the softmax, so there is none.
    """

    def __init__(self, features: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)
        self.query = nn.Linear(features, features)
        self.key = nn.Linear(features, features, bias=False)
        self.value = nn.Linear(features, features)
        self.out = nn.Linear(features, features)

    def forward(
        self, query: Tensor, x: Tensor, mask: Tensor | None, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attend from ``query (B, H)`` to ``x (B, K, H)``; returns ``(B, H)`` and weights ``(B, heads, K)``."""
        batch, features = query.shape
        width = features // self.num_heads
        q = self.query(query).reshape(batch, self.num_heads, width) * width**-0.5
        absorbed = torch.einsum("bnd,ndh->bnh", q, self.key.weight.reshape(self.num_heads, width, features))
        scores = absorbed @ x.transpose(1, 2)
        scores = scores if bias is None else scores + bias.unsqueeze(1)
        weights = masked_softmax(scores, None if mask is None else mask.unsqueeze(1)).to(x.dtype)
        dropped = self.dropout(weights)
        pooled = dropped @ x
        value_weight = self.value.weight.reshape(self.num_heads, width, features)
        values = torch.einsum("bnh,ndh->bnd", pooled, value_weight)
        # The bias of a value counts as often as the value does: not at all where nothing is attended to.
        values = values + dropped.sum(-1, keepdim=True) * self.value.bias.reshape(self.num_heads, width)
        found = None if mask is None else mask.any(1)
        return zero_missing(self.out(values.reshape(batch, features)), found), weights


class ProxyCrossModalAttention(nn.Module):
    r"""Let a fused vector, the proxy, look again at the modalities it came from.

    :math:`y = \mathrm{LN}(p + A(p, X))`, output :math:`= y + \mathrm{FFN}(y)`, with A multi-head attention whose only
    query is the proxy :math:`p` and FFN = Linear(H, 2H)-GELU-Dropout-Linear(2H, H).

    ``mode="joint"``: the keys are the M modality vectors together, or all steps of all modalities together.
    ``mode="per_modality"``: one attention with projections of its own per modality, the results added up with
    ``weights``, as published. When modalities are single vectors each softmax there has one key: its weight is
    always 1, the output does not depend on the query, and the gradients of the query and key projections are exactly
    zero. It is kept to rebuild earlier systems; use it for sequences, or use ``"joint"``.

    Args:
        hidden_features: Width H.
        num_heads: Number of heads; divides H.
        dropout: Dropout probability on attention weights and in the FFN, in [0, 1).
        mode: ``"joint"`` or ``"per_modality"``.
        num_modalities: Number of modalities M; needed, and only used, for ``mode="per_modality"``.

    Raises:
        ValueError: If a size or an option does not fit.

    Source: P-RMF, Zhu et al., ACL 2025. Deviation: a softmax over the modalities instead of one softmax per
    modality. Keys and values are never projected (the maps are absorbed into query and output, which is exact).

    Example:
        >>> attention = ProxyCrossModalAttention(8, 2).eval()
        >>> x = torch.randn(2, 3, 8)
        >>> attention(x.mean(1), x).shape
        torch.Size([2, 8])
        >>> steps = [torch.randn(2, 5, 8), torch.randn(2, 9, 8)]
        >>> attention(x.mean(1), steps, return_weights=True)[1].shape
        torch.Size([2, 2, 14])
    """

    def __init__(
        self,
        hidden_features: int,
        num_heads: int,
        dropout: float = 0.0,
        *,
        mode: Literal["joint", "per_modality"] = "joint",
        num_modalities: int | None = None,
    ) -> None:
        super().__init__()
        where = "ProxyCrossModalAttention"
        check_size(where, "hidden_features", hidden_features)
        check_size(where, "num_heads", num_heads)
        check_range(where, "dropout", dropout, 0.0, 1.0, high_open=True)
        check_option(where, "mode", mode, ("joint", "per_modality"))
        if hidden_features % num_heads:
            raise ValueError(
                f"{where}: expected num_heads to divide hidden_features = {hidden_features}, got {num_heads}"
            )
        if mode == "per_modality":
            check_size(where, "num_modalities", num_modalities)
        self.hidden_features, self.mode = hidden_features, mode
        copies = num_modalities if mode == "per_modality" and num_modalities is not None else 1
        self.attentions = nn.ModuleList(
            _SingleQueryAttention(hidden_features, num_heads, dropout) for _ in range(copies)
        )
        self.norm = nn.LayerNorm(hidden_features)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_features, 2 * hidden_features),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * hidden_features, hidden_features),
        )

    @overload
    def forward(
        self,
        proxy: Tensor,
        modalities: Tensor | Sequence[Tensor],
        weights: Tensor | None = None,
        present: Tensor | None = None,
        masks: Sequence[Tensor | None] | None = None,
        *,
        return_weights: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        proxy: Tensor,
        modalities: Tensor | Sequence[Tensor],
        weights: Tensor | None = None,
        present: Tensor | None = None,
        masks: Sequence[Tensor | None] | None = None,
        *,
        return_weights: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self,
        proxy: Tensor,
        modalities: Tensor | Sequence[Tensor],
        weights: Tensor | None = None,
        present: Tensor | None = None,
        masks: Sequence[Tensor | None] | None = None,
        *,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend from the proxy to the modalities.

        Args:
            proxy: Fused vector ``(B, H)``, floating.
            modalities: Vectors ``(B, M, H)`` or M tensors ``(B, H)``, or M sequences ``(B, T_m, H)``; floating.
            weights: Non-negative fusion weights ``(B, M)``. In joint mode they enter the softmax as factors
                (weight 0 = not attended to), in per-modality mode they multiply the results; ``None`` = equal.
            present: Bool or integer 0/1 mask ``(B, M)``, True = present.
            masks: For sequences, M bool or integer 0/1 masks ``(B, T_m)``, True = real step, each possibly ``None``.
            return_weights: Whether to return the attention weights too, before dropout.

        Returns:
            ``(B, H)``, exactly 0 where nothing is present; with ``return_weights`` also ``(B, heads, K)``, K = M or
            the sum of all T_m, which sum to 1 (per modality in per-modality mode), or to 0 where nothing is present.

        Raises:
            TypeError: If an input is not floating or a mask neither bool nor integer.
            ValueError: If a shape or the number of modalities does not fit.
        """
        where = "ProxyCrossModalAttention"
        check_floating(where, "proxy", proxy)
        check_shape(where, "proxy", proxy, B=None, H=self.hidden_features)
        steps, keys = self._keys(proxy, modalities, present, masks)
        if weights is not None:
            check_floating(where, "weights", weights)
            count = modalities.shape[1] if isinstance(modalities, Tensor) else len(modalities)
            check_shape(where, "weights", weights, B=proxy.shape[0], M=count)
        found = torch.cat(keys, dim=1).any(1)
        proxy = zero_missing(proxy, found)
        if self.mode == "joint":
            attended, attention = self._joint(proxy, steps, keys, weights)
        else:
            attended, attention = self._per_modality(proxy, steps, keys, weights)
        hidden = self.norm(proxy + attended)
        output = zero_missing(hidden + self.feed_forward(hidden), found)
        return (output, attention) if return_weights else output

    def _keys(
        self,
        proxy: Tensor,
        modalities: Tensor | Sequence[Tensor],
        present: Tensor | None,
        masks: Sequence[Tensor | None] | None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return per modality its steps ``(B, T_m, H)``, absent ones zeroed, and their masks ``(B, T_m)``.

        Vectors to attend to jointly need not be taken apart: they are one entry ``(B, M, H)`` with mask ``(B, M)``.
        """
        where, batch = "ProxyCrossModalAttention", proxy.shape[0]
        if isinstance(modalities, Tensor) or all(x.dim() == 2 for x in modalities):
            stacked = stack_modalities(where, "modalities", modalities)
            if masks is None and self.mode == "joint":
                check_shape(where, "modalities", stacked, B=batch, M=None, H=self.hidden_features)
                check_size(where, "M of modalities", stacked.shape[1])
                present = as_mask(where, "present", present, B=batch, M=stacked.shape[1])
                present = stacked.new_ones(stacked.shape[:2], dtype=torch.bool) if present is None else present
                return [zero_missing(stacked, present)], [present]
            parts = list(stacked.unsqueeze(2).unbind(1))
        else:
            parts = list(modalities)
        expected = len(self.attentions) if self.mode == "per_modality" else len(parts)
        if len(parts) != expected or (masks is not None and len(masks) != expected):
            got = len(parts) if len(parts) != expected or masks is None else len(masks)
            raise ValueError(f"{where}: expected {expected} modalities (and as many masks), got {got}")
        present = as_mask(where, "present", present, B=batch, M=len(parts))
        steps, keys = [], []
        for index, part in enumerate(parts):
            check_floating(where, f"modalities[{index}]", part)
            check_shape(where, f"modalities[{index}]", part, B=batch, T=None, H=self.hidden_features)
            mask = None if masks is None else masks[index]
            key = as_mask(where, f"masks[{index}]", mask, B=batch, T=part.shape[1])
            key = torch.ones(part.shape[:2], dtype=torch.bool, device=part.device) if key is None else key
            key = key if present is None else key & present[:, index : index + 1]
            steps.append(zero_missing(part, key))
            keys.append(key)
        return steps, keys

    def _joint(
        self, proxy: Tensor, steps: list[Tensor], keys: list[Tensor], weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x, key = torch.cat(steps, dim=1), torch.cat(keys, dim=1)
        bias = None
        if weights is not None:
            if weights.shape[1] == len(steps):
                counts = [step.shape[1] for step in steps]
                weights = torch.cat([weights[:, [m]].expand(-1, count) for m, count in enumerate(counts)], dim=1)
            weight = zero_missing(widen(weights), key)
            key = key & (weight > 0)
            bias = weight.clamp(min=torch.finfo(weight.dtype).tiny).log()
        attended: tuple[Tensor, Tensor] = self.attentions[0](proxy, x, key, bias)
        return attended

    def _per_modality(
        self, proxy: Tensor, steps: list[Tensor], keys: list[Tensor], weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        there = torch.stack([key.any(1) for key in keys], dim=1)
        if weights is None:
            weights = there.to(proxy.dtype) / there.sum(1, keepdim=True).clamp(min=1)
        weights = zero_missing(weights, there)
        results = [
            attention(proxy, step, key) for attention, step, key in zip(self.attentions, steps, keys, strict=True)
        ]
        attended = torch.stack([result[0] for result in results], dim=1)
        return (weights.unsqueeze(-1) * attended).sum(1), torch.cat([result[1] for result in results], dim=-1)
