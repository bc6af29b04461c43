"""Gradient caching where training happens: in several processes, in Lightning, compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from mmrobust import cached_encode
from mmrobust.distributed import gather_rows, global_mean
from tests.ranks import Ranks, part
from tests.test_gradient_cache import B, D, assert_close, contrast, gradients, network, normal

ROWS = (12, 8)  # of each rank: 4 and 3 chunks
CHUNK = 3
STEPS = 3  # buckets are built anew after the first
WRAPPED: dict[str, dict[str, Any]] = {
    "step": {},
    "step, static": {"static_graph": True},
    "step, unused": {"find_unused_parameters": True},
    "step, small buckets": {"gradient_as_bucket_view": True, "bucket_cap_mb": 1e-4},
    "encoder": {},
    "encoder, small buckets": {"bucket_cap_mb": 1e-4},
}


class Encoder(nn.Module):
    """Two modalities, and a head that the loss does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.ignored = network(nn.Dropout(0.0)), network(), nn.Linear(D, 2).double()

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.first(x), self.second(y), self.ignored(x)


class Step(nn.Module):
    """Cross-entropy of the own queries against the keys of all processes."""

    def __init__(self, encoder: nn.Module, chunk_size: int | None) -> None:
        super().__init__()
        self.encoder, self.chunk_size = encoder, chunk_size
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.chunk_size is None:
            query, key, _ = self.encoder(x, y)
        else:
            query, key, _ = cached_encode(self.encoder, x, y, chunk_size=self.chunk_size)
        keys = gather_rows(key)
        labels = torch.arange(len(query)) + keys.offset
        total = F.cross_entropy(self.scale * query @ keys.rows.T, labels, reduction="sum")
        return global_mean(total, len(query))


def rows() -> tuple[Tensor, Tensor]:
    return normal(sum(ROWS), D), normal(sum(ROWS), D, seed=1)


def reducible(name: str, reduced: list[int]) -> tuple[nn.Module, nn.Module]:
    """Return a step, and the encoder whose gradients count, with one of the two in DistributedDataParallel."""

    def count(_, bucket):  # type: ignore[no-untyped-def]  # annotations that are strings are rejected
        reduced.append(bucket.index())
        return allreduce_hook(None, bucket)

    encoder, whole = Encoder(), name.startswith("step")
    wrapped = DistributedDataParallel(Step(encoder, CHUNK) if whole else encoder, **WRAPPED[name])
    wrapped.register_comm_hook(None, count)
    return wrapped if whole else Step(wrapped, CHUNK), encoder


def job() -> dict[str, dict[str, Tensor | None]]:
    """Return the gradients on this rank, whatever is wrapped."""
    found = {}
    for name in WRAPPED:
        reduced: list[int] = []
        step, encoder = reducible(name, reduced)
        for _ in range(STEPS):
            step.zero_grad()
            reduced.clear()
            step(*(part(x, ROWS) for x in rows())).backward()
        found[name] = {key: parameter.grad for key, parameter in encoder.named_parameters()}
        assert len(reduced) == len(set(reduced)) > 0, f"{name}: buckets {reduced} were reduced"
    return found


def test_every_process_has_the_gradient_of_one(ranks: Ranks) -> None:
    """Each bucket is reduced once; parameters that the loss does not reach get no gradient, or zero."""
    encoder = Encoder()
    Step(encoder, None)(*rows()).backward()
    for found in ranks(len(ROWS), job):
        assert found.keys() == WRAPPED.keys()
        for key, parameter in encoder.named_parameters():
            zero = torch.zeros_like(parameter)
            for grads in found.values():
                got, want = (zero if x is None else x for x in (grads[key], parameter.grad))
                torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore")  # of torch itself, while it traces
@pytest.mark.parametrize("whole", [False, True], ids=["encoder", "step"])
def test_compiles(whole: bool) -> None:
    """An encoder that is compiled runs compiled, and a compiled step leaves the chunks to eager."""
    torch._dynamo.reset()
    module, x = network(), normal(B, D)
    want = gradients(module, contrast(module(x)))
    encode = module if whole else torch.compile(module, backend="aot_eager")

    def step(x: Tensor) -> Tensor:
        return contrast(cached_encode(encode, x, chunk_size=4))

    run = torch.compile(step, backend="aot_eager") if whole else step
    assert_close(list(torch.autograd.grad(run(x), list(module.parameters()))), want)
    torch._dynamo.reset()


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
@pytest.mark.filterwarnings("ignore")  # of Lightning about small data sets
def test_lightning_steps_as_without_it(precision: Any, tmp_path: Path) -> None:
    """Automatic optimisation, accumulation over two batches included, moves the parameters to the same place."""
    lightning = pytest.importorskip("lightning.pytorch")

    class Trained(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self, chunk_size: int) -> None:
            super().__init__()
            self.chunk_size, self.encoder = chunk_size, network()

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return contrast(cached_encode(self.encoder, batch, chunk_size=self.chunk_size))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    found = []
    for chunk_size in (B, 3):
        model = Trained(chunk_size).to(torch.float64 if precision == "64-true" else torch.float32)
        loader = torch.utils.data.DataLoader(normal(4 * B, D, dtype=model.encoder[0].weight.dtype), batch_size=B)
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            accumulate_grad_batches=2,
            precision=precision,
            default_root_dir=tmp_path,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(model, loader)
        found.append([parameter.detach() for parameter in model.encoder.parameters()])
    assert_close(*found, tolerance=1e-12 if precision == "64-true" else 1e-2)
    assert not torch.equal(found[0][0], network()[0].weight)
