"""InfoNCE and NT-Xent: what they are made of, extra negatives, scale, sharp temperatures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmrobust.losses import InfoNCELoss, NTXentLoss, info_nce_loss, nt_xent_loss, sup_con_loss
from tests.references import contrastive as reference


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def _cross_entropy(query: torch.Tensor, key: torch.Tensor, temperature: float) -> torch.Tensor:
    logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(query)))


def test_info_nce_is_cross_entropy_over_similarities() -> None:
    query, key = _normal(6, 5), _normal(6, 5, seed=1)
    one, other = _cross_entropy(query, key, 0.2), _cross_entropy(key, query, 0.2)
    torch.testing.assert_close(info_nce_loss(query, key, temperature=0.2, symmetric=False), one)
    torch.testing.assert_close(info_nce_loss(query, key, temperature=0.2), (one + other) / 2)
    assert abs(one - other) > 1e-3


def test_the_positive_stays_in_the_denominator() -> None:
    """Nothing is removed from the diagonal: the loss is never negative, and two equal keys cost log 2."""
    same = torch.ones(2, 3)
    assert math.isclose(info_nce_loss(same, same).item(), math.log(2), rel_tol=1e-6)
    assert info_nce_loss(torch.eye(4), torch.eye(4)) >= 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_extra_negatives(symmetric: bool) -> None:
    """They are keys: only queries meet them, and they are normalised and differentiable."""
    query, key, negatives = _normal(4, 5), _normal(4, 5, seed=1), (9.0 * _normal(7, 5, seed=2)).requires_grad_()
    options = {"symmetric": symmetric, "temperature": 0.3}
    got = info_nce_loss(query, key, negatives=negatives, **options)
    want = reference.info_nce_loss(query.numpy(), key.numpy(), negatives=negatives.detach().numpy(), **options)
    assert math.isclose(got.item(), want, rel_tol=1e-12)
    assert got > info_nce_loss(query, key, **options)
    got.backward()
    assert negatives.grad.abs().max() > 0
    none = info_nce_loss(query, key, negatives=torch.zeros(0, 5, dtype=torch.float64), **options)
    torch.testing.assert_close(none, info_nce_loss(query, key, **options))


@pytest.mark.parametrize("batch", [0, 1])
def test_empty_and_single_batches(batch: int) -> None:
    """No pair: 0. One pair: 0 whatever the vectors, as there is nothing to tell it from; both attached."""
    query = torch.randn(batch, 3, requires_grad=True)
    loss = info_nce_loss(query, torch.randn(batch, 3))
    loss.backward()
    assert loss == 0
    assert torch.equal(query.grad, torch.zeros(batch, 3))
    single = query.detach().clone().requires_grad_()
    loss = info_nce_loss(single, torch.randn(batch, 3), negatives=torch.randn(4, 3))
    loss.backward()
    assert (loss > 0) == (batch == 1)


def test_scale_does_not_matter() -> None:
    """Vectors are normalised inside, also where their squares leave float32; zero vectors are safe."""
    query, key = _normal(5, 4).float(), _normal(5, 4, seed=1).float()
    want = info_nce_loss(query, key)
    for scale in (1e-9, 1e30, 1e37):
        torch.testing.assert_close(info_nce_loss(query * scale, key * 3.0), want, rtol=1e-5, atol=1e-6)
    spoiled = query.clone()
    spoiled[2] = 0.0
    spoiled.requires_grad_()
    loss = info_nce_loss(spoiled, key)
    loss.backward()
    assert loss.isfinite()
    assert spoiled.grad.isfinite().all()
    assert (spoiled.grad[2] == 0).all()
    assert (spoiled.grad[0] != 0).any()


@pytest.mark.parametrize("temperature", [1e-3, 0.01, 0.07, 1.0, 10.0])
def test_sharp_temperatures(temperature: float) -> None:
    """Antipodal and equal vectors in float32: finite, and right against float64."""
    query = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 1e-3]], requires_grad=True)
    key = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    loss = info_nce_loss(query, key, temperature=temperature)
    loss.backward()
    want = reference.info_nce_loss(query.detach().double().numpy(), key.double().numpy(), temperature=temperature)
    assert math.isclose(loss.item(), want, rel_tol=1e-5, abs_tol=1e-6)
    assert query.grad.isfinite().all()


def test_nt_xent_is_cross_entropy_without_the_row_itself() -> None:
    z1, z2 = _normal(6, 5), _normal(6, 5, seed=1)
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    scores = (z @ z.T / 0.3).fill_diagonal_(-torch.inf)
    rows = F.cross_entropy(scores, torch.arange(12).roll(6), reduction="none")
    torch.testing.assert_close(nt_xent_loss(z1, z2, temperature=0.3), rows.mean())
    torch.testing.assert_close(nt_xent_loss(z1, z2, temperature=0.3, reduction="none"), rows.view(2, 6))
    torch.testing.assert_close(nt_xent_loss(z1, z2, temperature=0.3, reduction="sum"), rows.sum())


def test_nt_xent_is_the_supervised_loss_with_samples_as_classes() -> None:
    z1, z2 = _normal(7, 4), _normal(7, 4, seed=1)
    both, sample = torch.cat([z1, z2]), torch.arange(7).repeat(2)
    for aggregation in ("out", "in"):
        want = sup_con_loss(both, sample, aggregation=aggregation, temperature=0.2)
        torch.testing.assert_close(nt_xent_loss(z1, z2, temperature=0.2), want)
    present = torch.arange(7) != 3
    want = sup_con_loss(both, sample, present=present.repeat(2), temperature=0.2)
    torch.testing.assert_close(nt_xent_loss(z1, z2, present=present, temperature=0.2), want)


def test_nt_xent_meets_negatives_from_both_views() -> None:
    z1, z2, negatives = _normal(5, 4), _normal(5, 4, seed=1), (3.0 * _normal(4, 4, seed=2)).requires_grad_()
    rows = nt_xent_loss(z1, z2, negatives=negatives, reduction="none")
    assert (rows > nt_xent_loss(z1, z2, reduction="none")).all()
    rows.mean().backward()
    assert (negatives.grad.abs().sum(1) > 0).all()
    absent = torch.zeros(4, dtype=torch.bool)
    nothing = nt_xent_loss(z1, z2, negatives=torch.full((4, 4), torch.nan).double(), negatives_present=absent)
    torch.testing.assert_close(nothing, nt_xent_loss(z1, z2))


@pytest.mark.parametrize("loss", [info_nce_loss, nt_xent_loss])
def test_weights_of_samples(loss) -> None:
    """A mean over what weights leave, zero weights as good as absent; the pairs stay keys of the others."""
    one, other, weight = _normal(5, 4), _normal(5, 4, seed=1), torch.tensor([1.0, 0.0, 2.0, 3.0, 0.5])
    rows = loss(one, other, reduction="none")
    want = (rows * weight).sum() / weight.expand(rows.shape).sum()
    torch.testing.assert_close(loss(one, other, weight=weight), want)
    torch.testing.assert_close(loss(one, other, weight=torch.full((5,), 7.0)), loss(one, other))
    assert loss(one, other, weight=torch.zeros(5)) == 0.0
    present = torch.tensor([True, True, True, False, True])
    weight[3] = torch.nan
    assert loss(one, other, weight=weight, present=present).isfinite()


@pytest.mark.parametrize("kind", [InfoNCELoss, NTXentLoss])
def test_a_bank_of_negatives_is_an_argument(kind) -> None:
    """Modules hand on what changes from call to call."""
    one, other, negatives = _normal(5, 4), _normal(5, 4, seed=1), _normal(6, 4, seed=2)
    present, here = torch.arange(5) != 2, torch.arange(6) != 1
    options = {"present": present, "negatives": negatives, "negatives_present": here, "weight": torch.arange(5.0)}
    function = info_nce_loss if kind is InfoNCELoss else nt_xent_loss
    for reduction in ("mean", "sum", "none"):
        got = kind(0.3, reduction=reduction)(one, other, **options)
        assert torch.equal(got, function(one, other, temperature=0.3, reduction=reduction, **options))
    one_way = InfoNCELoss(0.3, symmetric=False)(one, other)
    assert torch.equal(one_way, info_nce_loss(one, other, temperature=0.3, symmetric=False))
