"""The original: one gate for all tokens of a text."""

from __future__ import annotations

from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_size
from ..masking import masked_mean
from ._gate import CalibratedTokens, calibrate


class ASRM(nn.Module):
    r"""Multiply all tokens of a text by one gate: squeeze and excitation over channels.

    :math:`y_t = x_t \odot \sigma(W_2\,\mathrm{ReLU}(W_1 \bar x))` with the mean :math:`\bar x` over real tokens. The
    gate is the same for every token, so it cannot tell which words stand together; it is here as the baseline that
    :class:`SpanAwareASRM` has to beat.

    Args:
        hidden_features: Width H.
        reduction: The bottleneck has H / reduction units, at least 1.

    Raises:
        ValueError: If a size is out of range.

    Source: Hu et al., Squeeze-and-Excitation Networks, arXiv:1709.01507, eq. 2 to 4, with tokens in the place of
    pixels. Deviation from earlier ASRM code: padding is left out of the mean.

    Example:
        >>> calibrate = ASRM(8)
        >>> tokens, gate = calibrate(torch.randn(2, 5, 8), return_gate=True)
        >>> bool((gate[:, 0] == gate[:, 4]).all())
        True
    """

    def __init__(self, hidden_features: int, *, reduction: int = 4) -> None:
        super().__init__()
        check_size("ASRM", "hidden_features", hidden_features)
        check_size("ASRM", "reduction", reduction)
        self.hidden_features = hidden_features
        self.squeeze = nn.Linear(hidden_features, max(1, hidden_features // reduction))
        self.excite = nn.Linear(self.squeeze.out_features, hidden_features)

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
        return calibrate("ASRM", x, mask, self.hidden_features, self._gate, return_gate)

    def _gate(self, x: Tensor, keep: Tensor | None) -> Tensor:
        return torch.sigmoid(self.excite(F.relu(self.squeeze(masked_mean(x, keep))))).unsqueeze(1)
