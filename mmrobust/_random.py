"""Random draws that take an optional generator.

``generator=None`` is left out of the call altogether: passing it on breaks tracing with dynamic shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .masking import zero_missing


def uniform(size: Sequence[int], generator: torch.Generator | None, device: torch.device | str | None = None) -> Tensor:
    """Draw float32 numbers from [0, 1)."""
    if generator is None:
        return torch.rand(size, device=device)
    return torch.rand(size, generator=generator, device=device)


def normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal numbers of the shape, dtype and device of ``x``."""
    if generator is None:
        return torch.randn_like(x)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def masked_dropout(x: Tensor, present: Tensor | None, dropout: nn.Dropout) -> Tensor:
    """Apply ``dropout`` to ``x (B, ...)``, rows absent by ``present (B,)`` being unread and zero.

    On a CPU the sampler behind ``nn.Dropout`` draws number by number, which for wide inputs costs as much as a layer;
    there 16 random bits decide about each entry, so that the probability is a multiple of 2**-16.
    """
    slow = x.device.type == "cpu" and not torch.compiler.is_compiling()
    if not slow or not dropout.training or dropout.p == 0.0:
        dropped: Tensor = dropout(zero_missing(x, present))
        return dropped
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    lost = min(round(dropout.p * 2**16), 2**16 - 1)
    keep = bits.view(torch.int16)[: x.numel()].view(x.shape) >= lost - 2**15
    if present is not None:
        keep = keep & present.reshape(present.shape + (1,) * (x.dim() - 1))
    return torch.where(keep, x * (1.0 / (1.0 - dropout.p)), 0.0)
