"""The small network that reads a log-variance from statistics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._precision import no_autocast, widen
from .reference import NUM_STATISTICS

_BOUND = 8.0


def build_head(hidden_features: int) -> nn.Sequential:
    """Make a network that at first says the same of everything."""
    last = nn.Linear(hidden_features, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(NUM_STATISTICS, hidden_features), nn.GELU(), last)


def read_logvar(head: nn.Module, statistics: Tensor) -> Tensor:
    """Return log-variances ``(B,)`` in (0, 8.1) for statistics ``(B, 4)``."""
    odds = head(statistics).squeeze(1)
    with no_autocast(odds):
        return F.softplus(_BOUND * torch.tanh(widen(odds) / _BOUND))
