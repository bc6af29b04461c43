"""Where float32 is kept although the input, or autocast, asks for less."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or unchanged when it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def no_autocast(x: Tensor) -> torch.autocast:
    """Return a context in which autocast is off for the device of ``x``."""
    return torch.autocast(device_type=x.device.type, enabled=False)
