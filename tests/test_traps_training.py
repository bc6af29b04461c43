"""Traps of training and of sequences: losses that teach the std nothing, states of a wrong shape, padding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from mmrobust import (
    LSTMEncoder,
    ModalityDecoder,
    VariationalFusionClassifier,
    VariationalLSTMEncoder,
    add_noise,
    reconstruction_loss,
)
from mmrobust.losses import VariationalLoss
from tests.test_traps import PUBLISHED


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


# Reductions: does the std learn anything? ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reduction", "features", "want"), [("sum", 1.0, 0.93), ("sum", 0.05, 0.996), ("mean", 1.0, 0.218)]
)
def test_a_summed_kl_beside_an_averaged_error_pins_the_std_to_one(reduction: str, features: float, want: float) -> None:
    """Where the loss alone leaves the std: the published reductions at about 1 whatever the data say.

    128 latents decoded one by one into 128 features of the given variance. The expected error of a sample around its
    mean is variance * std^2 per feature, and the derivative vanishes at std = (1 + 2 w_r v / (w_kl H))^-1/2 for the
    summed KL, and without H for the averaged one.
    """
    width = 128
    logvar = torch.zeros(1, 1, width, dtype=torch.float64, requires_grad=True)
    loss = VariationalLoss(0.01, 0.1, 0.0, latent_reduction=reduction)
    optimizer = torch.optim.Adam([logvar], lr=0.1)
    for _ in range(400):
        error = features**0.5 * (0.5 * logvar[:, 0]).exp()
        total = loss(torch.zeros_like(logvar), logvar, [error], [torch.zeros_like(error)]).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    std = float((0.5 * logvar.detach()).exp().mean())
    gain = 2 * 0.1 * features / 0.01 / (width if reduction == "sum" else 1)
    assert math.isclose(std, (1 + gain) ** -0.5, rel_tol=1e-3)
    assert math.isclose(std, want, abs_tol=0.005)


def _toy(count: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Six classes; "a" and "t" tell them, "v" is pure noise."""
    draw, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(123)
    label = torch.randint(0, 6, (count,), generator=draw)
    x = {n: torch.randn(6, 12, generator=fixed)[label] + 1.2 * torch.randn(count, 12, generator=draw) for n in "at"}
    return {**x, "v": torch.randn(count, 12, generator=draw)}, label


def _spoil(x: Tensor) -> Tensor:
    """Noise ten times as strong as the signal, at the same level as before."""
    return add_noise(x, -10.0) / 11**0.5


