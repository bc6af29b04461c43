"""Presence and corruption: distributions, schedules, and what no draw may ever do."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from mmrobust import (
    ModalityDropout,
    add_noise,
    all_presence_patterns,
    drop_frames,
    presence_from_zeros,
    random_presence,
    scale_rows,
    shuffle_rows,
)
from tests.references import presence as reference

DRAWS = 20_000
presences = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counts(rows: Tensor) -> dict[tuple[bool, ...], int]:
    found: dict[tuple[bool, ...], int] = {}
    for pattern in map(tuple, rows.tolist()):
        found[pattern] = found.get(pattern, 0) + 1
    return found


def chi_square(rows: Tensor, wanted: dict[tuple[bool, ...], float]) -> float:
    """p-value of the observed patterns under a distribution; patterns outside it are an error."""
    found = counts(rows)
    wanted = {pattern: share for pattern, share in wanted.items() if share > 0}
    assert set(found) <= set(wanted), f"impossible patterns {set(found) - set(wanted)}"
    if len(wanted) == 1:
        return 1.0
    observed = [found.get(pattern, 0) for pattern in wanted]
    return float(stats.chisquare(observed, [share * len(rows) for share in wanted.values()]).pvalue)


class TestModalityDropout:
    @pytest.mark.parametrize("here", list(itertools.product((True, False), repeat=3)), ids=str)
    @pytest.mark.parametrize("p", [0.15, 0.7, 1.0])
    def test_every_subset_is_equally_likely(self, here: tuple[bool, ...], p: float) -> None:
        """Chi-square against the distribution: with probability p one of the proper subsets goes."""
        present = torch.tensor(here).expand(DRAWS, 3)
        drawn = ModalityDropout(p)(present, generator=generator())
        assert chi_square(drawn, reference.dropped_distribution(np.array(here), p)) > 1e-4

    def test_marginal_of_one_modality_is_half_of_p(self) -> None:
        drawn = ModalityDropout(0.4)(torch.ones(DRAWS, 3, dtype=torch.bool), generator=generator())
        assert (1 - drawn.double().mean(0)).sub(0.2).abs().max() < 4 * (0.2 * 0.8 / DRAWS) ** 0.5

    @pytest.mark.parametrize(
        ("weights", "shares"), [([1.0], {1: 1.0}), ([0.0, 1.0], {2: 1.0}), ([1.0, 3.0], {1: 0.25, 2: 0.75})]
    )
    def test_size_weights(self, weights: list[float], shares: dict[int, float]) -> None:
        drawn = ModalityDropout(1.0, size_weights=weights)(
            torch.ones(DRAWS, 4, dtype=torch.bool), generator=generator()
        )
        lost = 4 - drawn.sum(1)
        for size, share in shares.items():
            assert abs(float((lost == size).double().mean()) - share) < 0.015
        sets = {pattern: count for pattern, count in counts(drawn).items() if sum(pattern) == 4 - min(shares)}
        assert stats.chisquare(list(sets.values())).pvalue > 1e-4

    def test_sizes_that_a_row_cannot_lose_are_left_out(self) -> None:
        present = torch.tensor([[True, True, False, False]]).expand(50, 4)
        assert torch.equal(ModalityDropout(1.0, size_weights=[0.0, 1.0])(present), present)

    @settings(max_examples=40)
    @given(rows=presences, p=st.floats(0.0, 1.0), seed=st.integers(0, 9))
    def test_never_resurrects_and_never_drops_the_last(self, rows: list[list[bool]], p: float, seed: int) -> None:
        present = torch.tensor(rows)
        drawn = ModalityDropout(p)(present, generator=generator(seed))
        assert not (drawn & ~present).any()
        assert torch.equal(drawn.any(1), present.any(1))

    @pytest.mark.parametrize(("warmup", "ramp"), [(0, 0), (3, 0), (0, 4), (3, 4), (20, 20)])
    def test_schedule_by_epoch(self, warmup: int, ramp: int) -> None:
        """The share of samples that lose something follows the table, boundaries included."""
        drop = ModalityDropout(0.8, warmup_epochs=warmup, ramp_epochs=ramp)
        full = torch.ones(4000, 3, dtype=torch.bool)
        for epoch in sorted({0, warmup - 1, warmup, warmup + 1, warmup + ramp // 2, warmup + ramp, warmup + ramp + 7}):
            if epoch < 0:
                continue
            drop.set_epoch(epoch)
            want = 0.8 * reference.schedule(epoch, warmup, ramp)
            share = float((~drop(full, generator=generator(epoch)).all(1)).double().mean())
            assert abs(share - want) <= 4 * (want * (1 - want) / 4000) ** 0.5, f"epoch {epoch}: {share} against {want}"

    def test_epoch_survives_a_checkpoint(self) -> None:
        first = ModalityDropout(1.0, warmup_epochs=5)
        first.set_epoch(7)
        second = ModalityDropout(1.0, warmup_epochs=5)
        second.load_state_dict(first.state_dict())
        full = torch.ones(64, 3, dtype=torch.bool)
        assert not second(full).all()
        assert torch.equal(second(full, generator=generator()), first(full, generator=generator()))

    def test_resumed_run_continues_exactly(self) -> None:
        """Killed after epoch 3 of 6 and resumed: the masks of the rest are those of the run that went through."""
        full = torch.ones(32, 3, dtype=torch.bool)

        def run(drop: ModalityDropout, source: torch.Generator, epochs: range) -> list[Tensor]:
            masks = []
            for epoch in epochs:
                drop.set_epoch(epoch)
                masks.append(drop(full, generator=source))
            return masks

        whole = run(ModalityDropout(0.9, warmup_epochs=2, ramp_epochs=3), source := generator(), range(6))
        drop, source = ModalityDropout(0.9, warmup_epochs=2, ramp_epochs=3), generator()
        run(drop, source, range(3))
        saved = copy.deepcopy((drop.state_dict(), source.get_state()))
        resumed, again = ModalityDropout(0.9, warmup_epochs=2, ramp_epochs=3), torch.Generator()
        resumed.load_state_dict(saved[0])
        again.set_state(saved[1])
        assert int(resumed.schedule.epoch) == 2
        for got, want in zip(run(resumed, again, range(3, 6)), whole[3:], strict=True):
            assert torch.equal(got, want)

    def test_generator_decides_and_the_global_state_stays(self) -> None:
        full, drop = torch.ones(100, 3, dtype=torch.bool), ModalityDropout(0.5)
        state = torch.get_rng_state()
        first, second, other = (drop(full, generator=generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), state)

    def test_eval_is_the_identity(self) -> None:
        present = random_presence(50, 4, 0.5)
        assert torch.equal(ModalityDropout(1.0).eval()(present), present)

    def test_one_modality_is_never_dropped(self) -> None:
        present = torch.tensor([[True], [False]])
        assert torch.equal(ModalityDropout(1.0)(present), present)

    @pytest.mark.parametrize("weights", [[-1.0], [0.0, 0.0], [float("nan")]])
    def test_wrong_size_weights(self, weights: list[float]) -> None:
        with pytest.raises(ValueError, match=r"ModalityDropout: expected size_weights"):
            ModalityDropout(0.5, size_weights=weights)


class TestPatterns:
    @pytest.mark.parametrize("modalities", [1, 2, 3, 5])
    def test_all_patterns_once(self, modalities: int) -> None:
        patterns = all_presence_patterns(modalities)
        assert set(map(tuple, patterns.tolist())) == reference.all_presence_patterns(modalities)
        assert len(patterns) == 2**modalities - 1
        assert patterns[0].all()

    @pytest.mark.parametrize("rate", [0.0, 0.3, 0.9, 1.0])
    def test_random_presence_rate(self, rate: float) -> None:
        """Independent per modality, except that a row that would be empty keeps one, drawn evenly."""
        drawn = random_presence(DRAWS, 3, rate, generator=generator())
        assert drawn.any(1).all()
        wanted = {
            pattern: np.prod([1 - rate if here else rate for here in pattern])
            + (rate**3 / 3 if sum(pattern) == 1 else 0.0)
            for pattern in reference.all_presence_patterns(3)
        }
        assert chi_square(drawn, wanted) > 1e-4

    def test_random_presence_sizes_and_generator(self) -> None:
        assert random_presence(0, 3, 0.5).shape == (0, 3)
        assert torch.equal(
            random_presence(9, 3, 0.5, generator=generator(3)), random_presence(9, 3, 0.5, generator=generator(3))
        )
        for arguments, name in (((-1, 3, 0.5), "batch"), ((2, 0, 0.5), "modalities"), ((2, 3, 1.5), "rate")):
            with pytest.raises(ValueError, match=f"random_presence: expected {name}"):
                random_presence(*arguments)

    def test_presence_from_zeros_keeps_the_order_of_a_mapping(self) -> None:
        x = {"z": torch.tensor([[1.0], [0.0]]), "a": torch.tensor([[0.0], [0.0]])}
        assert presence_from_zeros(x).tolist() == [[True, False], [False, False]]
        assert presence_from_zeros(torch.tensor([[float("nan")], [-0.0]])).tolist() == [True, False]


class TestAddNoise:
    @pytest.mark.parametrize("snr", [-10.0, 0.0, 5.0, 20.0])
    def test_ratio_is_measured_back(self, snr: float) -> None:
        """Per sample, whatever its scale, over the entries that are real."""
        scale = torch.tensor([1e-3, 1.0, 1e3]).reshape(3, 1, 1)
        x = torch.randn(3, 400, 50, generator=generator()) * scale
        mask = torch.rand(3, 400, generator=generator(1)) < 0.5
        noise = (add_noise(x, snr, mask, generator=generator(2)) - x)[mask.sum(1) > 0]
        for sample in range(3):
            signal, spoilt = x[sample][mask[sample]], noise[sample][mask[sample]]
            measured = float(10 * torch.log10(signal.square().mean() / spoilt.square().mean()))
            assert abs(measured - snr) < 0.15
            assert abs(float(spoilt.mean() / spoilt.std())) < 0.03

    def test_vector_batch_has_a_ratio_per_sample(self) -> None:
        """Numbers ``(B,)`` are B samples of one entry, not one sample of B entries."""
        x = torch.tensor([1e-6, 1e6])
        assert abs(float(add_noise(x, 60.0, generator=generator())[0])) < 1e-3

    def test_absent_is_unread_and_silence_stays_silent(self) -> None:
        x = torch.stack([torch.full((5,), float("nan")), torch.zeros(5), torch.ones(5)])
        spoilt = add_noise(x, 0.0, torch.tensor([False, True, True]), generator=generator())
        assert (spoilt[:2] == 0).all()
        assert spoilt[2].isfinite().all()
        assert not torch.equal(spoilt[2], x[2])


class TestShuffleRows:
    @settings(max_examples=40)
    @given(present=st.lists(st.booleans(), min_size=0, max_size=9), seed=st.integers(0, 99))
    def test_derangement_of_what_is_present(self, present: list[bool], seed: int) -> None:
        x = torch.arange(1.0, len(present) + 1).reshape(-1, 1)
        mask = torch.tensor(present, dtype=torch.bool)
        shuffled = shuffle_rows(torch.where(mask[:, None], x, float("nan")), mask, generator=generator(seed))
        assert (shuffled[~mask] == 0).all()
        assert sorted(shuffled[mask].flatten().tolist()) == x[mask].flatten().tolist()
        if mask.sum() > 1:
            assert (shuffled[mask] != x[mask]).all(), "a row kept its own"
        else:
            assert torch.equal(shuffled[mask], x[mask])

    def test_any_other_row_may_come(self) -> None:
        x = torch.arange(4.0).reshape(4, 1)
        first = torch.stack([shuffle_rows(x, generator=generator(seed))[0, 0] for seed in range(300)])
        found = [int((first == value).sum()) for value in (1.0, 2.0, 3.0)]
        assert sum(found) == 300
        assert stats.chisquare(found).pvalue > 1e-4

    def test_sequences_and_labels(self) -> None:
        assert shuffle_rows(torch.randn(3, 4, 5)).shape == (3, 4, 5)
        assert shuffle_rows(torch.arange(3)).dtype == torch.int64


class TestScaleRows:
    def test_gain_is_uniform_in_decibels_and_the_same_within_a_sample(self) -> None:
        gain = scale_rows(torch.ones(DRAWS, 2), 12.0, generator=generator())
        assert torch.equal(gain[:, 0], gain[:, 1])
        decibels = (20 * torch.log10(gain[:, 0])).numpy()
        assert stats.kstest(decibels, "uniform", (-12.0, 24.0)).pvalue > 1e-4

    def test_absent_is_unread(self) -> None:
        x = torch.full((2, 3, 2), float("inf"))
        assert (scale_rows(x, 6.0, torch.zeros(2, 3, dtype=torch.bool)) == 0).all()
        with pytest.raises(ValueError, match="scale_rows: expected max_db"):
            scale_rows(x, -1.0)


class TestDropFrames:
    def test_rate_and_subset(self) -> None:
        mask = torch.rand(200, 100, generator=generator()) < 0.5
        kept = drop_frames(mask, 0.3, generator=generator(1))
        assert not (kept & ~mask).any()
        assert abs(float(kept.sum() / mask.sum()) - 0.7) < 0.02
        assert torch.equal(drop_frames(mask, 0.0), mask)
        assert not drop_frames(mask, 1.0).any()

    def test_wrong_input(self) -> None:
        with pytest.raises(TypeError, match="drop_frames: expected mask"):
            drop_frames(torch.ones(2, 3), 0.5)
        with pytest.raises(ValueError, match="drop_frames: expected rate"):
            drop_frames(torch.ones(2, 3, dtype=torch.bool), 2.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (4, 2, 3)], ids=str)
def test_corruptions_keep_dtype_shape_and_input(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=generator()).to(dtype)
    before = x.clone()
    for spoil in (
        lambda v, g: add_noise(v, 5.0, generator=g),
        lambda v, g: scale_rows(v, 6.0, generator=g),
        lambda v, g: shuffle_rows(v, generator=g),
    ):
        state = torch.get_rng_state()
        first, second = spoil(x, generator(4)), spoil(x, generator(4))
        assert first.dtype == dtype
        assert first.shape == shape
        assert first.isfinite().all()
        assert torch.equal(first, second)
        assert torch.equal(x, before)
        assert torch.equal(torch.get_rng_state(), state), "drew from the global generator"
