"""The contrastive suite: peers and references are what they are said to be, and every promise is made."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.harness.case import Problem, Setup
from benchmarks.suites import contrastive, contrastive_peers
from benchmarks.suites.contrastive import INFO_NCE, NT_XENT, SUP_CON, Loss

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LOSSES = pytest.mark.parametrize("loss", [SUP_CON, INFO_NCE, NT_XENT], ids=lambda loss: loss.name)


def inputs(loss: Loss, rows: int = 8) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(rows, 5, generator=random, dtype=torch.float64, requires_grad=True) for _ in range(2))
    return x, torch.arange(rows) % 3 if loss.labelled else y


def by_hand(loss: Loss, x: Tensor, y: Tensor) -> float:
    """Return the mean of -log(softmax) over rows and their positives, number by number."""

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm())) / loss.temperature

    def mean(rows: Tensor, keys: Tensor, positive: Any, skip: bool) -> float:
        found = []
        for i, row in enumerate(rows):
            scores = {j: cosine(row, key) for j, key in enumerate(keys) if not (skip and i == j)}
            total = math.log(sum(math.exp(score) for score in scores.values()))
            pulled = [total - score for j, score in scores.items() if positive(i, j)]
            found.append(sum(pulled) / len(pulled))
        return sum(found) / len(found)

    size = len(x)
    if loss.labelled:
        return mean(x, x, lambda i, j: y[i] == y[j], True)
    if loss is INFO_NCE:
        return (mean(x, y, lambda i, j: i == j, False) + mean(y, x, lambda i, j: i == j, False)) / 2
    both = torch.cat([x, y])
    return mean(both, both, lambda i, j: i % size == j % size, True)


@LOSSES
def test_references_and_formulas_are_the_loss(loss: Loss) -> None:
    x, y = (part.detach() for part in inputs(loss))
    expected = by_hand(loss, x, y)
    for run in (loss.exact, *loss.formulas.values()):
        assert float(run(x, y, loss.temperature)) == pytest.approx(expected, rel=1e-12)
    assert float(loss.ours(loss.temperature)(x, y)) == pytest.approx(expected, rel=1e-12)


@LOSSES
@pytest.mark.parametrize("pairs", [1, 20, 1 << 20])
def test_rows_some_at_a_time_are_all_rows(loss: Loss, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive_peers.exact_rows, "__defaults__", (pairs,))
    x, y = inputs(loss)
    wanted = [leaf for leaf in (x, y) if leaf.requires_grad]
    have = torch.autograd.grad(loss.exact(x, y, loss.temperature), wanted)
    want = torch.autograd.grad(next(iter(loss.formulas.values()))(x, y, loss.temperature), wanted)
    for a, b in zip(have, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_pytorch_metric_learning_is_the_loss() -> None:
    pytest.importorskip("pytorch_metric_learning")
    x, labels = inputs(SUP_CON)
    x = x.detach().float()
    found = contrastive_peers.metric_learning_sup_con(0.1)(x, labels)
    assert float(found) == pytest.approx(float(SUP_CON.exact(x.double(), labels, 0.1)), rel=1e-5)


def test_lightly_is_the_loss_and_leaves_nothing_behind() -> None:
    pytest.importorskip("lightly")
    x, y = (part.detach().float() for part in inputs(NT_XENT))
    before = {name for name in sys.modules if name.startswith("lightly")}
    found = contrastive_peers.lightly_nt_xent(0.5)(x, y)
    assert float(found) == pytest.approx(float(NT_XENT.exact(x.double(), y.double(), 0.5)), rel=1e-5)
    assert {name for name in sys.modules if name.startswith("lightly")} == before


def test_lightly_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    contrastive_peers._lightly.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="lightly"):
        contrastive_peers.lightly_nt_xent(0.5)


class OnGpu(Setup):
    """Says that it is on a GPU, and draws on the CPU."""

    def normal(self, *shape: int, **options: Any) -> Tensor:
        self.device, device = CPU, self.device
        try:
            return super().normal(*shape, **options)
        finally:
            self.device = device


def promises(case: str, device: torch.device, monkeypatch: pytest.MonkeyPatch, **dims: int) -> list[str]:
    (found,) = (each for each in contrastive.CASES if each.name == case)
    monkeypatch.setattr(contrastive, "free_bytes", lambda device: math.inf)
    monkeypatch.setattr(contrastive, "_labels", lambda setup, batch: torch.arange(batch) % 10)
    problem: Problem = found.build(OnGpu({"D": 4, **dims}, device))
    return [target.claim for target in problem.targets]


@pytest.mark.parametrize(
    ("case", "batch", "says"),
    [
        *(("SupConLoss", batch, "never slower than the formula of SupContrast") for batch in (64, 128, 256, 512)),
        *(("InfoNCELoss", batch, "never slower than the formula of open_clip") for batch in (64, 128, 256, 512)),
        *(("NTXentLoss", batch, "never slower than masked cross entropy") for batch in (64, 128, 256, 512)),
        ("SupConLoss", 1024, "5 times faster than pytorch-metric-learning"),
        ("SupConLoss", 4096, "12 times faster than pytorch-metric-learning"),
        ("SupConLoss", 4096, "3 times faster than torch.compile"),
        ("SupConLoss", 4096, "at most 25 MB"),
        ("SupConLoss", 4096, "within 1e-6"),
        ("SupConLoss", 16384, "18 times faster than pytorch-metric-learning"),
        ("SupConLoss", 16384, "at most 100 MB"),
        ("NTXentLoss", 2048, "5 times faster than lightly"),
        ("NTXentLoss", 2048, "at most 25 MB"),
        ("InfoNCELoss", 4096, "2.8 times faster than the formula of open_clip"),
        ("InfoNCELoss", 8192, "3 times faster than the formula of open_clip"),
        ("InfoNCELoss", 8192, "at most 50 MB"),
        ("SupConLoss collapsed", 96, "the gradient of SupCon of collapsed embeddings is within 5e-6"),
        ("InfoNCELoss temperatures", 96, "finite, and within 1e-3 of float64, at temperatures from 1e-3 to 10"),
    ],
)
def test_what_is_promised_on_a_cpu(case: str, batch: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = next(each.sizes for each in contrastive.CASES if each.name == case)
    assert batch in {size.dims["B"] for size in sizes if size.cpu == "default"}
    assert any(says in claim for claim in promises(case, CPU, monkeypatch, B=batch))


@pytest.mark.parametrize(
    ("case", "batch", "says"),
    [
        ("SupConLoss bfloat16", 16384, "at most 0.9 ms"),
        ("SupConLoss bfloat16", 16384, "10 times faster than the formula of SupContrast"),
        ("SupConLoss bfloat16", 16384, "3 times faster than torch.compile"),
        ("SupConLoss bfloat16", 131072, "at most 2 GB"),
        ("SupConLoss bfloat16", 262144, "at most 0.35 s"),
        ("InfoNCELoss bfloat16", 32768, "1.5 times faster than the formula of open_clip"),
    ],
)
def test_what_is_promised_on_a_gpu(case: str, batch: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = next(each.sizes for each in contrastive.CASES if each.name == case)
    assert batch in {size.dims["B"] for size in sizes if size.cuda == "default"}
    assert any(says in claim for claim in promises(case, CUDA, monkeypatch, B=batch))


def test_what_needs_too_much_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "free_bytes", lambda device: 1e9)
    problem = contrastive.build_sup_con(Setup({"B": 8192, "D": 2}, CPU))
    assert set(problem.contenders) == {"ours"}
    assert problem.missing["eager"] == "needs 2.35 GB of memory, of which 1 GB are free"
