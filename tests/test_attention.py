"""Proxy attention beyond the contracts: the absorbed form, what the weights mean, sequences and vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmrobust import ProxyCrossModalAttention

B, M, H, HEADS = 5, 3, 8, 2


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def _attention(mode: str = "joint", **options: object) -> ProxyCrossModalAttention:
    torch.manual_seed(0)
    return ProxyCrossModalAttention(H, HEADS, mode=mode, num_modalities=M, **options).double().eval()


def _direct(attention: ProxyCrossModalAttention, proxy: Tensor, x: Tensor, keep: Tensor) -> Tensor:
    """The textbook form: keys and values projected, torch's own attention, then the same residual blocks."""
    core = attention.attentions[0]

    def split(y: Tensor) -> Tensor:
        return y.unflatten(-1, (HEADS, H // HEADS)).transpose(1, 2)

    query, key, value = split(core.query(proxy)[:, None]), split(core.key(x)), split(core.value(x))
    found = F.scaled_dot_product_attention(query, key, value, keep[:, None, None])
    hidden = attention.norm(proxy + core.out(found.transpose(1, 2).flatten(1)))
    return hidden + attention.feed_forward(hidden)


@pytest.mark.parametrize("keys", [1, 3, 50])
def test_absorbed_form_is_the_direct_form(keys: int) -> None:
    """Outputs and every gradient; queries attend as in scaled_dot_product_attention."""
    attention = _attention()
    proxy, x = _normal(B, H).requires_grad_(), _normal(B, keys, H, seed=1).requires_grad_()
    keep = torch.rand(B, keys) < 0.6
    keep[:, 0] = True
    leaves = [proxy, x, *attention.parameters()]
    direct = _direct(attention, proxy, x, keep)
    want = torch.autograd.grad(direct.square().sum(), leaves)
    absorbed = attention(proxy, [x], masks=[keep])
    torch.testing.assert_close(absorbed, direct, rtol=1e-10, atol=1e-10)
    for got, wanted in zip(torch.autograd.grad(absorbed.square().sum(), leaves), want, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9)


def test_nothing_is_projected_per_key() -> None:
    """The largest tensor kept for backward is the input: no (B, T, H) keys or values beside it."""
    attention, x = _attention(), _normal(2, 400, H).requires_grad_()
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        attention(_normal(2, H), [x])
    assert sum(size >= x.numel() for size in sizes) <= 3


@pytest.mark.parametrize("mode", ["joint", "per_modality"])
@settings(max_examples=15)
@given(order=st.permutations(range(M)), seed=st.integers(0, 50))
def test_permuting_modalities_permutes_weights(mode: str, order: list[int], seed: int) -> None:
    """Joint keys have no order; per modality the projections go with their modality."""
    attention = _attention(mode)
    proxy, x, present = _normal(B, H, seed=seed), _normal(B, M, H, seed=seed + 1), torch.rand(B, M) < 0.7
    out, weights = attention(proxy, x, present=present, return_weights=True)
    if mode == "per_modality":
        attention.attentions = torch.nn.ModuleList(attention.attentions[m] for m in order)
    got, got_weights = attention(proxy, x[:, order], present=present[:, order], return_weights=True)
    torch.testing.assert_close(got, out, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(got_weights, weights[:, :, order], rtol=1e-11, atol=1e-11)


@settings(max_examples=20)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=M, max_size=M), min_size=1, max_size=5),
    fill=st.sampled_from([float("nan"), float("inf"), 7.0]),
)
def test_absent_values_change_no_bit(rows: list[list[bool]], fill: float) -> None:
    attention, present = _attention(), torch.tensor(rows)
    proxy, x = _normal(len(rows), H), _normal(len(rows), M, H, seed=1)
    out = attention(proxy, x, present=present)
    assert torch.equal(attention(proxy, torch.where(present[..., None], x, fill), present=present), out)
    assert (out[~present.any(1)] == 0).all()


def test_absent_is_the_same_as_left_out() -> None:
    """Attending over two modalities and an absent third is attending over the two."""
    attention, proxy, x = _attention(), _normal(B, H), _normal(B, M, H, seed=1)
    present = torch.tensor([True, False, True]).expand(B, M)
    torch.testing.assert_close(
        attention(proxy, x, present=present), attention(proxy, x[:, [0, 2]]), rtol=1e-12, atol=1e-12
    )


def test_weights_are_distributions_per_head() -> None:
    present = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
    _, weights = _attention()(_normal(3, H), _normal(3, M, H, seed=1), present=present, return_weights=True)
    assert weights.shape == (3, HEADS, M)
    torch.testing.assert_close(weights.sum(-1), present.any(1).double()[:, None].expand(3, HEADS))
    assert torch.equal(weights > 0, present[:, None].expand(3, HEADS, M))


def test_fusion_weights_are_factors_of_the_softmax() -> None:
    """A weight of 0 is absence, equal weights are none, and doubling one doubles its odds."""
    attention, proxy, x = _attention(), _normal(B, H), _normal(B, M, H, seed=1)
    plain, base = attention(proxy, x, return_weights=True)
    torch.testing.assert_close(attention(proxy, x, torch.full((B, M), 0.2, dtype=torch.float64)), plain)
    none = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64).expand(B, M)
    absent = torch.tensor([True, False, True]).expand(B, M)
    torch.testing.assert_close(attention(proxy, x, none), attention(proxy, x, present=absent))
    twice = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64).expand(B, M)
    _, weights = attention(proxy, x, twice, return_weights=True)
    torch.testing.assert_close(weights[..., 0] / weights[..., 1], 2 * base[..., 0] / base[..., 1])


def test_per_modality_results_are_added_with_weights() -> None:
    attention, proxy, x = _attention("per_modality"), _normal(B, H), _normal(B, M, H, seed=1)
    one_hot = torch.eye(M, dtype=torch.float64)
    for m in range(M):
        got = attention(proxy, x, one_hot[m].expand(B, M))
        alone = torch.zeros(B, M, dtype=torch.bool)
        alone[:, m] = True
        torch.testing.assert_close(got, attention(proxy, x, present=alone))


def test_vectors_are_sequences_of_one_step() -> None:
    for mode in ("joint", "per_modality"):
        attention, proxy, x = _attention(mode), _normal(B, H), _normal(B, M, H, seed=1)
        present = torch.rand(B, M) < 0.7
        want = attention(proxy, x, present=present)
        vectors = list(x.unbind(1))
        steps = [vector[:, None] for vector in vectors]
        for form in (vectors, steps):
            torch.testing.assert_close(attention(proxy, form, present=present), want, rtol=1e-12, atol=1e-12)


def test_output_depends_on_the_query_when_there_is_a_choice() -> None:
    attention, x = _attention(), _normal(B, M, H)
    core = attention.attentions[0]
    first, second = (core(_normal(B, H, seed=seed), x, None)[0] for seed in (1, 2))
    assert (first - second).abs().max() > 1e-4


def test_wrong_numbers_of_modalities() -> None:
    proxy, x = _normal(B, H), _normal(B, M, H)
    with pytest.raises(ValueError, match="ProxyCrossModalAttention: expected 3 modalities"):
        _attention("per_modality")(proxy, x[:, :2])
    with pytest.raises(ValueError, match="ProxyCrossModalAttention: expected 2 modalities"):
        _attention()(proxy, [x, x], masks=[None])
    with pytest.raises((TypeError, ValueError), match="ProxyCrossModalAttention: expected num_modalities"):
        ProxyCrossModalAttention(H, HEADS, mode="per_modality")
