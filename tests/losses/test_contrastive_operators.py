"""The operators below the contrastive losses as PyTorch sees them: registered, traced, compiled, exported, refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mmrobust import InfoNCELoss, ModalityContrastiveLoss, NTXentLoss, SupConLoss
from mmrobust._similarity import dense, pairs
from mmrobust._similarity.implementation import rounded
from mmrobust._similarity.units import centred_units
from mmrobust.losses import info_nce_loss, modality_contrastive_loss, nt_xent_loss, sup_con_loss

D = 4
Loss = Callable[[Tensor], Tensor]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def labels(rows: int) -> Tensor:
    return torch.arange(rows) % 3


def present(rows: int) -> Tensor:
    return torch.arange(rows) % 5 != 1


def several(rows: int) -> Tensor:
    return torch.stack([torch.arange(rows) % 2 == 0, torch.arange(rows) % 3 == 0], dim=1)


# Rows x (B, D) -> loss, on every way through the operators.
LOSSES: dict[str, Loss] = {
    "classes": lambda x: sup_con_loss(x, labels(len(x))),
    "classes, present": lambda x: sup_con_loss(x, labels(len(x)), present=present(len(x))),
    "classes, keys": lambda x: sup_con_loss(x, labels(len(x)), keys=x.flip(1), key_labels=labels(len(x))),
    "L_in": lambda x: sup_con_loss(x, labels(len(x)), aggregation="in", present=present(len(x))),
    "several labels": lambda x: sup_con_loss(x, several(len(x)), excluded=torch.ones(len(x), len(x)).tril(-2).bool()),
    "masks": lambda x: sup_con_loss(x, positives=several(len(x))[:, :1] == several(len(x))[:, 1]),
    "pairs": lambda x: info_nce_loss(x, x.roll(1, 1)),
    "pairs, present": lambda x: info_nce_loss(x, x.roll(1, 1), present=present(len(x))),
    "pairs, one way, sharp": lambda x: info_nce_loss(x, x.roll(1, 1), symmetric=False, temperature=1e-3),
    "pairs, negatives": lambda x: info_nce_loss(
        x, x.roll(1, 1), negatives=x.flip(1), negatives_present=present(len(x))
    ),
    "views": lambda x: nt_xent_loss(x, x.roll(1, 1), present=present(len(x))),
    "modalities": lambda x: modality_contrastive_loss(torch.stack([x, x.roll(1, 1), x.flip(1)], dim=1)),
}


@pytest.fixture
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send small batches the way of large ones."""
    monkeypatch.setattr(dense, "_PAIRS", -1)


