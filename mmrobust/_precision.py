"""Where float32 is kept although the input, or autocast, asks for less."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or unchanged when it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def no_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Return a context in which autocast is off for the device of ``x``."""
    if not torch.is_autocast_enabled(x.device.type):
        return nullcontext()  # a tenth of the time of an autocast context, which small losses would feel
    return torch.autocast(device_type=x.device.type, enabled=False)


def squarable(x: Tensor) -> Tensor:
    """Return ``x`` with rows that reach above 1e15 scaled down, for a layer norm, which ignores scale.

    It adds up squares: a hundred million of 1e15 fit into float32.
    """
    return x / (x.detach().abs().amax(-1, keepdim=True) * 1e-15).clamp(min=1.0)
