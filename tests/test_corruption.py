"""Corruption in training: how often, how, and what it never touches; noise at a ratio per sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from mmrobust import ModalityCorruption, add_noise
from tests.references import corruption as reference

KINDS = ("noise", "zeros", "shuffle", "scale")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kind_of(before: Tensor, after: Tensor, others: Tensor) -> list[str]:
    """Tell from the values what happened to each row."""
    found = []
    for x, y in zip(before, after, strict=True):
        ratio = y / x
        if torch.equal(x, y):
            found.append("none")
        elif not y.any():
            found.append("zeros")
        elif (y == others).all(1).any():
            found.append("shuffle")
        else:
            found.append("scale" if (ratio - ratio[0]).abs().max() < 1e-4 else "noise")
    return found


class TestAddNoisePerSample:
    @pytest.mark.parametrize("steps", [False, True], ids=["vectors", "sequences"])
    def test_equals_the_reference(self, steps: bool) -> None:
        shape = (6, 4, 3) if steps else (6, 3)
        x, ratios = torch.randn(shape, dtype=torch.float64), torch.linspace(-20.0, 15.0, 6, dtype=torch.float64)
        mask = torch.rand(shape[:2] if steps else shape[:1], generator=generator()) < 0.7
        torch.manual_seed(3)
        noise = torch.randn_like(x)
        torch.manual_seed(3)
        dirty = torch.where(mask.unsqueeze(-1), x, torch.nan)
        got = add_noise(dirty, ratios, mask)
        want = reference.add_noise(x.numpy(), ratios.numpy(), noise.numpy(), mask.numpy())
        torch.testing.assert_close(got, torch.from_numpy(want), rtol=1e-12, atol=1e-12)
        assert not mask.all()

    def test_every_sample_has_its_own_ratio(self) -> None:
        x, ratios = torch.randn(4, 50_000, generator=generator()), torch.tensor([-10.0, 0.0, 5.0, 20.0])
        noise = add_noise(x, ratios, generator=generator(1)) - x
        measured = 10 * torch.log10(x.square().mean(1) / noise.square().mean(1))
        assert (measured - ratios).abs().max() < 0.15

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
    def test_dtype_is_that_of_the_input(self, dtype: torch.dtype) -> None:
        x = torch.randn(2, 3).to(dtype)
        assert add_noise(x, torch.tensor([0, 10])).dtype == dtype
        assert add_noise(x[:, 0], torch.zeros(2)).shape == (2,)

    def test_wrong_shape(self) -> None:
        for ratios in (torch.zeros(3), torch.zeros(()), torch.zeros(2, 1)):
            with pytest.raises(ValueError, match=r"add_noise: expected snr_db of shape \(B,\) = \(2,\), got"):
                add_noise(torch.ones(2, 4), ratios)


class TestModalityCorruption:
    @pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("kinds", [KINDS, ("noise", "zeros"), ("scale",)], ids=str)
    def test_rate_and_kinds(self, rate: float, kinds: Sequence[str]) -> None:
        """Every modality of every sample by itself, every kind as often as the next."""
        count = 4000
        x = {name: torch.randn(count, 5, generator=generator(seed)) for seed, name in enumerate("ab")}
        after = ModalityCorruption(rate, kinds=kinds)(x, generator=generator(9))
        names = {m: np.array(kind_of(x[m][:400], after[m][:400], x[m])) for m in x}
        lost = {m: (after[m] != x[m]).any(1).numpy() for m in x}
        for m in x:
            assert abs(lost[m].mean() - rate) <= 4 * (rate * (1 - rate) / count) ** 0.5
            assert set(names[m]) <= {*kinds, "none"}
            observed = [int((names[m] == kind).sum()) for kind in kinds]
            assert rate == 0.0 or len(kinds) == 1 or stats.chisquare(observed).pvalue > 1e-4
        assert abs((lost["a"] & lost["b"]).mean() - rate**2) <= 4 * (rate**2 * (1 - rate**2) / count) ** 0.5

    def test_levels_are_uniform_and_do_not_go_by_the_kind(self) -> None:
        x = {"a": torch.randn(3000, 400, generator=generator())}
        after = ModalityCorruption(0.5, kinds=["noise"], snr_db=(-5.0, 15.0))(x, generator=generator(1))["a"]
        noise = (after - x["a"])[(after != x["a"]).any(1)]
        level = 10 * torch.log10(x["a"].square().mean() / noise.square().mean(1))
        # What is left of chance in a measured level, about 0.4 dB, is far below the width of 20 dB.
        assert stats.kstest(level.numpy(), "uniform", (-5.0, 20.0)).statistic < 0.05

    def test_eval_is_the_identity_and_draws_nothing(self) -> None:
        x = {"a": torch.randn(4, 3), "b": torch.full((4, 2, 3), torch.nan)}
        for corruption in (ModalityCorruption(1.0).eval(), ModalityCorruption(0.0)):
            state = torch.get_rng_state()
            after = corruption(x)
            assert all(after[name] is x[name] for name in x)
            assert torch.equal(torch.get_rng_state(), state)

    def test_generator_decides(self) -> None:
        x, corruption = {"a": torch.randn(50, 3)}, ModalityCorruption(0.5, kinds=KINDS)
        state, before = torch.get_rng_state(), x["a"].clone()
        first, second, other = (corruption(x, generator=generator(seed))["a"] for seed in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(x["a"], before)

    @pytest.mark.parametrize("kind", [*KINDS, "replace"])
    @pytest.mark.parametrize("steps", [False, True], ids=["samples", "steps"])
    def test_what_is_absent_reaches_nothing_real(self, kind: str, steps: bool) -> None:
        """NaN under the mask: the rest is as with zeros there; spoilt samples are zero there, others keep the NaN."""
        x = torch.randn(40, 5, 3, generator=generator())
        mask = torch.rand((40, 5) if steps else (40,), generator=generator(1)) < 0.6
        here = (mask if steps else mask[:, None].expand(40, 5))[..., None].expand(x.shape)
        corruption = ModalityCorruption(0.5, kinds=[kind])
        given = {fill: torch.where(here, x, fill) for fill in (0.0, float("nan"))}
        after = {f: corruption({"a": v}, {"a": mask}, generator=generator(2))["a"] for f, v in given.items()}
        zeros, dirty = after.values()
        assert torch.equal(zeros[here], dirty[here])
        assert (zeros[~here] == 0).all()
        touched = (zeros != given[0.0]).flatten(1).any(1)
        assert 10 < touched.sum() < 30
        assert (dirty[touched][~here[touched]] == 0).all()
        clean = ~touched & here.flatten(1).any(1)
        assert torch.equal(dirty[clean].isnan(), ~here[clean])

    def test_shuffled_steps_come_from_real_ones(self) -> None:
        """A short sequence given to a long one leaves zeros, not its padding."""
        mask = torch.tensor([[True, False, False], [True, True, True]])
        x = torch.tensor([[1.0, torch.nan, torch.nan], [2.0, 3.0, 4.0]]).unsqueeze(-1)
        after = ModalityCorruption(1.0, kinds=["shuffle"])({"a": x}, {"a": mask})["a"].squeeze(-1)
        assert after.tolist() == [[2.0, 0.0, 0.0], [1.0, 0.0, 0.0]]

    @pytest.mark.parametrize(
        ("options", "error", "says"),
        [
            ({"rate": 1.5}, ValueError, r"expected rate in \[0.0, 1.0\], got 1.5"),
            ({"rate": "often"}, TypeError, "expected rate to be a number, got str"),
            (
                {"rate": 0.5, "kinds": ["noise", "blur"]},
                ValueError,
                "expected kinds to be one of 'noise', .* got 'blur'",
            ),
            ({"rate": 0.5, "kinds": []}, ValueError, "expected kinds with at least one of noise, .* got none"),
            ({"rate": 0.5, "snr_db": (5.0, 0.0)}, ValueError, r"expected snr_db\[1\] in \[5.0, inf\), got 0.0"),
            ({"rate": 0.5, "snr_db": (float("nan"), 0.0)}, ValueError, r"expected snr_db\[0\]"),
        ],
    )
    def test_wrong_options(self, options: dict[str, object], error: type[Exception], says: str) -> None:
        with pytest.raises(error, match=f"ModalityCorruption: {says}"):
            ModalityCorruption(**options)