class Calls(TorchDispatchMode):
    """Remembers the calls of the operators of this library, those of a backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        if name.startswith("mmrobust."):
            assert not kwargs
            self.made.append((name.split(".")[1], args))
        return function(*args, **(kwargs or {}))


def samples(loss: Loss) -> list[tuple[str, tuple[Any, ...]]]:
    """Return the operators that a loss calls, in both directions, and their arguments."""
    with Calls() as calls:
        loss(normal(7, D).requires_grad_()).backward()

    def leaf(name: str, x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return x.detach().clone().requires_grad_(not name.endswith("_backward"))

    return [(name, tuple(leaf(name, x) for x in args)) for name, args in calls.made]


@pytest.mark.usefixtures("_large")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOSSES)
def test_operators_are_what_they_declare(name: str) -> None:
    """Schema, fake tensors, autograd and tracing, on the arguments that the losses give them."""
    made = samples(LOSSES[name])
    forward = {operator for operator, _ in made if not operator.endswith("_backward")}
    assert {operator for operator, _ in made} == forward | {f"{operator}_backward" for operator in forward}
    for operator, args in made:
        torch.library.opcheck(getattr(torch.ops.mmrobust, operator), args, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("_large")
def test_the_samples_are_of_every_kind() -> None:
    made = [call for loss in LOSSES.values() for call in samples(loss)]
    strings = {x for _, args in made for x in args if isinstance(x, str)}
    assert {"self", "rows", "both"} <= strings
    assert {"pair_logsumexp", "masked_rows"} <= {name for name, _ in made}
    assert any(x is True for _, args in made for x in args)
    assert any(isinstance(args[0], Tensor) and args[0].dim() == 3 for _, args in made)


@pytest.mark.usefixtures("_large")
@pytest.mark.parametrize("wanted", [False, True])
def test_gradients_of_keys_are_computed_where_they_are_wanted(wanted: bool) -> None:
    """The keys of a memory bank want none, which saves a product of all pairs."""
    x, bank = normal(7, D).requires_grad_(), normal(5, D, seed=1).requires_grad_(wanted)
    with Calls() as calls:
        info_nce_loss(x, x.roll(1, 1), negatives=bank).backward()
    shapes = {tuple(args[2].shape): args[-1] for name, args in calls.made if name == "pair_logsumexp_backward"}
    assert shapes == {(7, D): True, (5, D): wanted}


@pytest.fixture
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def value_and_gradient(loss: Callable[..., Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.usefixtures("_large", "_fresh_dynamo")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["classes, present", "L_in", "pairs, negatives", "views", "modalities"])
def test_the_large_way_compiles_to_one_graph(name: str) -> None:
    compiled = torch.compile(LOSSES[name], fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (11, 9, 13):
        with torch._dynamo.config.patch(error_on_recompile=True):
            got = value_and_gradient(compiled, normal(rows, D, seed=rows))
        for one, other in zip(got, value_and_gradient(LOSSES[name], normal(rows, D, seed=rows)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


class Encoder(nn.Module):
    """A layer in front of a loss that takes labels, pairs or modalities."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.layer, self.loss = nn.Linear(D, 6).double(), loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.layer(x)
        if isinstance(self.loss, SupConLoss):
            return self.loss(z, y)
        if isinstance(self.loss, ModalityContrastiveLoss):
            return self.loss(torch.stack([z, z.roll(1, 1)], dim=1))
        return self.loss(z, z.roll(1, 1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "loss",
    [SupConLoss(), SupConLoss(aggregation="in", learnable_temperature=True), InfoNCELoss(), NTXentLoss()],
    ids=["sup_con", "L_in", "info_nce", "nt_xent"],
)
def test_a_program_serves_small_and_large_batches(loss: nn.Module) -> None:
    """Exported once with few rows; there is no size at which it takes another way."""
    torch.manual_seed(0)
    module = Encoder(copy.deepcopy(loss).double()).eval()
    batch = torch.export.Dim("batch", min=2, max=1 << 20)
    program = torch.export.export(
        module, (normal(9, D), labels(9)), dynamic_shapes={"x": {0: batch}, "y": {0: batch}}
    ).module()
    for rows in (2, 7, 600):
        x = normal(rows, D, seed=rows)
        torch.testing.assert_close(program(x, labels(rows)), module(x, labels(rows)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pairs", [-1, 1 << 62], ids=["tiles", "dense"])
@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, pairs: int) -> None:
    """By an error, and never by taking the gradient for a constant."""
    monkeypatch.setattr(dense, "_PAIRS", pairs)
    x = normal(7, D).requires_grad_()
    loss = LOSSES[name](x)
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    assert grad.requires_grad
    with pytest.raises(RuntimeError, match="contrastive losses cannot be differentiated twice"):
        (loss + grad.square().sum()).backward()


@pytest.mark.parametrize("pairs", [-1, 1 << 62], ids=["tiles", "dense"])
@pytest.mark.parametrize("kind", [SupConLoss, InfoNCELoss, NTXentLoss])
def test_second_derivatives_of_the_temperature_are_refused(
    monkeypatch: pytest.MonkeyPatch, kind: Callable[..., nn.Module], pairs: int
) -> None:
    monkeypatch.setattr(dense, "_PAIRS", pairs)
    loss, x = kind(learnable_temperature=True).double(), normal(8, D)
    value = loss(x, labels(8) if kind is SupConLoss else x.roll(1, 1))
    (slope,) = torch.autograd.grad(value, loss.temperature.log_temperature, create_graph=True)
    with pytest.raises(RuntimeError, match="contrastive losses cannot be differentiated twice"):
        (value + slope).backward()


@pytest.mark.usefixtures("_large")
@pytest.mark.parametrize("name", LOSSES)
def test_what_is_kept_changes_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Exponentials that wait for the backward pass give what computing them again gives, as often as it runs."""
    x = normal(7, D).requires_grad_()
    with monkeypatch.context() as patch:
        patch.setattr(pairs, "_KEPT", -1)
        (want,) = torch.autograd.grad(LOSSES[name](x), x)
    with Calls() as calls:
        value = LOSSES[name](x)
    assert all(args[-1] is True for op, args in calls.made if op == "pair_logsumexp")
    for _ in range(2):
        (grad,) = torch.autograd.grad(value, x, retain_graph=True)
        torch.testing.assert_close(grad, want)


@pytest.mark.parametrize("way", ["dense", "tiles"])
@pytest.mark.parametrize("name", LOSSES)
def test_checkpointing(monkeypatch: pytest.MonkeyPatch, name: str, way: str) -> None:
    """Losses that are computed again in the backward pass, which hands out what was saved a single time."""
    monkeypatch.setattr(dense, "_PAIRS", -1 if way == "tiles" else 1 << 62)
    x = normal(7, D).requires_grad_()
    (want,) = torch.autograd.grad(LOSSES[name](x), x)
    (grad,) = torch.autograd.grad(checkpoint(LOSSES[name], x, use_reentrant=False), x)
    torch.testing.assert_close(grad, want, rtol=0, atol=0)


@pytest.mark.usefixtures("_large")
@pytest.mark.parametrize("name", LOSSES)
def test_products_that_round_their_factors(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With a lower precision of float32 products, n is kept out of them; here the products are exact all the same."""
    x = normal(7, D, dtype=torch.float32).requires_grad_()
    want = torch.autograd.grad(LOSSES[name](x), x)[0]
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    torch.testing.assert_close(torch.autograd.grad(LOSSES[name](x), x)[0], want, rtol=1e-4, atol=1e-5)


def test_units_are_as_rough_as_kernels_see_them() -> None:
    """Aligned pairs: positives that are exact beside rounded scores would make half of the losses negative."""
    units = centred_units(normal(64, 32, dtype=torch.float32).requires_grad_())
    rough = rounded(units, "triton:bfloat16")
    assert torch.equal(rough.u, units.u.bfloat16().float())
    assert torch.equal(torch.autograd.grad(rough.u.sum(), units.u)[0], torch.ones_like(units.u))
    assert rounded(units, "triton:float32") is units
    assert rounded(units, "torch") is units
