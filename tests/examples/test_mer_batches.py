"""Batches of the emotion pipeline: order, resuming, several processes, specialists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist

from examples.mer.data import BatchIndices, RowBatches
from tests.examples.mer_sets import Rng, layout_data, npz_data, toy_set, write_layout, write_npz


def test_batches_cover_the_rows(tmp_path: Path, rng: Rng) -> None:
    data = npz_data(write_npz(tmp_path / "set.npz", rng), batch_size=7, score="subject")
    train = data.sets["train"]
    batches = list(data.train_dataloader())
    assert [len(batch["label"]) for batch in batches] == [7] * 5 + [1]
    assert set(batches[0]) == {"inputs", "masks", "present", "label", "score"}
    joined = torch.cat([batch["inputs"]["a"] for batch in batches])
    order = [int((train.features["a"] == row).all(1).nonzero()) for row in joined]
    assert sorted(order) == list(range(36))
    assert order != sorted(order)
    assert train.score is not None
    torch.testing.assert_close(torch.cat([batch["score"] for batch in batches]), train.score[order])
    assert torch.equal(torch.cat([batch["label"] for batch in data.val_dataloader()]), data.sets["val"].label)
    assert len(npz_data(tmp_path / "set.npz", batch_size=7, drop_last=True).train_dataloader()) == 5


def test_order_follows_seed_and_epoch_alone() -> None:
    rows = RowBatches(toy_set(20))

    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = BatchIndices(rows, 6, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        torch.rand(3)  # the global generator has no say
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert len({str(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_loader_draws_nothing_from_the_global_generator(tmp_path: Path, rng: Rng) -> None:
    data = npz_data(write_npz(tmp_path / "set.npz", rng))
    before = torch.get_rng_state()
    list(data.train_dataloader())
    assert torch.equal(before, torch.get_rng_state())


def test_processes_share_training_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = RowBatches(toy_set(11))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    shares, whole = [], []
    for rank in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        shares.append([i for batch in BatchIndices(rows, 2, shuffle=True) for i in batch])
        whole.append([i for batch in BatchIndices(rows, 2, shuffle=False) for i in batch])
    assert [len(share) for share in shares] == [4, 4, 4]
    assert {i for share in shares for i in share} == set(range(11))
    assert whole == [list(range(11))] * 3


def test_only_leaves_out_the_others(tmp_path: Path, rng: Rng) -> None:
    names = write_layout(tmp_path, rng, frames=True)
    lost = [name for name in names if name.startswith(("train_1", "test1_0"))]
    for name in lost:
        (tmp_path / "features" / "text" / f"{name}.npy").unlink()
    full = layout_data(tmp_path, frames="unaligned")
    data = layout_data(tmp_path, frames="unaligned", only=["text"])
    assert data.in_features == {"text": full.in_features["text"]}
    assert data.sequences == ["text"]
    for name, part in data.sets.items():
        assert list(part.features) == list(part.masks) == ["text"]
        whole = full.sets[name]
        keep = [row for row, one in enumerate(whole.ids) if name.startswith("test") or one not in lost]
        assert part.ids == [whole.ids[row] for row in keep]
        assert part.present.tolist() == [[one not in lost] for one in part.ids]
        assert torch.equal(part.features["text"], whole.features["text"][keep])
        assert torch.equal(part.masks["text"], whole.masks["text"][keep])
        batch = part.batch([0])
        assert list(batch["inputs"]) == ["text"] and batch["present"].shape == (1, 1)


class Recorder(L.LightningModule):
    """Trains nothing; notes the first feature of every training row it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[float]] = []

    def on_train_epoch_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        self.seen[-1] += batch["inputs"]["a"][:, 0].tolist()
        return self.weight * 0.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_resumed_run_sees_the_same_batches(tmp_path: Path, rng: Rng) -> None:
    path = write_npz(tmp_path / "set.npz", rng)

    def fit(epochs: int, checkpoint: str | None = None) -> tuple[L.Trainer, Recorder]:
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        model = Recorder()
        trainer.fit(model, datamodule=npz_data(path, batch_size=8), ckpt_path=checkpoint)
        return trainer, model

    _, whole = fit(4)
    assert len({str(epoch) for epoch in whole.seen}) == 4
    trainer, first = fit(2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, second = fit(4, str(tmp_path / "half.ckpt"))
    assert first.seen + second.seen == whole.seen
