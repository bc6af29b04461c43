"""Rows spoilt on purpose: how often, in which way, and how much of each is said to be no signal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from mmrobust import ModalityCorruption, spoil_rows
from tests.references import corruption as reference

KINDS = ("noise", "zeros", "shuffle", "scale", "replace")
LOUD = (40.0, 40.0)  # a ratio at which a noisy row is still told from a replaced one
NAN = float("nan")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kinds_of(before: Tensor, after: Tensor) -> np.ndarray:
    """Tell from the values what happened to each row; noise must be at 40 dB."""
    ratio = after / before
    small = (after - before).square().mean(1) < 0.01 * before.square().mean(1)
    found = {
        "none": (after == before).all(1),
        "zeros": (after == 0).all(1),
        "shuffle": torch.isin(after[:, 0], before[:, 0]),
        "scale": (ratio - ratio[:, :1]).abs().amax(1) < 1e-4,
        "noise": small,
    }
    kinds = np.full(len(before), "replace", dtype="<U7")
    for kind in reversed(found):
        kinds[found[kind].numpy()] = kind
    return kinds


@pytest.mark.parametrize("steps", [False, True], ids=["vectors", "sequences"])
@pytest.mark.parametrize("kinds", [("noise", "zeros", "replace"), ("replace",), ("zeros", "noise")], ids=str)
def test_equals_the_reference(steps: bool, kinds: tuple[str, ...]) -> None:
    """With the very numbers that were drawn: rows and shares, under a mask with NaN below it."""
    shape = (40, 4, 3) if steps else (40, 3)
    x = torch.randn(shape, dtype=torch.float64, generator=generator())
    mask = torch.rand(shape[:2] if steps else shape[:1], generator=generator(1)) < 0.7
    here = mask.unsqueeze(-1).expand(shape)
    torch.manual_seed(5)
    got = spoil_rows(torch.where(here, x, NAN), 0.7, mask, kinds=kinds, snr_db=(-5.0, 10.0))
    torch.manual_seed(5)
    draws = torch.rand(2, 40).double().numpy()
    noise = {kind: torch.randn(shape, dtype=torch.float64).numpy() for kind in kinds if kind != "zeros"}
    ratio, did = reference.ratios(draws[1], (-5.0, 10.0)), reference.kinds_of(draws[0], 0.7, kinds)
    torch.testing.assert_close(got.share, torch.from_numpy(reference.shares(did, ratio)), rtol=1e-12, atol=1e-12)
    assert {*did} == {*kinds, None}
    clean = torch.where(here, x, 0.0).numpy()
    want = {"zeros": np.zeros(shape), None: torch.where(here, x, NAN).numpy()}
    if "noise" in kinds:
        want["noise"] = reference.add_noise(clean, ratio, noise["noise"], mask.numpy())
    if "replace" in kinds:
        want["replace"] = reference.replace(clean, noise["replace"], mask.numpy())
    rows = torch.from_numpy(np.stack([want[kind][b] for b, kind in enumerate(did)]))
    torch.testing.assert_close(got.x, rows, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kinds", [KINDS, ("replace", "shuffle"), ("scale",)], ids=str)
def test_rate_and_kinds(rate: float, kinds: tuple[str, ...]) -> None:
    """Every kind as often as the next, and each with the share that belongs to it."""
    count = 6000
    x = torch.randn(count, 8, generator=generator())
    after, share = spoil_rows(x, rate, kinds=kinds, snr_db=LOUD, generator=generator(1))
    did = kinds_of(x, after)
    assert set(did) <= {*kinds, "none"}
    assert abs((did != "none").mean() - rate) <= 4 * (rate * (1 - rate) / count) ** 0.5
    observed = [int((did == kind).sum()) for kind in kinds]
    assert rate == 0.0 or len(kinds) == 1 or stats.chisquare(observed).pvalue > 1e-4
    told = {"none": 0.0, "scale": 0.0, "zeros": 1.0, "shuffle": 1.0, "replace": 1.0, "noise": 1 / (1 + 1e4)}
    np.testing.assert_allclose(share.numpy(), [told[kind] for kind in did], rtol=1e-5)


def test_kind_and_level_do_not_go_together() -> None:
    """The level is uniform in decibels among the rows that get noise, whichever kinds stand beside it."""
    x = torch.randn(20_000, 2, generator=generator())
    share = spoil_rows(x, 0.5, kinds=["zeros", "noise"], snr_db=(-5.0, 15.0), generator=generator(1)).share.double()
    noisy = share[(share > 0) & (share < 1)]
    level = -10 * torch.log10(noisy / (1 - noisy))
    assert stats.kstest(level.numpy(), "uniform", (-5.0, 20.0)).pvalue > 1e-4


def test_the_share_is_that_of_the_power() -> None:
    x = torch.randn(60, 20_000, generator=generator()) * torch.logspace(-3, 3, 60).unsqueeze(1)
    after, share = spoil_rows(x, 1.0, kinds=["noise"], snr_db=(-20.0, 20.0), generator=generator(1))
    noise, signal = (after - x).square().mean(1), x.square().mean(1)
    torch.testing.assert_close(share, noise / (noise + signal), rtol=0.0, atol=0.02)
    assert share.min() < 0.1
    assert share.max() > 0.9


class TestReplace:
    def test_as_loud_as_the_sample_and_like_nothing_in_it(self) -> None:
        """Loudness per sample, offsets included; no part of the sample is left."""
        x = (torch.randn(20, 40_000, generator=generator()) + 2.0) * torch.logspace(-3, 3, 20).unsqueeze(1)
        y = spoil_rows(x, 1.0, kinds=["replace"], generator=generator(1)).x
        torch.testing.assert_close(y.square().mean(1), x.square().mean(1), rtol=0.05, atol=0.0)
        assert torch.nn.functional.cosine_similarity(x, y).abs().max() < 5 / 40_000**0.5
        again = torch.nn.functional.cosine_similarity(y[:-1], y[1:])
        assert again.abs().max() < 5 / 40_000**0.5

    def test_only_what_is_real_counts(self) -> None:
        mask = torch.arange(4000).expand(6, 4000) < torch.tensor([[4000], [3000], [2000], [1000], [500], [0]])
        x = torch.where(mask, torch.randn(6, 4000, generator=generator()), NAN).unsqueeze(-1)
        y = spoil_rows(x, 1.0, mask, kinds=["replace"], generator=generator(1)).x
        assert (y[~mask] == 0).all()
        for row, loud, here in zip(y[:5], x[:5], mask[:5], strict=True):
            torch.testing.assert_close(row[here].square().mean(), loud[here].square().mean(), rtol=0.15, atol=0.0)

    def test_noise_is_as_fine_as_its_own_numbers(self) -> None:
        """Not a difference of two large ones: in bfloat16 those would be whole."""
        y = spoil_rows(torch.full((4, 500), 256.0).bfloat16(), 1.0, kinds=["replace"], generator=generator()).x
        assert (y.float() % 1 != 0).float().mean() > 0.2

    def test_silence_stays_silent(self) -> None:
        assert not spoil_rows(torch.zeros(5, 3), 1.0, kinds=["replace"]).x.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [False, True], ids=["samples", "steps"])
def test_what_is_absent_is_not_read(kind: str, steps: bool) -> None:
    """NaN under the mask: the rest is as with zeros; a spoilt sample has zeros there, another one keeps its own."""
    x = torch.randn(60, 5, 3, generator=generator())
    mask = torch.rand((60, 5) if steps else (60,), generator=generator(1)) < 0.6
    here = (mask if steps else mask[:, None].expand(60, 5))[..., None].expand(x.shape)
    zeros, dirty = (
        spoil_rows(torch.where(here, x, fill), 0.5, mask, kinds=[kind], generator=generator(2)) for fill in (0.0, NAN)
    )
    assert torch.equal(zeros.share, dirty.share)
    assert torch.equal(zeros.x[here], dirty.x[here])
    assert (zeros.x[~here] == 0).all()
    untouched = (zeros.x == torch.where(here, x, 0.0)).flatten(1).all(1)
    assert 10 < untouched.sum() < 50
    assert not dirty.x[~untouched].isnan().any()
    assert (zeros.share[untouched & here.flatten(1).any(1)] == 0).all()


def test_the_only_sample_has_no_other_to_be_shuffled_with() -> None:
    x = torch.randn(3, 4)
    alone = torch.tensor([False, True, False])
    for given, mask in ((x[:1], None), (x, alone), (x.unsqueeze(1), alone.unsqueeze(1))):
        after, share = spoil_rows(given, 1.0, mask, kinds=["shuffle"])
        assert torch.equal(after[-2:-1] if len(given) > 1 else after, given[-2:-1] if len(given) > 1 else given)
        assert not share.any()
    assert spoil_rows(x, 1.0, torch.tensor([True, True, False]), kinds=["shuffle"]).share.all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (4,), (4, 2, 3)], ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.9])
def test_dtypes_shapes_and_inputs(dtype: torch.dtype, shape: tuple[int, ...], rate: float) -> None:
    x = torch.randn(shape, generator=generator()).to(dtype)
    before = x.clone()
    found = spoil_rows(x, rate, kinds=KINDS, generator=generator(1))
    assert found._fields == ("x", "share")
    assert found.x.dtype == dtype and found.x.shape == shape and found.x.isfinite().all()
    assert found.share.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.share.shape == shape[:1]
    assert torch.equal(x, before)


def test_the_generator_decides_and_a_rate_of_zero_draws_nothing() -> None:
    x, state = torch.randn(50, 3), torch.get_rng_state()
    first, second, other = (spoil_rows(x, 0.5, kinds=KINDS, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.x, second.x) and torch.equal(first.share, second.share)
    assert not torch.equal(first.x, other.x)
    assert torch.equal(spoil_rows(x, 0.0).x, x)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_module_spoils_as_the_function_does() -> None:
    x, mask = {"a": torch.randn(30, 4), "b": torch.randn(30, 2, 3)}, {"b": torch.rand(30, 2) < 0.7}
    got = ModalityCorruption(0.6, kinds=KINDS, snr_db=(0.0, 5.0))(x, mask, generator=generator(3))
    source = generator(3)
    for name in x:
        want = spoil_rows(x[name], 0.6, mask.get(name), kinds=KINDS, snr_db=(0.0, 5.0), generator=source).x
        assert torch.equal(got[name], want)
