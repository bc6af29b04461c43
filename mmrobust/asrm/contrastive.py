"""The span-aware gate with an auxiliary loss that draws texts to the centre of their class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import distributed
from .._checks import as_mask, check_floating, check_integers, check_range, check_shape, check_size
from .._precision import no_autocast, widen
from ..masking import masked_mean
from ._gate import CalibratedTokens, calibrate
from .span import Convolution, SpanAwareASRM


class ContrastiveASRM(nn.Module):
    r"""Calibrate as :class:`SpanAwareASRM` does, and draw texts to the centre of their class by a loss of its own.

    :meth:`class_loss` compares the mean :math:`v_i` of calibrated tokens with class centres :math:`m_c`, moving
    averages of the means of a class:

    .. math:: L = -\frac{1}{B} \sum_i \log \frac{e^{\cos(v_i, m_{y_i}) / \tau}}{\sum_c e^{\cos(v_i, m_c) / \tau}}

    The forward pass never sees labels: features that are moved by the label leak it in training and miss it later.

    Args:
        hidden_features: Width H.
        num_classes: Number of classes C.
        window_sizes: As in :class:`SpanAwareASRM`, like all other options.
        momentum: How much of a centre stays in one step, in [0, 1).
        temperature: Divides the cosines; > 0.
        convolution: As in :class:`SpanAwareASRM`.
        groups: As in :class:`SpanAwareASRM`.
        dropout: As in :class:`SpanAwareASRM`.

    Raises:
        ValueError: If a size or an option does not fit.

    Source: prototypes by moving average as in Li et al., arXiv:2005.04966, with labels in the place of clusters.

    Example:
        >>> calibrate = ContrastiveASRM(8, num_classes=2)
        >>> x, labels = torch.randn(4, 5, 8), torch.tensor([0, 1, 0, 1])
        >>> loss = calibrate.class_loss(calibrate(x), labels)
    """

    centres: Tensor
    seen: Tensor

    def __init__(
        self,
        hidden_features: int,
        num_classes: int,
        window_sizes: Sequence[int] = (1, 3, 5),
        *,
        momentum: float = 0.9,
        temperature: float = 0.1,
        convolution: Convolution = "grouped",
        groups: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_size("ContrastiveASRM", "num_classes", num_classes)
        check_range("ContrastiveASRM", "momentum", momentum, 0.0, 1.0, high_open=True)
        check_range("ContrastiveASRM", "temperature", temperature, 0.0, low_open=True)
        self.calibration = SpanAwareASRM(
            hidden_features, window_sizes, convolution=convolution, groups=groups, dropout=dropout
        )
        self.hidden_features = hidden_features
        self.num_classes, self.momentum, self.temperature = num_classes, momentum, temperature
        self.register_buffer("centres", torch.zeros(num_classes, hidden_features))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

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
        inner = self.calibration
        return calibrate("ContrastiveASRM", x, mask, self.hidden_features, inner._gate, return_gate, inner._fast())

    def class_loss(self, tokens: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss of calibrated ``tokens (B, T, H)`` with ``labels (B,)``; in training, move the centres first.

        Args:
            tokens: What the module returned.
            labels: Integer tensor ``(B,)`` in [0, C); -100 = no label. Not checked against C.
            mask: Bool or integer 0/1 ``(B, T)``, True = real. Texts without a real token do not count.

        Returns:
            The mean over texts whose class has a centre, a scalar in float32 (float64 for float64); 0 and attached to
            the graph without any. With several processes the centres are those of all of them.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape is wrong.
        """
        where = "ContrastiveASRM.class_loss"
        check_floating(where, "tokens", tokens)
        check_shape(where, "tokens", tokens, B=None, T=None, H=self.hidden_features)
        check_integers(where, "labels", labels)
        check_shape(where, "labels", labels, B=tokens.shape[0])
        keep = as_mask(where, "mask", mask, B=tokens.shape[0], T=tokens.shape[1])
        with no_autocast(tokens):
            pooled = widen(masked_mean(tokens, keep))
            counted = labels != -100 if keep is None else (labels != -100) & keep.any(1)
            target = torch.where(counted, labels, 0).long()
            if self.training:
                self._move(pooled.detach(), target, counted)
            similar = F.normalize(pooled, dim=1) @ F.normalize(self.centres.to(pooled.dtype), dim=1).mT
            scores = (similar / self.temperature).masked_fill(~self.seen, -1e30)
            counted = counted & self.seen[target]
            losses = torch.where(counted, F.cross_entropy(scores, target, reduction="none"), 0.0)
        return losses.sum() / counted.sum().clamp(min=1)

    @torch.no_grad()
    def _move(self, pooled: Tensor, target: Tensor, counted: Tensor) -> None:
        here = torch.where(counted.unsqueeze(1), F.one_hot(target, self.num_classes), 0).to(pooled.dtype)
        here = distributed.global_sum(torch.cat([here.mT @ pooled, here.sum(0).unsqueeze(1)], dim=1))
        sums, count = here[:, :-1], here[:, -1:]
        share = torch.where(self.seen.unsqueeze(1), 1 - self.momentum, 1.0).to(pooled.dtype)
        moved = torch.lerp(self.centres.to(pooled.dtype), sums / count.clamp(min=1), share)
        self.centres.copy_(torch.where(count > 0, moved, self.centres.to(pooled.dtype)))
        self.seen.logical_or_(count.squeeze(1) > 0)
