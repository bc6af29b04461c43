"""Traps that earlier systems fell into; each is shown with its published numbers, then avoided."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrobust import (
    ModalityDropout,
    ProxyCrossModalAttention,
    UncertaintyWeightedFusion,
    VariationalFusionClassifier,
    VariationalMLPEncoder,
    masked_softmax,
    uncertainty_weights,
)
from tests.references.presence import schedule

PUBLISHED = {
    "weighting": "softmax_inverse_std",
    "absence": "zero_fill",
    "latent_reduction": "sum",
    "symmetric_cross_kl": False,
    "logvar_bound": "clamp",
}


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


# Weights of what is absent ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("absent", "leak", "rest"), [((2,), 0.155, 0.422), ((1, 2), 0.212, 0.576)])
def test_a_std_of_a_million_is_not_absence(absent: tuple[int, ...], leak: float, rest: float) -> None:
    """softmax(1 / std) leaves a dropped modality 15.5 %, two of them 21.2 % each; a mask leaves exactly 0."""
    std = torch.ones(1, 3, 4)
    std[:, list(absent)] = 1e6
    present = torch.ones(1, 3, dtype=torch.bool)
    present[:, list(absent)] = False
    published = uncertainty_weights(std, weighting="softmax_inverse_std")[0]
    assert published[list(absent)].sub(leak).abs().max() < 6e-4
    assert published[present[0]].sub(rest).abs().max() < 6e-4
    for weighting in ("softmax_inverse_std", "precision"):
        weights = uncertainty_weights(std, present, weighting=weighting)[0]
        assert (weights[list(absent)] == 0).all()
        torch.testing.assert_close(weights.sum(), torch.tensor(1.0))


def test_the_published_model_keeps_the_leak_and_ours_does_not() -> None:
    """Modality dropout in the model: the published option leaks 15 to 21 %, the default nothing."""
    batch = {name: torch.randn(64, 5) for name in "atv"}
    for options, leaks in ((PUBLISHED, True), ({}, False)):
        torch.manual_seed(0)
        model = VariationalFusionClassifier(
            dict.fromkeys("atv", 5), 8, num_classes=2, modality_dropout=1.0, attention="none", **options
        )
        out = model(batch)
        dropped = out.weights[~out.present]
        assert len(dropped) > 20
        assert bool((dropped == 0).all()) != leaks
        assert not leaks or bool(((dropped > 0.12) & (dropped < 0.24)).all())


@pytest.mark.parametrize(("dtype", "std"), [(torch.float32, 0.01126), (torch.float16, 0.0889), (torch.float32, 1e-30)])
def test_small_stds_do_not_overflow(dtype: torch.dtype, std: float) -> None:
    """exp(1 / std) without the maximum subtracted is Inf below 0.0113 (fp32) and 0.09 (fp16), and Inf/Inf is NaN."""
    x = torch.full((1, 2, 3), std, dtype=dtype)
    naive = torch.exp(1 / x)
    assert (naive / naive.sum(1, keepdim=True)).isnan().all()
    for options in ({"weighting": "softmax_inverse_std"}, {"weighting": "precision"}, {"per_dimension": True}):
        value = x.clone().requires_grad_()
        weights = uncertainty_weights(value, **options)
        torch.testing.assert_close(weights, torch.full_like(weights, 0.5))
        weights[:, 0].sum().backward()
        assert value.grad is not None
        assert value.grad.isfinite().all()


# Modality dropout ------------------------------------------------------------------------------------------------


def _encoder_inputs(model: VariationalFusionClassifier, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return what the first encoder was told about presence, and what the model reports."""
    told: list[Tensor | None] = []
    handle = model.encoders[0].register_forward_pre_hook(lambda module, args: told.append(args[1]))
    present = model(batch).present
    handle.remove()
    return told[0], present  # type: ignore[return-value]


def test_modality_dropout_is_seen_by_the_encoders() -> None:
    """Dropout after encoding never shows absence to the encoders, and on z alone it changes no prediction."""
    batch = {name: torch.randn(32, 5) for name in "at"}
    model = VariationalFusionClassifier(dict.fromkeys("at", 5), 8, num_classes=2, modality_dropout=1.0)
    told, present = _encoder_inputs(model, batch)
    assert torch.equal(told, present[:, 0])
    assert not present.all(1).any()
    torch.manual_seed(3)
    out = model(batch)
    assert (out.mu[~out.present] == 0).all()
    published = VariationalFusionClassifier(
        dict.fromkeys("at", 5), 8, num_classes=2, modality_dropout=1.0, **{**PUBLISHED, "attention": "per_modality"}
    )
    told, _ = _encoder_inputs(published, batch)
    assert told is None


def test_the_epoch_survives_a_checkpoint() -> None:
    """With the epoch in a plain attribute, a resumed run warms up again."""
    make = lambda: VariationalFusionClassifier(  # noqa: E731
        dict.fromkeys("at", 5), 8, num_classes=2, modality_dropout=1.0, modality_dropout_warmup=10, kl_warmup=10
    )
    batch, model, fresh = {name: torch.randn(16, 5) for name in "at"}, make(), make()
    model.set_epoch(12)
    resumed = copy.deepcopy(fresh)
    resumed.load_state_dict(model.state_dict())
    torch.manual_seed(0)
    want = model(batch)
    torch.manual_seed(0)
    got = resumed(batch)
    assert torch.equal(got.present, want.present)
    assert torch.equal(got.aux_loss, want.aux_loss)
    assert not got.present.all()
    assert fresh(batch).present.all()


