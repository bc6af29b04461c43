"""A moving average of a model's weights: what is validated, selected and tested in its place."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class AveragedModel(nn.Module):
    """A copy of a model whose weights follow those of the original.

    Each update moves them by the share 1 - decay towards the new values, and by more in the first updates: by
    1 - (1 + n) / (10 + n) in update n, so that the random start is soon forgotten. In torch.optim.swa_utils every
    update also copies all buffers, which here hold whole reference data; they are copied once, by `start`.

    Args:
        model: the original.
        decay: share of the average that stays, in (0, 1).
    """

    updates: Tensor

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.module, self.decay = copy.deepcopy(model).requires_grad_(False), decay
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def start(self, model: nn.Module) -> None:
        """Take over buffers and weights before the first update; afterwards do nothing."""
        if not self.updates:
            self.module.load_state_dict(model.state_dict())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the weights of `model`."""
        self.updates += 1
        count = int(self.updates)
        share = 1.0 - min(self.decay, (1.0 + count) / (10.0 + count))
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), share)
