"""Input quality: what a modality looks like, what stands out from it, and weights that follow."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mmrobust import (
    ModalityCorruption,
    ModalityQuality,
    UncertaintyWeightedFusion,
    add_noise,
    fit_reference,
    novelty_statistics,
    quality_loss,
)
from tests.references import quality as reference

RESIDUAL, SPREAD, ENERGY, NEAREST = range(4)


def rows(count: int, width: int, rank: int, seed: int, *, noise: float = 0.05, gain: float = 0.0) -> Tensor:
    """Draw rows of low rank with a little noise; the subspace goes by width and rank alone, the rows by the seed."""
    basis = torch.randn(rank, width, generator=torch.Generator().manual_seed(1000 * width + rank))
    source = torch.Generator().manual_seed(seed)
    loud = torch.exp(gain * torch.randn(count, 1, generator=source))
    return loud * (torch.randn(count, rank, generator=source) @ basis) + noise * torch.randn(
        count, width, generator=source
    )


def auroc(clean: Tensor, spoilt: Tensor) -> float:
    return float(roc_auc_score([0] * len(clean) + [1] * len(spoilt), torch.cat([clean, spoilt]).numpy()))


class TestFitReference:
    @pytest.mark.parametrize(
        ("count", "width", "options"),
        [
            (200, 12, {"max_components": 4, "explained": 0.99}),  # the size decides
            (200, 12, {"explained": 0.6}),  # the share decides
            (40, 12, {"explained": 0.999}),  # the number of rows decides
            (30, 40, {"explained": 0.999, "num_rows": 64}),  # fewer rows than features, and than examples
            (2100, 6, {"max_components": 3}),  # every second row is decomposed
        ],
    )
    def test_equals_the_reference(self, count: int, width: int, options: dict[str, Any]) -> None:
        x = (rows(count, width, 5, 0, noise=0.5) + 3.0).double()
        found, want = fit_reference(x, **options), reference.fit_reference(x.numpy(), **options)
        used = len(want.components)
        assert used > 0
        assert found.components.shape[0] == min(options.get("max_components", 64), width - 1)
        close = {
            "mean": (found.mean, want.mean),
            "scale": (found.scale, want.scale),
            "variances": (found.variances[:used], want.variances),
            "rest": (found.rest, np.array(want.rest)),
            "rows": (found.rows, want.rows),
            "projector": (found.components.mT @ found.components, reference.projector(want.components)),
        }
        for name, (got, wanted) in close.items():
            torch.testing.assert_close(got, torch.from_numpy(np.asarray(wanted)), rtol=1e-10, atol=1e-10, msg=name)
        assert not found.components[used:].any()
        assert (found.variances[used:] == 1).all()

    def test_sizes_go_by_the_arguments_alone(self) -> None:
        sizes = {
            tuple(tuple(part.shape) for part in fit_reference(torch.randn(count, 5), max_components=9, num_rows=3))
            for count in (1, 2, 4, 100)
        }
        assert sizes == {((5,), (5,), (4, 5), (4,), (), (3, 5))}

    @pytest.mark.parametrize("value", [0.1, 1e-20, 3e7])
    def test_a_feature_that_never_varies_is_only_centred(self, value: float) -> None:
        """Divided by no spread, or by a rounding error, the next value would look infinitely strange."""
        x = torch.cat([torch.full((97, 1), value), rows(97, 6, 2, 0)], dim=1)
        assert fit_reference(x).scale[0] == 1
        same = torch.cat([torch.full((50, 1), value), rows(50, 6, 2, 1)], dim=1)
        other = torch.cat([torch.full((50, 1), value + 1e-6), rows(50, 6, 2, 1)], dim=1)
        change = novelty_statistics(other, fit_reference(x)) - novelty_statistics(same, fit_reference(x))
        assert change.abs().max() < 1e-3
        assert fit_reference(torch.full((9, 3), value)).components.eq(0).all()

    @pytest.mark.parametrize(
        ("scale", "dtype"),
        [(1e30, torch.float32), (1e-30, torch.float32), (1e200, torch.float64), (1e-200, torch.float64)],
    )
    def test_units_do_not_matter(self, scale: float, dtype: torch.dtype) -> None:
        x, new = (rows(count, 6, 2, seed).to(dtype) + 1.0 for count, seed in ((100, 0), (20, 1)))
        got = novelty_statistics(new * scale, fit_reference(x * scale))
        torch.testing.assert_close(got, novelty_statistics(new, fit_reference(x)), rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize(("count", "width", "asked"), [(1, 4, 2), (2, 4, 3), (3, 1, 5), (5, 3, 64), (3, 9, 8)])
    def test_little_data(self, count: int, width: int, asked: int) -> None:
        """One row, one feature, more components than features, fewer rows than components: finite, and in order."""
        x = torch.randn(count, width)
        found = fit_reference(x, max_components=asked, num_rows=4)
        assert all(part.isfinite().all() for part in found)
        assert found.components.shape == (min(asked, max(1, width - 1)), width)
        assert (found.scale > 0).all() and (found.variances > 0).all() and found.rest > 0
        own, far = novelty_statistics(x, found), novelty_statistics(x + 100.0, found)
        assert own.isfinite().all() and far.isfinite().all()
        assert (far[:, NEAREST] > own[:, NEAREST] + 3).all()


class TestNovelty:
    def test_the_residual_finds_noise_that_the_energy_does_not(self) -> None:
        """Samples of very different loudness: noise at 0 dB is no louder than the next clean sample."""
        fitted = fit_reference(rows(1000, 40, 4, 0, gain=1.0), explained=0.95)
        clean = rows(500, 40, 4, 1, gain=1.0)
        spoilt = add_noise(clean, 0.0, generator=torch.Generator().manual_seed(2))
        before, after = novelty_statistics(clean, fitted), novelty_statistics(spoilt, fitted)
        assert auroc(before[:, RESIDUAL], after[:, RESIDUAL]) > 0.95
        assert auroc(before[:, ENERGY], after[:, ENERGY]) < 0.75

    def test_no_gradient_and_no_steps(self) -> None:
        fitted = fit_reference(torch.randn(50, 4))
        assert not novelty_statistics(torch.randn(3, 4, requires_grad=True), fitted).requires_grad
        assert (novelty_statistics(torch.randn(3, 0, 4), fitted) == 0).all()
        assert (novelty_statistics(torch.randn(3, 2, 4), fitted, torch.zeros(3, 2, dtype=torch.int64)) == 0).all()

    def test_a_sequence_is_measured_by_the_mean_over_its_steps(self) -> None:
        """Not by the mean of the logarithms: one step of noise must show among many clean ones."""
        fitted = fit_reference(rows(500, 20, 3, 0))
        x = rows(40, 20, 3, 1).reshape(2, 20, 20)
        x[1, 7] = 10.0 * torch.randn(20)
        quiet, loud = novelty_statistics(x, fitted)[:, RESIDUAL]
        assert loud > quiet + 3


class TestModalityQuality:
    @pytest.mark.parametrize("count", [90, 1000])
    def test_clean_rows_it_has_not_seen_are_usual(self, count: int) -> None:
        """Also where every training row is an example and thus at distance 0 from itself."""
        quality = ModalityQuality([20])
        quality.fit([rows(count, 20, 3, 0)])
        found = quality.references[0](rows(400, 20, 3, 1), None)
        assert found.mean(0).abs().max() < 1, found.mean(0)
        assert found.std(0).max() < 2, found.std(0)

    def test_clean_sequences_are_usual(self) -> None:
        """Usual is what a sequence has: a mean over steps varies less, and its logarithm is larger."""
        train, new = (rows(80 * 12, 20, 3, seed, gain=1.0).reshape(80, 12, 20) for seed in (0, 1))
        steps = torch.rand(80, 12, generator=torch.Generator().manual_seed(0)) < 0.8
        quality = ModalityQuality([20])
        quality.fit([train], masks=[steps])
        found = quality.references[0](new, steps)
        assert found.mean(0).abs().max() < 0.7, found.mean(0)
        assert found.std(0).min() > 0.4, found.std(0)

    @pytest.mark.parametrize("shape", [(30, 5), (12, 3, 5), (2100, 5)], ids=str)
    def test_usual_values_equal_the_reference(self, shape: tuple[int, ...]) -> None:
        x = torch.randn(shape, dtype=torch.float64)
        mask = torch.rand(shape[:-1]) < 0.8
        quality = ModalityQuality([5], num_rows=9).double()
        quality.fit([x], mask[:, None] if x.dim() == 2 else None, None if x.dim() == 2 else [mask])
        state = {name: value.numpy() for name, value in quality.references[0].state_dict().items()}
        want = reference.usual(x.numpy(), mask.numpy(), reference.of_state(state), 9)
        assert np.allclose(state["usual"], want[0], rtol=1e-10, atol=1e-10)
        assert np.allclose(state["spread"], want[1], rtol=1e-10, atol=1e-10)

    def test_a_spoilt_modality_loses_its_weight(self) -> None:
        """Two hundred steps on what ModalityCorruption spoils; then zeros, or noise as loud as the signal."""
        torch.manual_seed(0)
        sizes = {"a": (20, 3), "b": (30, 4)}
        train = {name: rows(800, *size, 0) for name, size in sizes.items()}
        clean = {name: rows(300, *size, 1) for name, size in sizes.items()}
        quality, corruption = (
            ModalityQuality({name: size for name, (size, _) in sizes.items()}),
            ModalityCorruption(0.3),
        )
        quality.fit(list(train.values()))
        optimizer = torch.optim.Adam(quality.parameters(), lr=1e-2)
        for _ in range(200):
            batch = {name: x[torch.randint(800, (128,))] for name, x in train.items()}
            spoilt = corruption(batch)
            flags = torch.stack([(spoilt[name] != x).any(1) for name, x in batch.items()], dim=1)
            loss = quality_loss(quality(list(spoilt.values())), flags)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        def weights(inputs: dict[str, Tensor]) -> Tensor:
            std = (0.5 * quality(list(inputs.values()))).exp().unsqueeze(-1)
            return UncertaintyWeightedFusion().weights(std).mean(0)

        assert weights(clean).min() > 0.3
        for name, index in (("a", 0), ("b", 1)):
            for spoil in (torch.zeros_like, lambda x: add_noise(x, 0.0)):
                assert weights({**clean, name: spoil(clean[name])})[index] < 0.1, (name, spoil)

    def test_nothing_is_known_before_it_learns(self) -> None:
        quality = ModalityQuality([4, 3])
        found = quality([torch.randn(5, 4), 100 * torch.randn(5, 3)])
        torch.testing.assert_close(found, torch.full((5, 2), 2.0).log())  # one in two is spoilt

    def test_log_variances_are_bounded_and_zero_where_absent(self) -> None:
        quality = ModalityQuality([4, 3])
        torch.nn.init.constant_(quality.heads[0][2].bias, 1e6)
        torch.nn.init.constant_(quality.heads[1][2].bias, -1e6)
        present = torch.tensor([[True, True], [False, True], [True, True]])
        steps = torch.tensor([[True, False], [True, True], [False, False]])
        found = quality([torch.randn(3, 4), torch.randn(3, 2, 3)], present, [None, steps])
        high, low = math.log1p(math.exp(8.0)), math.log1p(math.exp(-8.0))
        torch.testing.assert_close(found, torch.tensor([[high, low], [0.0, low], [high, 0.0]]))

    def test_absent_rows_are_not_read(self) -> None:
        x, steps = torch.randn(40, 4), torch.randn(40, 3, 5)
        present = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) < 0.7
        mask = torch.rand(40, 3, generator=torch.Generator().manual_seed(1)) < 0.7
        found = []
        for fill in (0.0, float("nan")):
            quality = ModalityQuality([4, 5])
            given = torch.where((mask & present[:, 1:]).unsqueeze(-1), steps, fill)
            quality.fit([torch.where(present[:, :1], x, fill), given], present, [None, mask])
            found.append(quality.references.state_dict())
        alone = ModalityQuality([4])
        alone.fit([x[present[:, 0]]])
        for name, value in found[0].items():
            assert torch.equal(value, found[1][name]), name
            assert name.startswith("1.") or torch.equal(value, alone.references.state_dict()[name]), name

    def test_a_modality_that_is_never_there_is_named(self) -> None:
        quality = ModalityQuality({"audio": 4, "text": 3})
        before = {name: value.clone() for name, value in quality.state_dict().items()}
        x = [torch.randn(6, 4), torch.randn(6, 3)]
        with pytest.raises(
            ValueError, match=r"ModalityQuality: expected features\['text'\] with a present row, got none"
        ):
            quality.fit(x, torch.tensor([[True, False]] * 6))
        with pytest.raises(ValueError, match=r"ModalityQuality: expected features\['audio'\] with a present row"):
            quality.fit([part[:0] for part in x])
        for name, value in quality.state_dict().items():
            assert torch.equal(value, before[name]), f"{name} changed although fit failed"

    @pytest.mark.parametrize("count", [1, 3, 600])
    def test_a_checkpoint_holds_what_was_measured(self, count: int) -> None:
        fitted, fresh = (ModalityQuality({"a": 4, "b": 3}, num_rows=8) for _ in range(2))
        shapes = {name: value.shape for name, value in fresh.state_dict().items()}
        x = [torch.randn(count, 4) + 2.0, torch.randn(count, 5, 3)]
        fitted.fit(x)
        for parameter in fitted.heads.parameters():
            torch.nn.init.normal_(parameter)
        assert {name: value.shape for name, value in fitted.state_dict().items()} == shapes
        file = io.BytesIO()
        torch.save(fitted.state_dict(), file)
        file.seek(0)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(fresh(x), fitted(x))
        assert fresh(x).any()


class TestQualityLoss:
    """Shares are flags with everything between: the reference is held to in tests/rows."""

    def test_flags_are_shares_of_nothing_and_all(self) -> None:
        logvar, flags = 3.0 * torch.rand(50, 3), torch.rand(50, 3) < 0.5
        want = quality_loss(logvar, flags)
        for shares in (flags.float(), flags.double(), flags.bfloat16()):
            torch.testing.assert_close(quality_loss(logvar, shares), want)

    def test_it_is_least_where_the_precision_is_the_share_of_signal(self) -> None:
        precision = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
        for share in (0.1, 0.5, 0.87):
            losses = [quality_loss(-p.log().reshape(1, 1), torch.full((1, 1), share)) for p in precision]
            assert abs(float(precision[int(torch.stack(losses).argmin())]) - (1 - share)) < 0.006

    def test_no_gradient_reaches_a_share(self) -> None:
        logvar, share = torch.rand(4, 2, requires_grad=True), torch.rand(4, 2, requires_grad=True)
        quality_loss(logvar, share).backward()
        assert logvar.grad.any()
        assert share.grad is None

    @pytest.mark.parametrize("share", [torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)], ids=["share", "flag"])
    def test_what_is_wholly_spoilt_costs_nothing_at_infinity(self, share: Tensor) -> None:
        logvar = torch.full((1, 1), torch.inf, requires_grad=True)
        loss = quality_loss(logvar, share)
        loss.backward()
        assert loss == 0.0
        assert logvar.grad == 0.0

    def test_absent_shares_are_not_read(self) -> None:
        logvar, present = torch.rand(6, 2), torch.rand(6, 2) < 0.5
        share = torch.rand(6, 2)
        dirty = quality_loss(logvar, torch.where(present, share, torch.nan), present)
        assert torch.equal(dirty, quality_loss(logvar, torch.where(present, share, 0.0), present))
        assert dirty.isfinite()
