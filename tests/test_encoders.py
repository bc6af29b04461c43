"""Encoders beyond the contracts: initial values, bounds, samples, packing, decoders over time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmrobust import (
    FeatureTokenizer,
    LSTMEncoder,
    MLPEncoder,
    ModalityDecoder,
    ProjectionHead,
    VariationalLSTMEncoder,
    VariationalMLPEncoder,
    reparameterize,
)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


VARIATIONAL = {
    "mlp": lambda **options: VariationalMLPEncoder(5, 6, **options),
    "lstm": lambda **options: VariationalLSTMEncoder(5, 6, **options),
}


def _x(kind: str, batch: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return (_normal(batch, 5) if kind == "mlp" else _normal(batch, 3, 5)).to(dtype)


@pytest.mark.parametrize("kind", VARIATIONAL)
@pytest.mark.parametrize("bound", ["soft", "clamp"])
@pytest.mark.parametrize("start", [-9.5, -2.0, 0.0, 3.0])
def test_log_variance_starts_constant(kind: str, bound: str, start: float) -> None:
    encoder = VARIATIONAL[kind](logvar_bound=bound, init_logvar=start)
    out = encoder(100 * _x(kind))
    torch.testing.assert_close(out.logvar, torch.full_like(out.logvar, start))
    torch.testing.assert_close(out.std, (0.5 * out.logvar).exp())


@settings(max_examples=30)
@given(raw=st.floats(-1e30, 1e30), bound=st.sampled_from(["soft", "clamp"]))
def test_log_variance_is_bounded_and_rising(raw: float, bound: str) -> None:
    encoder = VariationalMLPEncoder(5, 6, logvar_bound=bound)
    with torch.no_grad():
        encoder.head.logvar.bias.fill_(raw)
        low = encoder(torch.zeros(1, 5)).logvar
        encoder.head.logvar.bias.add_(abs(raw) * 0.1 + 0.1)
        high = encoder(torch.zeros(1, 5)).logvar
    assert (low.abs() <= 10).all()
    assert (high >= low).all()


@pytest.mark.parametrize("kind", VARIATIONAL)
def test_samples_have_the_mean_and_std_that_are_returned(kind: str) -> None:
    torch.manual_seed(0)
    encoder = VARIATIONAL[kind](init_logvar=1.0)
    x = _x(kind, 1).expand(40_000, *_x(kind, 1).shape[1:])
    with torch.no_grad():
        out = encoder(x)
    noise = (out.z - out.mu) / out.std
    assert noise.mean(0).abs().max() < 0.03
    assert (noise.std(0) - 1).abs().max() < 0.03
    assert noise.T.corrcoef().fill_diagonal_(0).abs().max() < 0.03


@pytest.mark.parametrize("kind", VARIATIONAL)
def test_sample_overrides_the_mode(kind: str) -> None:
    encoder, x = VARIATIONAL[kind](), _x(kind)
    for training in (True, False):
        encoder.train(training)
        out = encoder(x, sample=False)
        assert torch.equal(out.z, out.mu)
        out = encoder(x, sample=True)
        assert not torch.equal(out.z, out.mu)
        out = encoder(x)
        assert torch.equal(out.z, out.mu) != training


def test_absent_rows_are_the_prior_in_every_mode() -> None:
    for kind, mask in (("mlp", torch.zeros(4, dtype=torch.bool)), ("lstm", torch.zeros(4, 3, dtype=torch.bool))):
        out = VARIATIONAL[kind](init_logvar=2.0)(_x(kind), mask, sample=True)
        assert (out.mu == 0).all()
        assert (out.logvar == 0).all()
        assert (out.std == 1).all()
        assert (out.z == 0).all()


def test_sequences_without_steps_are_empty() -> None:
    """T = 0 says as little as a mask of False, with and without a mask, in both directions."""
    for mask in (None, torch.zeros(2, 0, dtype=torch.bool)):
        out = VariationalLSTMEncoder(5, 6, bidirectional=True)(torch.zeros(2, 0, 5), mask)
        assert (out.mu == 0).all()
        assert (out.std == 1).all()
        assert (LSTMEncoder(5, 6, bidirectional=True)(torch.zeros(2, 0, 5), mask) == 0).all()


@settings(max_examples=15)
@given(
    keep=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4),
    layers=st.integers(1, 2),
    both=st.booleans(),
)
def test_holes_are_closed(keep: list[list[bool]], layers: int, both: bool) -> None:
    """A sequence with holes is the sequence of its real steps, alone and without a mask."""
    torch.manual_seed(0)
    encoder = LSTMEncoder(5, 6, num_layers=layers, bidirectional=both).double().eval()
    mask = torch.tensor(keep)
    x = _normal(len(keep), 6, 5)
    got = encoder(torch.where(mask[..., None], x, float("nan")), mask)
    for row in range(len(keep)):
        want = encoder(x[row : row + 1, mask[row]])
        torch.testing.assert_close(got[row : row + 1], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_lengths_are_masks(dtype: torch.dtype) -> None:
    encoder, x, lengths = LSTMEncoder(5, 6).eval(), _x("lstm"), torch.tensor([3, 1, 0, 2])
    want = encoder(x, torch.arange(3) < lengths[:, None])
    assert torch.equal(encoder(x, lengths.to(dtype)), want)
    with pytest.raises(ValueError, match=r"LSTMEncoder: expected mask of shape \(B,\) = \(4,\), got \(3,\)"):
        encoder(x, lengths[:3])
    with pytest.raises(TypeError, match="LSTMEncoder: expected mask"):
        encoder(x, lengths.float())
    with pytest.raises(ValueError, match="LSTMEncoder: expected mask"):
        encoder(x, lengths > 0)


def test_between_layers_there_is_dropout_only_in_training() -> None:
    encoder = LSTMEncoder(5, 6, 0.5, num_layers=2)
    x = _x("lstm")
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


def test_residual_is_the_identity_when_the_sizes_agree() -> None:
    assert isinstance(VariationalMLPEncoder(6, 6).residual, nn.Identity)
    encoder = VariationalMLPEncoder(6, 6)
    with torch.no_grad():
        for layer in (encoder.layer1, encoder.layer2):
            layer[1].weight.zero_()
            layer[1].bias.zero_()
        encoder.head.mu.weight.copy_(torch.eye(6))
        encoder.head.mu.bias.zero_()
    x = torch.randn(3, 6)
    torch.testing.assert_close(encoder(x).mu, x)


def test_stacks_of_the_published_branches() -> None:
    deep = MLPEncoder(100, [48, 24, 12, 6], dropout=0.5, activation="gelu", normalization="layer")
    kinds = [type(layer).__name__ for layer in deep.layers]
    assert kinds == ["Dropout", *["Linear", "LayerNorm", "GELU", "Dropout"] * 4]
    assert [layer.p for layer in deep.layers if isinstance(layer, nn.Dropout)] == [0.0, 0.5, 0.5, 0.5, 0.5]
    rates = MLPEncoder(9, [5, 4], dropout=[0.1, 0.2], input_dropout=0.3)
    assert [layer.p for layer in rates.layers if isinstance(layer, nn.Dropout)] == [0.3, 0.1, 0.2]
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in deep.modules())


def test_decoded_steps_differ_and_do_not_depend_on_the_length() -> None:
    decoder, z = ModalityDecoder(6, 5, sequence=True).eval(), _x("mlp")
    z = torch.cat([z, z[:, :1]], dim=1)
    longer = decoder(z, 7)
    torch.testing.assert_close(decoder(z, 4), longer[:, :4])
    assert (longer[:, 1:] - longer[:, :-1]).abs().amax(-1).min() > 1e-4
    assert decoder(z, 0).shape == (4, 0, 5)


def test_projection_of_any_leading_shape() -> None:
    head = ProjectionHead(5, 4)
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(head(x), head(x.flatten(0, 1)).unflatten(0, (2, 3)))
    torch.testing.assert_close(head(x).norm(dim=-1), torch.ones(2, 3))


def test_tokens_per_feature_read_one_feature_each() -> None:
    """The Jacobian is diagonal per feature, and full for the dense form, which costs D times the parameters."""
    for mode, parameters in (("per_feature", 2 * 5 * 3), ("dense", 5 * 5 * 3 + 5 * 3)):
        tokenizer = FeatureTokenizer(5, 3, mode=mode).double()
        assert sum(p.numel() for p in tokenizer.parameters()) == parameters
        jacobian = torch.autograd.functional.jacobian(tokenizer, _normal(1, 5))[0, :, :, 0]
        other = jacobian.masked_fill(torch.eye(5, dtype=torch.bool)[:, None], 0.0)
        assert bool((other == 0).all()) == (mode == "per_feature")


def test_reparameterize() -> None:
    mu, logvar = _normal(50_000, 2), torch.tensor([-1.0, 2.0], dtype=torch.float64).expand(50_000, 2)
    first, second = (reparameterize(mu, logvar, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    noise = first - mu
    torch.testing.assert_close(noise.std(0), (0.5 * logvar[0]).exp(), rtol=0.02, atol=0.0)
    assert noise.mean(0).abs().max() < 0.03
    mu, logvar = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    z = reparameterize(mu, logvar, generator=torch.Generator().manual_seed(1))
    z.sum().backward()
    torch.testing.assert_close(mu.grad, torch.ones(3))
    torch.testing.assert_close(logvar.grad, 0.5 * z.detach())  # dz / dl = std * eps / 2, std = 1
    with pytest.raises(ValueError, match="reparameterize: expected logvar of the shape of mu"):
        reparameterize(torch.zeros(2, 3), torch.zeros(3))


@pytest.mark.parametrize("scale", [1e14, 1e16, 1e18, 1e30])
def test_wide_layer_norms_take_features_of_any_size(scale: float) -> None:
    """A layer norm adds up as many squares as it is wide; a sum that overflows would make every row alike."""
    torch.manual_seed(0)
    encoder, x = MLPEncoder(3, [2048, 8], normalization="layer").eval(), torch.randn(4, 3)
    torch.testing.assert_close(encoder(x * scale), encoder(x * 1e10), rtol=1e-3, atol=1e-3)
