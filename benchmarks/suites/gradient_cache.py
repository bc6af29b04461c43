"""Gradient caching: what a step costs when only a chunk's activations are kept, in time and in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.harness.case import Case, Contender, Problem, Setup, Size
from mmrobust import cached_encode, info_nce_loss

_LAYERS = 4


class _Encoder(nn.Module):
    """A plain transformer whose mean over time is projected."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(features, 4, 2 * features, dropout=0.0, batch_first=True) for _ in range(_LAYERS)
        )
        self.head = nn.Linear(features, 64)

    def forward(self, x: Tensor, layer: Callable[..., Any] = lambda module, x: module(x)) -> Tensor:
        for module in self.layers:
            x = layer(module, x)
        out: Tensor = self.head(x.mean(1))
        return out


def build_cached_encode(setup: Setup) -> Problem:
    """Compare with one pass, and with checkpoints around every layer, which keep what goes from layer to layer."""
    batch, steps, width, chunk = setup["B T H chunk"]
    encoder = setup.module(lambda: _Encoder(width))

    def ours(x: Tensor, y: Tensor) -> Tensor:
        query, key = cached_encode(lambda x, y: (encoder(x), encoder(y)), x, y, chunk_size=chunk)
        return info_nce_loss(query, key)

    def eager(x: Tensor, y: Tensor) -> Tensor:
        return info_nce_loss(encoder(x), encoder(y))

    def by_layer(module: nn.Module, x: Tensor) -> Any:
        return checkpoint(module, x, use_reentrant=False)

    contenders = {
        "ours": Contender(ours, "ours"),
        "eager": Contender(eager, "eager", note="one pass, all activations kept"),
        "checkpoint": Contender(
            lambda x, y: info_nce_loss(encoder(x, by_layer), encoder(y, by_layer)),
            note="torch.utils.checkpoint around every layer",
        ),
    }
    inputs = (setup.normal(batch, steps, width, grad=False), setup.normal(batch, steps, width, grad=False))
    weights = sum(p.numel() for module in encoder.layers for p in module.parameters() if p.dim() == 2)
    return Problem(contenders, inputs, (encoder,), flops=4.0 * batch * steps * weights)


CASES = (
    Case(
        "cached_encode",
        build_cached_encode,
        {"B": 7, "T": 3, "H": 8, "chunk": 3},
        (
            Size({"B": 32, "T": 16, "H": 128, "chunk": 8}),
            Size({"B": 512, "T": 16, "H": 128, "chunk": 32}),
            Size({"B": 8192, "T": 64, "H": 512, "chunk": 512}, cpu="never"),
        ),
    ),
)
