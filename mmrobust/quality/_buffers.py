"""A reference as buffers of a module, with what is usual of its statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._checks import present_rows
from .reference import (
    FIT_ROWS,
    NUM_STATISTICS,
    Fitting,
    Reference,
    example_rows,
    fit_reference,
    measure,
    novelty_statistics,
)

_LIMIT = 12.0  # usual spreads
_NARROW = 0.05  # a statistic that hardly varies in training is not made to shout
CHUNK = 256  # samples measured at a time


class ReferenceBuffers(nn.Module):
    """A :class:`Reference` as buffers, and the usual values of its statistics."""

    mean: Tensor
    scale: Tensor
    components: Tensor
    variances: Tensor
    rest: Tensor
    rows: Tensor
    usual: Tensor
    spread: Tensor

    def __init__(self, features: int, fitting: Fitting) -> None:
        super().__init__()
        size, rows = min(fitting["max_components"], max(1, features - 1)), fitting["num_rows"]
        unfitted = Reference(
            torch.zeros(features),
            torch.ones(features),
            torch.zeros(size, features),
            torch.ones(size),
            torch.tensor(float(features)),
            torch.zeros(rows, features),
        )
        for name, value in unfitted._asdict().items():
            self.register_buffer(name, value)
        self.register_buffer("usual", torch.zeros(NUM_STATISTICS))
        self.register_buffer("spread", torch.ones(NUM_STATISTICS))

    def fit(self, x: Tensor, mask: Tensor, fitting: Fitting) -> None:
        for name, value in fit_reference(x[mask], **fitting)._asdict().items():
            getattr(self, name).copy_(value)
        sample = mask.nonzero()[:, 0]
        source = sample[example_rows(len(sample), fitting["num_rows"], x.device)]
        there = present_rows(mask).nonzero().squeeze(1)
        parts = []
        for rows in torch.split(there[:: -(-len(there) // FIT_ROWS)], CHUNK):
            # A sample's own examples are too near to say what is usual; a sample without others has to use them.
            apart = source != rows.unsqueeze(1)
            apart = apart | ~apart.any(1, keepdim=True)
            parts.append(measure(x[rows], self._reference(), mask[rows], apart))
        statistics = torch.cat(parts)
        self.usual.copy_(statistics.mean(0))
        self.spread.copy_(statistics.std(0, correction=0).clamp(min=_NARROW))

    def _reference(self) -> Reference:
        return Reference(*(getattr(self, name) for name in Reference._fields))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        statistics = novelty_statistics(x, self._reference(), mask)
        limited = ((statistics - self.usual) / self.spread).clamp(-_LIMIT, _LIMIT)
        return limited.to(x.dtype)