def test_the_published_schedule_ramps() -> None:
    """p = 0 until epoch W, still 0 at W, then linear, and full at 2W: the published text tells the first half only."""
    drop = ModalityDropout(0.2, warmup_epochs=30, ramp_epochs=30)
    table = {0: 0.0, 29: 0.0, 30: 0.0, 31: 0.2 / 30, 45: 0.1, 59: 0.2 * 29 / 30, 60: 0.2, 99: 0.2}
    for epoch, p in table.items():
        drop.set_epoch(epoch)
        assert math.isclose(drop.p * float(drop.schedule.factor()), p, abs_tol=1e-8)
        assert math.isclose(0.2 * schedule(epoch, 30, 30), p, abs_tol=1e-12)


# Attention over a single key -------------------------------------------------------------------------------------


def test_a_single_key_kills_the_query() -> None:
    """One key per softmax: constant weights, dead query and key projections. Joint keys bring them to life."""
    modalities = _normal(5, 3, 8)
    for mode, alive in (("per_modality", False), ("joint", True)):
        torch.manual_seed(0)
        attention = ProxyCrossModalAttention(8, 2, mode=mode, num_modalities=3).double()
        output, weights = attention(_normal(5, 8, seed=1), modalities, return_weights=True)
        output.square().sum().backward()
        for part in attention.attentions:
            for projection in (part.query, part.key):
                assert bool(projection.weight.grad.abs().max() > 1e-6) == alive
            assert part.value.weight.grad.abs().max() > 1e-6
        assert bool((weights == 1).all()) != alive
        first, second = (
            attention.attentions[0](_normal(5, 8, seed=s), modalities[:, : 1 if not alive else 3], None)[0]
            for s in (2, 3)
        )
        assert torch.equal(first, second) != alive


def test_an_absent_modality_adds_no_constant() -> None:
    """A zeroed vector still sends the biases of value and output through; an absent one sends nothing."""
    for mode in ("per_modality", "joint"):
        attention = ProxyCrossModalAttention(8, 2, mode=mode, num_modalities=2).double().eval()
        nn.init.constant_(attention.attentions[-1].value.bias, 3.0)
        proxy, x = _normal(4, 8), _normal(4, 2, 8, seed=1)
        x[:, 1] = 0.0
        present = torch.tensor([[True, False]]).expand(4, 2)
        left_out, zeroed = attention(proxy, x, present=present), attention(proxy, x)
        assert (left_out - zeroed).abs().max() > 0.01
        garbage = x.clone()
        garbage[:, 1] = float("nan")
        assert torch.equal(attention(proxy, garbage, present=present), left_out)


def test_zero_vectors_become_something_through_biases() -> None:
    """A zero input comes out of an encoder as a mean with weight; an absent one as the prior, and without weight."""
    torch.manual_seed(0)
    encoder, fusion = VariationalMLPEncoder(5, 8).eval(), UncertaintyWeightedFusion()
    x, present = torch.zeros(1, 5), torch.tensor([False])
    assert encoder(x).mu.abs().mean() > 0.05
    absent = encoder(x, present)
    assert (absent.mu == 0).all()
    assert (absent.std == 1).all()
    other = encoder(torch.randn(1, 5))
    weights = fusion([other.mu, absent.mu], [other.std, absent.std], torch.tensor([[True, False]])).weights
    assert weights.tolist() == [[1.0, 0.0]]


# Gradients -------------------------------------------------------------------------------------------------------


def test_a_saturated_log_variance_comes_back() -> None:
    """A hard clamp has no gradient outside; the soft bound has one everywhere."""
    for bound, alive in (("clamp", False), ("soft", True)):
        encoder = VariationalMLPEncoder(5, 8, logvar_bound=bound)
        with torch.no_grad():
            encoder.head.logvar.bias.fill_(60.0)
        logvar = encoder(torch.randn(3, 5)).logvar
        assert (logvar.abs() <= 10).all()
        logvar.sum().backward()
        assert bool((encoder.head.logvar.bias.grad > 0).all()) == alive


def test_masked_rows_of_sdpa_stay_finite() -> None:
    """NaN under a False reaches the output of SDPA, and nn.MultiheadAttention makes NaN gradients of an empty row."""
    query, key = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4)
    value, keep = torch.randn(2, 1, 3, 4), torch.ones(2, 1, 3, 3, dtype=torch.bool)
    value[0, 0, 2], keep[0, 0, :, 2] = float("nan"), False
    assert F.scaled_dot_product_attention(query, key, value, keep)[0].isnan().any()
    theirs = nn.MultiheadAttention(4, 1, batch_first=True)
    x, empty = torch.randn(2, 3, 4), torch.tensor([[False] * 3, [True] * 3])
    theirs(x, x, x, key_padding_mask=empty, need_weights=True)[0][0].sum().backward()
    assert theirs.in_proj_weight.grad.isnan().any()
    ours = ProxyCrossModalAttention(4, 1)
    x[0, 2] = float("nan")
    present = torch.tensor([[True, True, False], [False] * 3])
    output, weights = ours(torch.randn(2, 4), x, present=present, return_weights=True)
    output.sum().backward()
    assert output.isfinite().all()
    assert (output[1] == 0).all()
    assert (weights[1] == 0).all()
    assert all(p.grad.isfinite().all() for p in ours.parameters())
    assert (masked_softmax(torch.full((2, 3), float("nan")), torch.zeros(2, 3, dtype=torch.bool)) == 0).all()
    # The lowest number, an additive mask elsewhere, is a logit like any other, and no weight leaks to what is absent.
    lowest = torch.tensor([[torch.finfo(torch.float32).min, 5.0]])
    assert masked_softmax(lowest, torch.tensor([[True, False]])).tolist() == [[1.0, 0.0]]
