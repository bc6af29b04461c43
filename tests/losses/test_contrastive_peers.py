"""Where definitions agree, the same numbers and gradients as pytorch-metric-learning and lightly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.suites.contrastive_peers import lightly_nt_xent
from mmrobust._similarity import dense
from mmrobust.losses import nt_xent_loss, sup_con_loss

metric_learning = pytest.importorskip("pytorch_metric_learning.losses")


@pytest.fixture(params=["dense", "tiles"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_PAIRS", 1 << 62 if request.param == "dense" else -1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def compare(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *rows: Tensor, rtol: float = 1e-10) -> None:
    found = []
    for loss in (ours, theirs):
        leaves = [x.clone().requires_grad_() for x in rows]
        value = loss(*leaves)
        found.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=rtol, atol=rtol * float(want.abs().max()))


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("classes", [2, 7, 30])
def test_sup_con_of_metric_learning(classes: int, temperature: float) -> None:
    """Rows without a positive leave the mean there, too."""
    labels = torch.randint(classes, (40,), generator=torch.Generator().manual_seed(0))
    theirs = metric_learning.SupConLoss(temperature=temperature)
    compare(lambda x: sup_con_loss(x, labels, temperature=temperature), lambda x: theirs(x, labels), normal(40, 8))


def test_sup_con_of_metric_learning_with_a_memory() -> None:
    labels, key_labels = (torch.randint(5, (n,), generator=torch.Generator().manual_seed(n)) for n in (20, 33))
    theirs = metric_learning.SupConLoss(temperature=0.2)

    def without_rows(x: Tensor, keys: Tensor) -> Tensor:
        """Their references replace the batch: here its own pairs are excluded."""
        excluded = torch.zeros(20, 53, dtype=torch.bool)
        excluded[:, :20] = True
        return sup_con_loss(x, labels, keys=keys, key_labels=key_labels, excluded=excluded, temperature=0.2)

    compare(
        without_rows,
        lambda x, keys: theirs(x, labels, ref_emb=keys, ref_labels=key_labels),
        normal(20, 8),
        normal(33, 8, seed=1),
    )


def test_nt_xent_of_metric_learning() -> None:
    sample = torch.arange(12).repeat(2)
    theirs = metric_learning.NTXentLoss(temperature=0.3)
    compare(
        lambda a, b: nt_xent_loss(a, b, temperature=0.3),
        lambda a, b: theirs(torch.cat([a, b]), sample),
        normal(12, 8),
        normal(12, 8, seed=1),
    )


@pytest.fixture
def lightly() -> Callable[[float], nn.Module]:
    pytest.importorskip("lightly", reason="lightly, which wants torchvision, is not installed")
    return lightly_nt_xent


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_of_lightly(lightly: Callable[[float], nn.Module], temperature: float) -> None:
    theirs = lightly(temperature)
    compare(lambda a, b: nt_xent_loss(a, b, temperature=temperature), theirs, normal(12, 8), normal(12, 8, seed=1))
