"""Random draws that take an optional generator.

``generator=None`` is left out of the call altogether: passing it on breaks tracing with dynamic shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
