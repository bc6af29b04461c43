"""The contrastive loss between modalities: which samples a pair of modalities has, heads, training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmrobust.losses import ModalityContrastiveLoss, modality_contrastive_loss


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def _cross_entropy(query: torch.Tensor, key: torch.Tensor, temperature: float) -> torch.Tensor:
    logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(query)))


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


def test_pairs_whose_rows_weigh_nothing_leave_the_mean() -> None:
    x, weight = _normal(6, 3, 5), torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    present = torch.tensor([[1, 1, 0]] * 3 + [[0, 1, 1]] * 3, dtype=torch.bool)
    got = modality_contrastive_loss(x, present, weight=weight)
    torch.testing.assert_close(got, modality_contrastive_loss(x[:3], present[:3]))


def test_weights_of_samples_with_one_modality_are_not_read() -> None:
    x, weight = _normal(4, 2, 5), torch.tensor([1.0, float("nan"), 1.0, 2.0], dtype=torch.float64)
    present = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]], dtype=torch.bool)
    assert modality_contrastive_loss(x, present, weight=weight, validate=True).isfinite()


def test_what_is_compared_can_be_had() -> None:
    torch.manual_seed(0)
    module, x = ModalityContrastiveLoss(6, 3, 4, 0.2), torch.randn(5, 3, 6)
    present = torch.rand(5, 3) < 0.7
    projected = module.project(x, present)
    assert projected.shape == (5, 3, 4)
    torch.testing.assert_close(module(x, present), modality_contrastive_loss(projected, present, temperature=0.2))
