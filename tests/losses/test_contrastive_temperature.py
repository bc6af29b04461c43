"""Temperatures that are learned: their range, what pushes them out of it, and what they are worth."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmrobust import InfoNCELoss, ModalityContrastiveLoss, NTXentLoss, SupConLoss, sup_con_loss

LABELS = torch.arange(8) % 2
KINDS: dict[str, tuple[Callable[..., nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    "sup_con": (SupConLoss, lambda loss, x: loss(x, LABELS)),
    "info_nce": (InfoNCELoss, lambda loss, x: loss(x, x.roll(1, 1))),
    "nt_xent": (NTXentLoss, lambda loss, x: loss(x, x.roll(1, 1))),
    "modality": (
        lambda temperature=0.07, **options: ModalityContrastiveLoss(4, 2, 4, temperature, **options),
        lambda loss, x: loss(torch.stack([x, x.roll(1, 1)], dim=1)),
    ),
}


def rows() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", KINDS)
def test_a_fixed_temperature_is_no_parameter(name: str) -> None:
    build, _ = KINDS[name]
    loss = build(0.3)
    assert not [key for key in loss.state_dict() if "temperature" in key]
    assert loss.temperature() == 0.3
    assert "0.3" in repr(loss)


@pytest.mark.parametrize("name", KINDS)
def test_a_learned_temperature_starts_where_it_is_told(name: str) -> None:
    build, use = KINDS[name]
    torch.manual_seed(0)
    fixed = build(0.2)
    torch.manual_seed(0)
    learned = build(0.2, learnable_temperature=True)
    assert learned.temperature.log_temperature.shape == ()
    assert math.isclose(float(learned.temperature().detach()), 0.2, rel_tol=1e-6)
    torch.testing.assert_close(use(learned, rows()), use(fixed, rows()))
    use(learned, rows()).backward()
    assert learned.temperature.log_temperature.grad.abs() > 1e-4
    assert "learnable in [0.01, 1.0]" in repr(learned)


@pytest.mark.parametrize(("start", "bound"), [(-9.0, 0.05), (9.0, 0.5), (math.log(0.05), 0.05), (math.log(0.5), 0.5)])
def test_the_temperature_stays_in_its_range(start: float, bound: float) -> None:
    """Beyond a bound it is the bound, and the gradient still leads back inside, but no further out."""
    loss = SupConLoss(0.1, learnable_temperature=True, temperature_range=(0.05, 0.5)).double()
    log = loss.temperature.log_temperature
    with torch.no_grad():
        log.fill_(start)
    assert math.isclose(float(loss.temperature().detach()), bound, rel_tol=1e-12)
    inward = -1.0 if bound == 0.05 else 1.0  # the sign of a gradient whose step leads inside
    for sign in (-1.0, 1.0):
        log.grad = None
        (sign * loss.temperature()).backward()
        assert float(log.grad) == pytest.approx(sign * bound if sign == inward else 0.0)


def test_training_moves_the_temperature_and_stays_inside() -> None:
    """Classes that are apart want it low, the bound holds; labels at random want it high."""
    separate = torch.cat([torch.eye(4)[:1].repeat(4, 1), torch.eye(4)[1:2].repeat(4, 1)])
    for x, labels, bound in ((separate, torch.arange(8) // 4, 0.1), (rows(), LABELS, 0.4)):
        loss = SupConLoss(0.2, learnable_temperature=True, temperature_range=(0.1, 0.4))
        optimizer = torch.optim.SGD(loss.parameters(), lr=5.0)
        for _ in range(60):
            optimizer.zero_grad()
            loss(x, labels).backward()
            optimizer.step()
        assert math.isclose(float(loss.temperature().detach()), bound, rel_tol=1e-4)
        assert loss.temperature.log_temperature.isfinite()


def test_two_ways_to_learn_the_same_temperature() -> None:
    """A scalar tensor of the caller gets the gradient that the module's parameter gets."""
    loss = SupConLoss(0.2, learnable_temperature=True).double()
    x = rows().double()
    loss(x, LABELS).backward()
    log = torch.tensor(float(loss.temperature.log_temperature.detach()), dtype=torch.float64, requires_grad=True)
    sup_con_loss(x, LABELS, temperature=log.exp()).backward()
    torch.testing.assert_close(log.grad, loss.temperature.log_temperature.grad, rtol=1e-10, atol=0.0)


def test_a_copy_learns_for_itself() -> None:
    loss = SupConLoss(0.2, learnable_temperature=True)
    twin = copy.deepcopy(loss)
    with torch.no_grad():
        twin.temperature.log_temperature.add_(1.0)
    assert math.isclose(float(loss.temperature().detach()), 0.2, rel_tol=1e-6)
