"""Where contrastive losses went wrong before: the empty, the single, the absent, the unnormalised, the sharp."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmrobust.losses import InfoNCELoss, ModalityContrastiveLoss, info_nce_loss, modality_contrastive_loss
from tests.references import losses as reference


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


@pytest.mark.parametrize("fill", [float("nan"), float("inf"), 1e38])
def test_absent_pairs_are_neither_queries_nor_keys(fill: float) -> None:
    query, key = _normal(6, 4), _normal(6, 4, seed=1)
    present = torch.tensor([True, False, True, True, False, True])
    want = info_nce_loss(query[present], key[present])
    spoiled = torch.where(present[:, None], query, fill).requires_grad_()
    loss = info_nce_loss(spoiled, torch.where(present[:, None], key, fill), present=present)
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=1e-12)
    loss.backward()
    assert spoiled.grad.isfinite().all()
    assert (spoiled.grad[~present] == 0).all()


def test_modalities_by_hand() -> None:
    """All pairs, each over the rows that have both, averaged over the pairs that have rows."""
    x = _normal(6, 4, 5)
    present = torch.tensor(
        [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.bool
    )
    pairs = []
    for a, b in ((0, 1), (0, 2), (1, 2)):  # nobody has the fourth modality together with another
        both = present[:, a] & present[:, b]
        pairs.append((_cross_entropy(x[both, a], x[both, b], 0.07) + _cross_entropy(x[both, b], x[both, a], 0.07)) / 2)
    got = modality_contrastive_loss(x, present)
    torch.testing.assert_close(got, torch.stack(pairs).mean(), rtol=1e-10, atol=0.0)
    torch.testing.assert_close(modality_contrastive_loss(x.unbind(1), present), got)


def test_published_form_for_three_modalities() -> None:
    x = _normal(8, 3, 5)
    pairs = [(0, 1), (0, 2), (1, 2)]
    want = sum((_cross_entropy(x[:, a], x[:, b], 0.07) + _cross_entropy(x[:, b], x[:, a], 0.07)) / 2 for a, b in pairs)
    torch.testing.assert_close(modality_contrastive_loss(x), want / 3)


@pytest.mark.parametrize("case", ["one modality", "nobody has two", "nobody has any", "empty batch"])
def test_no_pair_is_zero_and_attached(case: str) -> None:
    x = torch.full((4, 3, 5), float("nan"))
    present = torch.zeros(4, 3, dtype=torch.bool)
    if case == "one modality":
        x, present = x[:, :1], torch.ones(4, 1, dtype=torch.bool)
    elif case == "nobody has two":
        x[:, 0], present[:, 0] = 1.0, True
    elif case == "empty batch":
        x, present = x[:0], present[:0]
    x.requires_grad_()
    loss = modality_contrastive_loss(x, present)
    loss.backward()
    assert loss == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_absent_modalities_give_the_heads_no_gradient() -> None:
    """NaN under the mask reaches neither the loss nor the parameters of any head."""
    torch.manual_seed(0)
    loss = ModalityContrastiveLoss(6, 3, 4)
    x = torch.randn(5, 3, 6)
    x[:, 2] = float("nan")
    present = torch.tensor([True, True, False]).expand(5, 3)
    loss(x, present).backward()
    grads = [p.grad for p in loss.heads[2].parameters()]
    assert all(grad is None or (grad == 0).all() for grad in grads)
    for index in (0, 1):
        assert all(p.grad.isfinite().all() for p in loss.heads[index].parameters())
        assert any(p.grad.abs().max() > 0 for p in loss.heads[index].parameters())


def test_heads_belong_to_their_modalities() -> None:
    loss = ModalityContrastiveLoss(6, 2)
    assert [name for name, _ in loss.named_parameters()] == [
        f"heads.{m}.{layer}" for m in range(2) for layer in ("0.weight", "0.bias", "2.weight", "2.bias")
    ]
    assert loss.heads[0][2].weight.shape == (64, 6)
    x = torch.randn(4, 2, 6)
    assert torch.equal(loss(x), loss(list(x.unbind(1))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_and_autocast_compute_in_float32(dtype: torch.dtype) -> None:
    query, key = _normal(8, 16).to(dtype), _normal(8, 16, seed=1).to(dtype)
    want = info_nce_loss(query.double(), key.double())
    got = info_nce_loss(query, key)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = info_nce_loss(query.float(), key.float())
    torch.testing.assert_close(again.double(), want, rtol=1e-5, atol=1e-5)


def test_training_pulls_pairs_together() -> None:
    """A few steps on the vectors themselves: every query ends up nearest to its own key."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, 4, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        modality_contrastive_loss(x, temperature=0.2).backward()
        optimizer.step()
    units = F.normalize(x.detach(), dim=-1)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert torch.equal((units[:, a] @ units[:, b].T).argmax(1), torch.arange(8))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature_is_checked(temperature: float) -> None:
    x = torch.ones(2, 2, 3)
    for use in (
        lambda: info_nce_loss(x[0], x[0], temperature=temperature),
        lambda: modality_contrastive_loss(x, temperature=temperature),
        lambda: InfoNCELoss(temperature),
        lambda: ModalityContrastiveLoss(3, 2, temperature=temperature),
    ):
        with pytest.raises(ValueError, match=r"expected temperature in \(0\.0, inf\)"):
            use()