def _train(corruption: float, **options: object) -> tuple[Tensor, Tensor]:
    """Train a toy model; return the mean weights on clean test data and with a spoilt "t"."""
    torch.manual_seed(0)
    model = VariationalFusionClassifier(dict.fromkeys("atv", 12), 64, num_classes=6, attention="none", **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    x, label = _toy(512, 1)
    for _ in range(200):
        index = torch.randint(0, 512, (64,))
        clean = {name: value[index] for name, value in x.items()}
        given = {name: torch.where(torch.rand(64, 1) < corruption, _spoil(v), v) for name, v in clean.items()}
        out = model(given, targets=clean)
        optimizer.zero_grad()
        (F.cross_entropy(out.logits, label[index]) + out.aux_loss).backward()
        optimizer.step()
    test, _ = _toy(512, 2)
    with torch.no_grad():
        model.eval()
        return model(test).weights.mean(0), model({**test, "t": _spoil(test["t"])}).weights.mean(0)


def test_a_noisy_modality_loses_weight() -> None:
    """Ours gives noise well below a third and less to what is spoilt; the published form stays near a third."""
    clean, spoilt = _train(0.3, reconstruct_from="fused")
    published, published_spoilt = _train(0.0, **PUBLISHED)
    assert clean[2] < 0.24
    assert clean[1] - spoilt[1] > 0.04
    assert published[2] > 0.27
    assert (published - published_spoilt).abs().max() < clean[1] - spoilt[1]


def _low_rank(count: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Four classes that every modality tells, in 4 of 24 dimensions."""
    draw, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(9)
    label, x = torch.randint(0, 4, (count,), generator=draw), {}
    for name in "atv":
        centres, basis = 2.0 * torch.randn(4, 4, generator=fixed), torch.randn(4, 24, generator=fixed)
        x[name] = (centres[label] + torch.randn(count, 4, generator=draw)) @ basis
        x[name] = x[name] + 0.2 * torch.randn(count, 24, generator=draw)
    return x, label


def _train_on_clean(**options: object) -> VariationalFusionClassifier:
    torch.manual_seed(0)
    model = VariationalFusionClassifier(dict.fromkeys("atv", 24), 16, num_classes=4, attention="none", **options)
    x, label = _low_rank(600, 1)
    if model.quality is not None:
        model.fit_quality(x, teach=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(100):
        index = torch.randint(0, 600, (64,))
        out = model({name: value[index] for name, value in x.items()})
        optimizer.zero_grad()
        (F.cross_entropy(out.logits, label[index]) + out.aux_loss).backward()
        optimizer.step()
    return model.eval()


def test_taught_quality_takes_the_weight_of_a_noisy_modality() -> None:
    """Trained on clean rows alone; what is spoilt in a test loses its weight, and the decision does not follow it."""
    taught, plain = _train_on_clean(quality="replace", freeze_quality=True), _train_on_clean()
    test, label = _low_rank(600, 2)
    noisy, silent = add_noise(test["t"], -10.0), torch.zeros_like(test["t"])
    right = {}
    with torch.no_grad():
        assert (taught(test).weights.mean(0) - 1 / 3).abs().max() < 0.05
        for name, model in (("taught", taught), ("plain", plain)):
            for kind, given in (("noisy", noisy), ("silent", silent), ("absent", None)):
                out = model({"a": test["a"], "v": test["v"]} if given is None else {**test, "t": given})
                right[name, kind] = float((out.logits.argmax(1) == label).float().mean())
                assert given is None or (float(out.weights[:, 1].mean()) < 0.1) == (model is taught), (name, kind)
    for kind in ("noisy", "silent"):  # as good as without it
        assert abs(right["taught", kind] - right["taught", "absent"]) < 0.02
    assert right["taught", "absent"] > 0.9
    assert right["plain", "noisy"] < right["taught", "noisy"] - 0.05


# Sequences -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("both", [False, True], ids=["one-way", "both-ways"])
def test_lstm_states_are_those_of_a_packed_lstm(layers: int, both: bool) -> None:
    """hn.squeeze(0) gives (layers * directions, B, H) as soon as that is not 1. Ours is (B, H), as when packed."""
    torch.manual_seed(0)
    encoder = VariationalLSTMEncoder(4, 6, num_layers=layers, bidirectional=both).double().eval()
    theirs = nn.LSTM(4, 6, layers, bidirectional=both, batch_first=True).double()
    with torch.no_grad():
        for index, cell in enumerate(encoder.lstm.cells):
            layer, back = (index // 2, index % 2) if both else (index, 0)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                suffix = f"_l{layer}" + ("_reverse" if back else "")
                getattr(theirs, name + suffix).copy_(getattr(cell, f"{name}_l0"))
    x, lengths = _normal(5, 7, 4), torch.tensor([7, 3, 1, 5, 2])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    states = theirs(packed)[1][0]
    assert states.shape[0] == layers * (1 + both)
    want = torch.cat(list(states[-2:] if both else states[-1:]), dim=-1)
    mask = torch.arange(7) < lengths[:, None]
    torch.testing.assert_close(encoder.lstm(x, mask), want, rtol=1e-12, atol=1e-12)
    assert encoder(x, mask).mu.shape == (5, 6)
    torch.testing.assert_close(encoder(x, lengths).mu, encoder(x, mask).mu, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("kind", [LSTMEncoder, VariationalLSTMEncoder])
def test_padding_in_front_is_not_read(kind: type[nn.Module]) -> None:
    """Zeros in front, read as steps, change the state; marked as no steps they do not, wherever they stand."""
    torch.manual_seed(0)
    encoder = kind(4, 6, num_layers=2, bidirectional=True).double().eval()
    first = (lambda out: out) if kind is LSTMEncoder else (lambda out: out.mu)
    x, zeros = _normal(3, 5, 4), torch.zeros(3, 2, 4, dtype=torch.float64)
    steps, none = torch.ones(3, 5, dtype=torch.bool), torch.zeros(3, 2, dtype=torch.bool)
    want = first(encoder(x))
    for parts, mask in (
        ((zeros, x), (none, steps)),
        ((x, zeros), (steps, none)),
        ((zeros, x, zeros), (none, steps, none)),
    ):
        padded = torch.cat(parts, 1)
        torch.testing.assert_close(first(encoder(padded, torch.cat(mask, 1))), want, rtol=1e-12, atol=1e-12)
        assert (first(encoder(padded)) - want).abs().max() > 1e-3


def test_a_decoded_vector_never_meets_a_sequence() -> None:
    """(B, D) against (B, T, D) broadcasts silently when T == B."""
    z, target = torch.randn(4, 8), torch.randn(4, 4, 5)
    prediction = ModalityDecoder(8, 5)(z)
    assert (prediction - target).shape == target.shape  # torch alone sees nothing wrong
    with pytest.raises(ValueError, match=r"reconstruction_loss: expected target of the shape of prediction \(4, 5\)"):
        reconstruction_loss(prediction, target)
    with pytest.raises(ValueError, match="ModalityDecoder: expected num_steps"):
        ModalityDecoder(8, 5, sequence=True)(z)
    with pytest.raises(ValueError, match="ModalityDecoder: expected num_steps"):
        ModalityDecoder(8, 5)(z, 4)
    assert ModalityDecoder(8, 5, sequence=True)(z, 4).shape == target.shape
