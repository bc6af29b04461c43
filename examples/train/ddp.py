"""Train with the supervised contrastive loss over all ranks: balanced batches, gathered rows, a memory bank.

    torchrun --nproc_per_node 2 examples/train/ddp.py
    torchrun --nproc_per_node 2 examples/train/ddp.py --gather ring  # no rank ever holds the rows of all
    torchrun --nproc_per_node 2 examples/train/ddp.py --check        # gradients equal those of one process
    python examples/train/ddp.py                                     # one process: the same code

To train on your own data, replace `samples` and the encoder.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from mmrobust import ClassBalancedBatchSampler, MemoryBank, SupConLoss

CLASSES, FEATURES, WIDTH = 8, 64, 32
TRAIN, TEST = [300, 200, 100, 80, 60, 40, 20, 10], [50] * CLASSES


def samples(seed: int, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Return points ``(N, 64)`` of eight classes, whose centres differ in a quarter of the features, and labels."""
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(seed))
    centres[:, FEATURES // 4 :] = 0.0
    labels = torch.arange(CLASSES).repeat_interleave(torch.tensor(sizes))
    noise = torch.randn(len(labels), FEATURES, generator=torch.Generator().manual_seed(seed + sum(sizes)))
    return centres[labels] + noise, labels


@torch.no_grad()
def accuracy(model: nn.Module, known: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> float:
    """Return how many new points are most similar to a known one of their class."""
    (x, labels), (y, truth) = known, new
    nearest = (F.normalize(model(y)) @ F.normalize(model(x)).T).argmax(1)
    return float((labels[nearest] == truth).float().mean())


def encoder(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.GELU(), nn.Linear(64, WIDTH))


def device_of(rank: int) -> torch.device:
    return torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")


def train(args: argparse.Namespace, rank: int, device: torch.device) -> None:
    x, labels = samples(args.seed, TRAIN)
    sampler = ClassBalancedBatchSampler(labels, classes_per_batch=4, samples_per_class=4, seed=args.seed)
    loader = DataLoader(TensorDataset(x, labels), batch_sampler=sampler)
    alone = encoder(args.seed).to(device)
    model = wrap(alone)
    loss = SupConLoss(0.1, gather=args.gather)
    bank = MemoryBank(256, WIDTH, kind="queue", warmup_updates=4).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    known = x.to(device), labels.to(device)
    y, truth = samples(args.seed, TEST)
    new = y.to(device), truth.to(device)
    if rank == 0:
        print(f"before: {accuracy(alone, known, new):.1%} of new points are next to their class", flush=True)
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        total = torch.zeros((), device=device)
        for rows, classes in loader:
            features, classes = model(rows.to(device)), classes.to(device)
            keys = bank.keys()
            value = loss(features, classes, keys=keys.features, key_labels=keys.labels, key_present=keys.present)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            bank.update(features.detach(), classes, gather=True)  # after backward: the bank hands out its own memory
            total += value.detach()
        if dist.is_initialized():
            dist.all_reduce(total, dist.ReduceOp.AVG if device.type == "cuda" else dist.ReduceOp.SUM)
            total /= 1 if device.type == "cuda" else dist.get_world_size()
        if rank == 0:
            found = f"{accuracy(alone, known, new):.1%} of new points are next to their class"
            print(f"epoch {epoch + 1}: loss {total.item() / len(sampler):.4f}, {found}", flush=True)


def wrap(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model) if dist.is_initialized() else model


def check(args: argparse.Namespace, rank: int, device: torch.device) -> float:
    """Return how far the gradients of all ranks together are from those of one process, relative to the largest."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    x, labels = (rows[:48].to(device) for rows in samples(args.seed, TRAIN))
    labels = torch.arange(48, device=device) % 5
    alone, spread = encoder(args.seed).to(device).double(), wrap(encoder(args.seed).to(device).double())
    SupConLoss(0.1)(alone(x.double()), labels).backward()
    mine = slice(rank, None, world)
    SupConLoss(0.1, gather=args.gather)(spread(x[mine].double()), labels[mine]).backward()
    pairs = zip(alone.parameters(), spread.parameters(), strict=True)
    return max(float((a.grad - b.grad).abs().max() / a.grad.abs().max()) for a, b in pairs)


class Arguments(argparse.ArgumentParser):
    """A parser that answers what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message.removeprefix('argument ')}\n")


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = Arguments(
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--gather", choices=["all", "ring"], default="all", help="how ranks exchange rows")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the data")
    parser.add_argument("--seed", type=int, default=0, help="seed of data, weights and batches")
    parser.add_argument("--check", action="store_true", help="compare gradients with one process instead of training")
    args = parser.parse_args(words)
    for name, least in {"epochs": 1, "seed": 0}.items():
        if getattr(args, name) < least:
            parser.error(f"--{name}: expected at least {least}, got {getattr(args, name)}")
    return args


def main(words: Sequence[str] | None = None) -> None:
    args = parse(words)
    args.gather = True if args.gather == "all" else "ring"
    rank = int(os.environ.get("LOCAL_RANK", 0))
    device = device_of(rank)
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        if not args.check:
            train(args, rank, device)
            return
        error = check(args, rank, device)
        print(f"rank {rank}: gradients differ from one process by {error:.1e}", flush=True)
        if error > 1e-10:
            sys.exit("error: expected the gradients of one process")
    finally:
        if dist.is_initialized():
            # A DDP model keeps the group, and so its threads, alive in a reference cycle: threads that are still there
            # when Python ends can abort the process.
            gc.collect()
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
