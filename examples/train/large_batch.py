"""Train two encoders on 32768 pairs at a time, on a CPU, in less than 1 GiB of additional memory.

    python examples/train/large_batch.py
    python examples/train/large_batch.py --loss nt_xent --batch 16384
    python examples/train/large_batch.py --batch 4096 --dense  # the formula with a matrix of all pairs, to compare

A contrastive loss compares every row of a batch with every other. That takes the activations of the whole batch at
once, and usually a matrix of all pairs. Here `cached_encode` holds the activations of one chunk, and the loss the
scores of one tile: memory grows with the batch, not with its square.

To train on your own data, replace `Pairs` and `Encoders`.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrobust import InfoNCELoss, NTXentLoss, cached_encode

LOSSES = {"info_nce": InfoNCELoss, "nt_xent": NTXentLoss}
GIB = 1 << 30
CAUSES = 24  # hidden causes that both views of a pair share
HELD_OUT = 2000  # pairs that accuracy is measured on
COPIES = 6  # matrices of all pairs that the dense formula holds at its peak


class Pairs:
    """Draw pairs without end: two views of the same hidden causes, each with its own noise."""

    def __init__(self, features: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.views = [self._normal(CAUSES, features) / CAUSES**0.5 for _ in range(2)]

    def draw(self, rows: int) -> list[Tensor]:
        causes = self._normal(rows, CAUSES)
        return [torch.tanh(causes @ view) + 0.5 * self._normal(rows, view.shape[1]) for view in self.views]

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)


class Encoders(nn.Module):
    """Encode each view by a network of its own."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(nn.Linear(features, 256), nn.LayerNorm(256), nn.GELU(), nn.Linear(256, dim)) for _ in range(2)
        )

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(first), self.second(second)


def dense_loss(name: str, first: Tensor, second: Tensor, temperature: float | Tensor) -> Tensor:
    """Compute the same loss as it is usually written, with a matrix of all pairs."""
    first, second, row = F.normalize(first), F.normalize(second), torch.arange(len(first))
    if name == "nt_xent":
        both = torch.cat([first, second])
        scores = (both @ both.T / temperature).fill_diagonal_(-torch.inf)
        return F.cross_entropy(scores, torch.cat([row + len(row), row]))
    scores = first @ second.T / temperature
    return (F.cross_entropy(scores, row) + F.cross_entropy(scores.T, row)) / 2


@torch.no_grad()
def retrieval(encoders: Encoders, first: Tensor, second: Tensor) -> float:
    """Return how often the nearest second view of a first one is its own."""
    first, second = (F.normalize(z) for z in encoders(first, second))
    return float(((first @ second.T).argmax(1) == torch.arange(len(first))).float().mean())


def memory(of: str) -> int:
    """Return the memory in bytes: "VmRSS" of this process, "VmHWM" at its highest, "MemAvailable" on the machine."""
    file = Path("/proc/meminfo" if of == "MemAvailable" else "/proc/self/status")
    found = re.search(rf"^{of}:\s+(\d+) kB$", file.read_text(), re.MULTILINE) if file.exists() else None
    if found is None:
        sys.exit(f"error: expected {of} in {file}, as Linux has it, to measure memory")
    return int(found[1]) * 1024


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    pairs = Pairs(args.features, args.seed)
    held_out = pairs.draw(HELD_OUT)
    encoders = Encoders(args.features, args.dim)
    criterion = LOSSES[args.loss](0.1, learnable_temperature=True)
    optimizer = torch.optim.AdamW([*encoders.parameters(), *criterion.parameters()], lr=args.lr)

    accuracy = retrieval(encoders, *held_out)
    print(f"before: finds {accuracy:.1%} of {HELD_OUT} held-out pairs (chance: {1 / HELD_OUT:.2%})", flush=True)
    start, level = time.perf_counter(), memory("VmRSS")
    for step in range(1, args.steps + 1):
        first, second = cached_encode(encoders, *pairs.draw(args.batch), chunk_size=args.chunk)
        dense = dense_loss(args.loss, first, second, criterion.temperature()) if args.dense else None
        loss = criterion(first, second) if dense is None else dense
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step:2}  loss {loss.item():6.3f}  {time.perf_counter() - start:6.1f} s", flush=True)
    extra = memory("VmHWM") - level
    accuracy = retrieval(encoders, *held_out)
    print(f"after:  finds {accuracy:.1%} of {HELD_OUT} held-out pairs")
    print(f"memory: {extra / GIB:.2f} GiB above the level before the first step (limit: {args.memory_limit:g} GiB)")
    if extra > args.memory_limit * GIB:
        sys.exit(f"error: expected at most {args.memory_limit:g} GiB of additional memory, took {extra / GIB:.2f} GiB")


class Arguments(argparse.ArgumentParser):
    """A parser that answers what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message.removeprefix('argument ')}\n")


def main(words: Sequence[str] | None = None) -> None:
    parser = Arguments(
        description="Contrastive training with a batch whose pairs do not fit into memory.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--batch", type=int, default=32768, help="pairs in a batch")
    add("--steps", type=int, default=15, help="batches to train on")
    add("--chunk", type=int, default=2048, help="pairs that are encoded at a time")
    add("--features", type=int, default=64, help="features of each view")
    add("--dim", type=int, default=32, help="features of an embedding")
    add("--loss", choices=LOSSES, default="info_nce", help="symmetric InfoNCE, or NT-Xent")
    add("--lr", type=float, default=3e-3, help="learning rate")
    add("--seed", type=int, default=0, help="seed of data and weights")
    add("--memory-limit", type=float, default=1.0, metavar="GIB", help="fail if training takes more")
    add("--dense", action="store_true", help="hold a matrix of all pairs, as the usual formula does")
    args = parser.parse_args(words)
    for name, least in {
        "batch": 2,
        "steps": 1,
        "chunk": 1,
        "features": 1,
        "dim": 1,
        "lr": 0,
        "memory_limit": 0,
    }.items():
        if not getattr(args, name) >= least:
            parser.error(f"--{name.replace('_', '-')}: expected at least {least}, got {getattr(args, name)}")

    rows = args.batch * (2 if args.loss == "nt_xent" else 1)
    need, free = 4 * rows**2 * COPIES, memory("MemAvailable")
    print(f"all pairs of {rows} rows: {rows}^2 x 4 bytes x {COPIES} copies = {need / GIB:.2f} GiB, if they were held")
    if args.dense and need > free:
        parser.error(f"--dense: expected at most the free {free / GIB:.1f} GiB, needs {need / GIB:.1f} GiB")
    train(args)


if __name__ == "__main__":
    main()
