"""Epoch schedules shared by modality dropout and by the warm-up of the KL weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._checks import check_size


def delayed_ramp(epoch: Tensor, delay: int, ramp: int) -> Tensor:
    """Return 0 before epoch ``delay``, then ``(epoch - delay) / ramp`` up to 1; ``ramp = 0`` jumps to 1."""
    since = (epoch - delay).to(torch.float32)
    if ramp == 0:
        return (since >= 0).to(torch.float32)
    return (since / ramp).clamp(0.0, 1.0)


class EpochSchedule(nn.Module):
    """Hold the epoch in a buffer, so that a resumed run continues its schedule exactly."""

    epoch: Tensor

    def __init__(self, where: str, warmup_epochs: int = 0, ramp_epochs: int = 0) -> None:
        super().__init__()
        check_size(where, "warmup_epochs", warmup_epochs, 0)
        check_size(where, "ramp_epochs", ramp_epochs, 0)
        self.where = where
        self.warmup_epochs = warmup_epochs
        self.ramp_epochs = ramp_epochs
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch (0-based)."""
        check_size(self.where, "epoch", epoch, 0)
        self.epoch.fill_(epoch)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"warmup_epochs={self.warmup_epochs}, ramp_epochs={self.ramp_epochs}"

    def factor(self) -> Tensor | float:
        """Return the schedule's value in [0, 1] at the current epoch: a float32 scalar tensor, or 1.0 without any."""
        if self.warmup_epochs == 0 and self.ramp_epochs == 0:
            return 1.0
        return delayed_ramp(self.epoch, self.warmup_epochs, self.ramp_epochs)
