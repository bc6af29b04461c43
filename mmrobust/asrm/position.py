"""A gate for every token from its meaning and its place."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_size
from .._precision import widen
from ..masking import masked_mean
from ._gate import CalibratedTokens, around_one, calibrate


class PositionAwareASRM(nn.Module):
    r"""Give every token a gate by what it means, times one by where it stands.

    .. math:: y_t = x_t \odot 2\,\sigma\big(W_2\,\mathrm{GELU}(W_1 [x_t; \bar x])\big) \odot
              2\,\sigma\big(V_2\,\mathrm{GELU}(V_1\, p_t)\big)

    with the mean :math:`\bar x` over real tokens, and sines and cosines :math:`p_t` of how many real tokens come before
    and after. Padding on either side changes nothing. :math:`W_2` and :math:`V_2` start at 0, hence both gates at 1.

    Args:
        hidden_features: Width H.
        reduction: The bottlenecks have H / reduction units, at least 1.
        position_features: Number of sines and cosines, a multiple of 4.

    Raises:
        ValueError: If a size is out of range.

    Source: sines and cosines of Vaswani et al., arXiv:1706.03762, section 3.5, counted from both ends. The earlier
    description multiplies two unbounded weights and names no positional signal.

    Example:
        >>> calibrate = PositionAwareASRM(8)
        >>> x = torch.randn(2, 5, 8)
        >>> torch.equal(calibrate(x), x)  # the identity at first
        True
    """

    def __init__(self, hidden_features: int, *, reduction: int = 4, position_features: int = 32) -> None:
        super().__init__()
        where = "PositionAwareASRM"
        check_size(where, "hidden_features", hidden_features)
        check_size(where, "reduction", reduction)
        check_size(where, "position_features", position_features)
        if position_features % 4:
            raise ValueError(f"{where}: expected position_features to be a multiple of 4, got {position_features}")
        bottleneck = max(1, hidden_features // reduction)
        self.hidden_features, self.position_features = hidden_features, position_features
        self.token = nn.Linear(hidden_features, bottleneck)
        self.context = nn.Linear(hidden_features, bottleneck, bias=False)
        self.semantic = _zero(nn.Linear(bottleneck, hidden_features))
        self.position = nn.Linear(position_features, bottleneck)
        self.positional = _zero(nn.Linear(bottleneck, hidden_features))

    @overload
    def forward(self, x: Tensor, mask: Tensor | None = None, *, return_gate: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, mask: Tensor | None = None, *, return_gate: Literal[True]) -> CalibratedTokens: ...
    def forward(self, x: Tensor, mask: Tensor | None = None, *, return_gate: bool = False) -> Tensor | CalibratedTokens:
        """Calibrate tokens ``x (B, T, H)`` with ``mask (B, T)``, True = real; ``return_gate`` returns the gate too.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape is wrong.
        """
        return calibrate("PositionAwareASRM", x, mask, self.hidden_features, self._gate, return_gate)

    def _gate(self, x: Tensor, keep: Tensor | None) -> Tensor:
        meaning = self.token(x) + self.context(masked_mean(x, keep)).unsqueeze(1)
        place = self.position(_positions(x, keep, self.position_features))
        return around_one(self.semantic(F.gelu(meaning))) * around_one(self.positional(F.gelu(place)))


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _positions(x: Tensor, keep: Tensor | None, features: int) -> Tensor:
    """Return sines and cosines ``(B, T, features)`` of the number of real tokens before and after each token."""
    real = torch.ones_like(x[..., 0]) if keep is None else keep
    real = real.to(widen(x).dtype)
    upto = real.cumsum(1)
    places = torch.stack([upto - real, real.sum(1, keepdim=True) - upto], dim=2)
    waves = torch.arange(features // 4, device=x.device, dtype=real.dtype)
    angles = places.unsqueeze(3) * torch.exp(-math.log(10_000.0) * waves / (features // 4))
    return torch.cat([angles.sin(), angles.cos()], dim=3).flatten(2).to(x.dtype)
