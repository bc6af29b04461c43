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

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from mmrobust import ClassBalancedBatchSampler, MemoryBank, SupConLoss

CLASSES, FEATURES, WIDTH = 8, 16, 32


def samples(seed: int) -> tuple[Tensor, Tensor]:
    """Return points ``(N, 16)`` around the centres of eight classes of very different size, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(torch.tensor([300, 200, 100, 80, 60, 40, 20, 10]))
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    return centres[labels] + torch.randn(len(labels), FEATURES, generator=generator), labels


def encoder(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.GELU(), nn.Linear(64, WIDTH))


def device_of(rank: int) -> torch.device:
    return torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")


def train(args: argparse.Namespace, rank: int, device: torch.device) -> None:
    x, labels = samples(args.seed)
    sampler = ClassBalancedBatchSampler(labels, classes_per_batch=4, samples_per_class=4, seed=args.seed)
    loader = DataLoader(TensorDataset(x, labels), batch_sampler=sampler)
    model = wrap(encoder(args.seed).to(device))
    loss = SupConLoss(0.1, gather=args.gather)
    bank = MemoryBank(256, WIDTH, kind="queue", warmup_updates=4).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
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
            print(f"epoch {epoch + 1}: loss {total.item() / len(sampler):.4f}", flush=True)


def wrap(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model) if dist.is_initialized() else model


def check(args: argparse.Namespace, rank: int, device: torch.device) -> float:
    """Return how far the gradients of all ranks together are from those of one process, relative to the largest."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    x, labels = (rows[:48].to(device) for rows in samples(args.seed))
    labels = torch.arange(48, device=device) % 5
    alone, spread = encoder(args.seed).to(device).double(), wrap(encoder(args.seed).to(device).double())
    SupConLoss(0.1)(alone(x.double()), labels).backward()
    mine = slice(rank, None, world)
    SupConLoss(0.1, gather=args.gather)(spread(x[mine].double()), labels[mine]).backward()
    pairs = zip(alone.parameters(), spread.parameters(), strict=True)
    return max(float((a.grad - b.grad).abs().max() / a.grad.abs().max()) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--gather", choices=["all", "ring"], default="all", help="how ranks exchange rows")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="compare gradients with one process instead of training")
    args = parser.parse_args()
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
