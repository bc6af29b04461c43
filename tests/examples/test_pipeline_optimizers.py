"""Fused optimizers under every precision of a trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

L = pytest.importorskip("lightning", reason="needs the examples extra")

from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402

from examples.pipeline.optimizers import fused  # noqa: E402


class Slope(L.LightningModule):
    """A loss whose gradient has the length 50."""

    def __init__(self, kind: type[torch.optim.Optimizer]) -> None:
        super().__init__()
        self.kind = kind
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * torch.tensor([30.0, 40.0])).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return fused(self.kind, self.parameters(), lr=1.0)


def precision_of(name: str) -> dict[str, Any]:
    if name != "16-mixed":
        return {"precision": name}
    # Lightning has no float16 on CPUs; its gradient scaler is there.
    return {"plugins": [MixedPrecision(name, "cpu", scaler=torch.amp.GradScaler("cpu"))]}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize(
    ("kind", "clip", "moved"),
    [
        (torch.optim.SGD, 0.5, 0.5),
        (torch.optim.SGD, None, 50.0),
        # The first step of these is one along each axis.
        (torch.optim.Adam, 0.5, 2**0.5),
        (torch.optim.AdamW, 0.5, 2**0.5),
    ],
)
def test_gradients_are_clipped_as_they_are_without_scaling(
    precision: str, kind: type[torch.optim.Optimizer], clip: float | None, moved: float, tmp_path: Path
) -> None:
    task = Slope(kind)
    trainer = L.Trainer(
        accelerator="cpu",
        **precision_of(precision),
        gradient_clip_val=clip,
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, DataLoader([torch.zeros(1)]))
    assert trainer.optimizers[0].param_groups[0]["fused"]
    torch.testing.assert_close(task.weight.detach().norm().float(), torch.tensor(moved), rtol=1e-4, atol=0.0)
