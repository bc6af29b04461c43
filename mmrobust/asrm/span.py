"""A gate for every token from the words around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import check_option, check_range, check_size
from .._precision import widen
from ._gate import CalibratedTokens, around_one, calibrate
from ._windows import gated_tokens, weighted_windows

Convolution = Literal["grouped", "depthwise", "dense"]


class SpanAwareASRM(nn.Module):
    r"""Give every token and channel a gate that sees the words around it.

    .. math:: y_t = x_t \odot 2\,\sigma\Big(b + \sum_w s_w \odot \mathrm{GELU}\big((K_w * x)_t\big)\Big)

    with one convolution :math:`K_w` along the tokens per window size w, and zeros beyond both ends and where masked.
    :math:`s_w` and :math:`b` start at 0, hence the gate at 1.

    Args:
        hidden_features: Width H.
        window_sizes: Tokens that a convolution sees, odd or even; an even window has its extra token on the right.
        convolution: ``"grouped"``: channels see those of their group; ``"depthwise"``: a window per channel, then a
            mix of all channels; ``"dense"``: all channels in every window.
        groups: Number of groups for ``"grouped"``; ``None`` = 4, or the largest smaller number that divides H.
        dropout: Dropout probability on what the windows found.

    Raises:
        ValueError: If a size or an option does not fit.

    Source: the published span-aware module averages the same windows, but has attention over them that fails with any
    mask, a layer that runs in training alone, and features moved by the true label; none of that is here.

    Example:
        >>> calibrate = SpanAwareASRM(8, window_sizes=(1, 2, 3))
        >>> x = torch.randn(2, 5, 8)
        >>> torch.equal(calibrate(x), x)  # the identity at first
        True
        >>> calibrate(x, torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]))[0, 3:].abs().max()
        tensor(0., grad_fn=<MaxBackward1>)
    """

    def __init__(
        self,
        hidden_features: int,
        window_sizes: Sequence[int] = (1, 3, 5),
        *,
        convolution: Convolution = "grouped",
        groups: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        where = "SpanAwareASRM"
        check_size(where, "hidden_features", hidden_features)
        check_option(where, "convolution", convolution, ("grouped", "depthwise", "dense"))
        check_range(where, "dropout", dropout, 0.0, 1.0, high_open=True)
        self.hidden_features = hidden_features
        self.window_sizes, self.convolution = _checked_windows(where, window_sizes), convolution
        self.groups = _checked_groups(where, hidden_features, convolution, groups)
        self.windows = nn.ModuleList(
            nn.Conv1d(hidden_features, hidden_features, size, padding=(size - 1) // 2, groups=self.groups)
            for size in self.window_sizes
        )
        mixing = convolution == "depthwise"
        self.mixers = nn.ModuleList(nn.Linear(hidden_features, hidden_features) for _ in self.windows if mixing)
        self.scale = nn.Parameter(torch.zeros(len(self.window_sizes), hidden_features))
        self.bias = nn.Parameter(torch.zeros(hidden_features))
        self.dropout = nn.Dropout(dropout)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"{self.hidden_features}, {self.window_sizes}, convolution={self.convolution!r}, groups={self.groups}"

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
        return calibrate("SpanAwareASRM", x, mask, self.hidden_features, self._gate, return_gate, self._fast())

    def _gate(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the gate ``(B, T, H)`` of tokens ``x (B, T, H)`` that are zero where masked."""
        active = [self.dropout(F.gelu(widen(one))) for one in self._found(x)]
        return around_one(weighted_windows(active, widen(self.scale), widen(self.bias)).mT)

    def _fast(self) -> Callable[[Tensor], Tensor] | None:
        """Return a function from such tokens to calibrated ones, None with dropout, which the gate alone has."""
        return None if self.training and self.dropout.p > 0 else self._calibrated

    def _calibrated(self, x: Tensor) -> Tensor:
        return gated_tokens(x, self._found(x), self.scale, self.bias)

    def _found(self, x: Tensor) -> list[Tensor]:
        """Return what every window found around each token ``(B, H, T)``."""
        channels, found = x.mT.contiguous(), []
        for i, window in enumerate(self.windows):
            padded = channels if self.window_sizes[i] % 2 else F.pad(channels, (0, 1))
            # A convolution refuses a length of 0, which compiled code does not ask for.
            one = window(padded) if torch.compiler.is_compiling() or x.shape[1] else channels
            found.append(self.mixers[i](one.mT).mT if len(self.mixers) else one)
        return found


def _checked_windows(where: str, window_sizes: Sequence[int]) -> tuple[int, ...]:
    if isinstance(window_sizes, (str, int)) or not len(window_sizes):
        raise ValueError(f"{where}: expected window_sizes to be one size or more, got {window_sizes!r}")
    for size in window_sizes:
        check_size(where, "window_sizes", size)
    return tuple(window_sizes)


def _checked_groups(where: str, hidden_features: int, convolution: Convolution, groups: int | None) -> int:
    if convolution != "grouped":
        if groups is not None:
            raise ValueError(f"{where}: expected no groups with convolution={convolution!r}, got {groups}")
        return hidden_features if convolution == "depthwise" else 1
    if groups is None:
        return math.gcd(hidden_features, 4)
    check_size(where, "groups", groups)
    if hidden_features % groups:
        raise ValueError(f"{where}: expected groups to divide hidden_features {hidden_features}, got {groups}")
    return groups
