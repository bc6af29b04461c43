"""Quality that is taught: precision is the share of signal, folds hold whole groups, and only what is there is read."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrobust import ModalityQuality, VariationalFusionClassifier, add_noise, spoil_rows
from mmrobust.quality._teaching import Rows, deal
from tests.test_quality import auroc, rows

WIDTH, RANK = 60, 5
NAN = float("nan")
QUICK: dict[str, Any] = {"steps": 5, "draws": 1, "folds": 2}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def taught(x: Tensor, mask: Tensor | None = None, **options: Any) -> ModalityQuality:
    torch.manual_seed(0)
    quality = ModalityQuality([x.shape[-1]])
    quality.fit([x], None, [mask])
    quality.teach([x], None, [mask], **{"generator": generator(), **options})
    return quality


def logvar(quality: ModalityQuality, x: Tensor, mask: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return quality([x], None, [mask]).squeeze(1)


def precision(quality: ModalityQuality, x: Tensor, mask: Tensor | None = None) -> float:
    return float((-logvar(quality, x, mask)).exp().mean())


def state_of(quality: ModalityQuality) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in quality.state_dict().items()}


def same(one: ModalityQuality, other: ModalityQuality) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@functools.cache
def low_rank(noise: float) -> tuple[ModalityQuality, Tensor]:
    """Teach on rows of low rank, and return new rows of the same kind."""
    return taught(rows(1500, WIDTH, RANK, 0, noise=noise)), rows(1000, WIDTH, RANK, 1, noise=noise)


@pytest.mark.parametrize("noise", [0.05, 0.3])
class TestLowRank:
    @pytest.mark.parametrize("snr", [20.0, 0.0, -10.0])
    def test_precision_is_the_share_of_signal(self, noise: float, snr: float) -> None:
        quality, clean = low_rank(noise)
        found = precision(quality, add_noise(clean, snr, generator=generator(2)))
        assert abs(found - 1 / (1 + 10 ** (-snr / 10))) < 0.15

    def test_clean_rows_have_all_of_it(self, noise: float) -> None:
        assert precision(*low_rank(noise)) > 0.97

    @pytest.mark.parametrize("kind", ["zeros", "replace"])
    def test_where_nothing_is_left_nothing_counts(self, noise: float, kind: str) -> None:
        quality, clean = low_rank(noise)
        gone = spoil_rows(clean, 1.0, kinds=[kind], generator=generator(3)).x
        assert logvar(quality, gone).mean() > 3

    @pytest.mark.parametrize("spoil", [torch.zeros_like, lambda x: add_noise(x, 0.0)], ids=["zeros", "0dB"])
    def test_what_is_spoilt_stands_out(self, noise: float, spoil: Any) -> None:
        quality, clean = low_rank(noise)
        assert auroc(logvar(quality, clean), logvar(quality, spoil(clean))) >= 0.95


class TestWhatIsLearnt:
    def test_sequences(self) -> None:
        """Padding is NaN, in training and after; a ratio is that of the sample's real steps."""

        def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
            mask = torch.rand(count, 6, generator=generator(seed)) < 0.7
            x = rows(6 * count, 30, 4, seed, noise=0.3).reshape(count, 6, 30)
            return torch.where(mask.unsqueeze(-1), x, NAN), mask

        quality = taught(*draw(500, 10))
        clean, mask = draw(500, 11)
        here = mask.any(1)
        clean, mask = clean[here], mask[here]
        assert precision(quality, clean, mask) > 0.97
        for snr in (20.0, 0.0, -10.0):
            found = precision(quality, add_noise(clean, snr, mask, generator=generator(1)), mask)
            assert abs(found - 1 / (1 + 10 ** (-snr / 10))) < 0.15, snr
        assert logvar(quality, torch.zeros_like(clean), mask).mean() > 3

    def test_only_what_was_spoilt_in_teaching_is_known(self) -> None:
        """The options arrive: taught on zeros alone, noise means little; taught on nothing, nothing stands out."""
        x, clean = rows(400, 20, 3, 0), rows(300, 20, 3, 1)
        silent = taught(x, kinds=["zeros"])
        assert logvar(silent, torch.zeros_like(clean)).mean() > 3
        unspoilt = taught(x, rate=0.0)
        assert logvar(unspoilt, torch.zeros_like(clean)).mean() < 0.5
        gentle, harsh = (taught(x, kinds=["noise"], snr_db=(snr, snr)) for snr in (20.0, -10.0))
        loud = add_noise(clean, -10.0, generator=generator(4))
        assert precision(gentle, loud) > 0.8
        assert precision(harsh, loud) < 0.2


class TestGroups:
    @pytest.mark.parametrize("folds", [2, 3, 5, 50])
    @pytest.mark.parametrize("grouped", [False, True])
    def test_folds_hold_whole_groups(self, folds: int, grouped: bool) -> None:
        there = torch.rand(200, generator=generator()) < 0.8
        groups = torch.randint(0, 12, (200,), generator=generator(1)) * 1000 - 7 if grouped else None
        fold = deal(Rows(torch.empty(200, 0), there, groups), folds, generator(2))
        used = min(folds, 12) if grouped else folds
        assert torch.equal(fold >= 0, there)
        assert fold[there].unique().tolist() == list(range(used))
        units = torch.arange(200) if groups is None else groups
        owners = {number: set(units[fold == number].tolist()) for number in range(used)}
        assert sum(len(owner) for owner in owners.values()) == len(set(units[there].tolist()))
        sizes = [len(owner) for owner in owners.values()]
        assert max(sizes) - min(sizes) <= 1

    def test_groups_are_dealt_at_random(self) -> None:
        there, groups = torch.ones(40, dtype=torch.bool), torch.arange(40) // 4
        dealt = [deal(Rows(torch.empty(40, 0), there, groups), 5, generator(seed)) for seed in (0, 0, 1)]
        assert torch.equal(dealt[0], dealt[1])
        assert not torch.equal(dealt[0], dealt[2])

    def test_a_fold_is_measured_without_its_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each row is compared with a reference that saw nothing of its group, and with the whole one."""
        from mmrobust.quality import _teaching

        x, groups = rows(60, 6, 2, 0), torch.arange(60) // 10
        number = {tuple(row): index for index, row in enumerate(x.tolist())}
        seen: list[set[int]] = []
        apart: set[int] = set()
        whole: set[int] = set()
        fit, forward = _teaching.ReferenceBuffers.fit, _teaching.ReferenceBuffers.forward

        def watched_fit(self: Any, x: Tensor, mask: Tensor, fitting: Any) -> None:
            seen.append({int(groups[number[tuple(row)]]) for row in x[mask].tolist()})
            fit(self, x, mask, fitting)

        def watched(self: Any, x: Tensor, mask: Tensor) -> Tensor:
            known = {int(groups[number[tuple(row)]]) for row in x.tolist() if tuple(row) in number}
            assert known
            if self is quality.references[0]:
                whole.update(known)
            else:
                assert not known & seen[-1]
                apart.update(known)
            return forward(self, x, mask)

        quality = ModalityQuality([6])
        quality.fit([x])
        monkeypatch.setattr(_teaching.ReferenceBuffers, "fit", watched_fit)
        monkeypatch.setattr(_teaching.ReferenceBuffers, "forward", watched)
        quality.teach([x], groups=groups, **{**QUICK, "folds": 4})
        assert len(seen) == 4
        assert apart == whole == set(range(6))
        assert all(len(groups) in (4, 5) for groups in seen)

    def test_a_new_group_looks_cleaner_when_groups_are_told(self) -> None:
        """Every group has an offset of its own; without groups, rows are judged by others of the same group."""
        source = generator(5)
        offsets = 1.5 * torch.randn(17, 30, generator=source)
        x = rows(720, 30, 4, 0, noise=0.3) + offsets[:12].repeat_interleave(60, 0)
        new = rows(500, 30, 4, 1, noise=0.3) + offsets[12:].repeat_interleave(100, 0)
        groups = torch.arange(12).repeat_interleave(60)
        alone, told = taught(x), taught(x, groups=groups)
        assert logvar(told, new).mean() < 0.6 * logvar(alone, new).mean()
        # Rows that it was fitted on are clean too, and what is spoilt is still found.
        assert logvar(told, x).mean() < 0.1
        spoilt = add_noise(new, -10.0, generator=generator(1))
        assert auroc(logvar(told, new), logvar(told, spoilt)) > 0.95
        assert logvar(told, torch.zeros_like(new)).mean() > 3

    @pytest.mark.parametrize(
        ("present", "groups", "name", "count"),
        [
            ([[1, 1], [1, 0], [1, 0], [1, 0]], None, "text", 1),
            ([[1, 1]] * 4, [3, 3, 3, 3], "audio", 1),
            ([[1, 1], [1, 1], [1, 0], [1, 0]], [0, 0, 1, 1], "text", 1),
        ],
    )
    def test_less_than_two_groups(
        self, present: list[list[int]], groups: list[int] | None, name: str, count: int
    ) -> None:
        quality = ModalityQuality({"audio": 3, "text": 4})
        x = [torch.randn(4, 3), torch.randn(4, 4)]
        quality.fit(x)
        before = copy.deepcopy(quality)
        with pytest.raises(
            ValueError,
            match=rf"ModalityQuality: expected features\['{name}'\] present in at least two groups, got {count}",
        ):
            quality.teach(x, torch.tensor(present), groups=None if groups is None else torch.tensor(groups), **QUICK)
        assert same(quality, before), "changed although teaching failed"

    def test_two_rows_are_enough(self) -> None:
        quality = taught(torch.randn(2, 3), **QUICK)
        assert all(value.isfinite().all() for value in quality.state_dict().values())


class TestHow:
    def test_a_generator_decides_and_so_does_the_seed(self) -> None:
        x = rows(80, 6, 2, 0)
        state = torch.get_rng_state()
        fitted = ModalityQuality([6])
        fitted.fit([x])
        torch.set_rng_state(state)
        found = []
        for seed in (1, 1, 2):
            found.append(copy.deepcopy(fitted))
            found[-1].teach([x], generator=generator(seed), **QUICK)
        assert torch.equal(torch.get_rng_state(), state)
        for seed in (3, 3, 4):
            found.append(copy.deepcopy(fitted))
            torch.manual_seed(seed)
            found[-1].teach([x], **QUICK)
        assert same(found[0], found[1]) and same(found[3], found[4])
        assert not same(found[0], found[2]) and not same(found[3], found[5])

    def test_only_the_networks_change(self) -> None:
        x = rows(80, 6, 2, 0)
        quality = ModalityQuality([6])
        quality.fit([x])
        before, given = state_of(quality), x.clone()
        quality.teach([x], **QUICK)
        for name, value in quality.state_dict().items():
            assert torch.equal(value, before[name]) == name.startswith("references."), name
        assert torch.equal(x, given)
        assert all(p.grad is None and p.requires_grad for p in quality.parameters())

    def test_gradients_that_are_there_stay(self) -> None:
        quality, x = ModalityQuality([6]), rows(80, 6, 2, 0)
        quality.fit([x])
        quality([x]).sum().backward()
        before = [p.grad.clone() for p in quality.parameters()]
        quality.teach([x], **QUICK)
        assert all(torch.equal(p.grad, g) for p, g in zip(quality.parameters(), before, strict=True))

    def test_frozen_ones_learn_too_and_without_a_graph_around(self) -> None:
        x, found = rows(80, 6, 2, 0), []
        for frozen in (False, True):
            torch.manual_seed(0)
            quality = ModalityQuality([6]).requires_grad_(not frozen)
            quality.fit([x])
            with torch.set_grad_enabled(not frozen):
                quality.teach([x], generator=generator(), **QUICK)
            assert all(p.requires_grad != frozen for p in quality.parameters())
            found.append(quality)
        assert same(*found)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
    def test_rows_and_networks_of_another_precision(self, dtype: torch.dtype) -> None:
        """Rows in float64 teach a float32 model, as they fit it; a model in bfloat16 learns in float32."""
        x, clean = rows(300, 20, 3, 0), rows(200, 20, 3, 1)
        torch.manual_seed(0)
        quality = ModalityQuality([20]).to(torch.float32 if dtype == torch.float64 else dtype)
        quality.fit([x.to(dtype)])
        quality.teach([x.to(dtype)], generator=generator())
        own = quality.heads[0][0].weight.dtype
        assert own == (torch.float32 if dtype == torch.float64 else dtype)
        assert precision(quality, clean.to(own)) > 0.9
        assert logvar(quality, torch.zeros_like(clean).to(own)).mean() > 3

    def test_absent_rows_are_not_read(self) -> None:
        x, steps = rows(60, 4, 2, 0), rows(180, 5, 2, 1).reshape(60, 3, 5)
        present = torch.rand(60, 2, generator=generator()) < 0.7
        mask = torch.rand(60, 3, generator=generator(1)) < 0.7
        groups, found = torch.arange(60) // 4, []
        for fill in (0.0, 7.0, NAN):
            torch.manual_seed(0)
            quality = ModalityQuality([4, 5])
            given = [
                torch.where(present[:, :1], x, fill),
                torch.where((mask & present[:, 1:]).unsqueeze(-1), steps, fill),
            ]
            quality.fit(given, present, [None, mask])
            quality.teach(given, present, [None, mask], groups=groups, generator=generator(), **QUICK)
            found.append(quality)
        assert same(found[0], found[1]) and same(found[0], found[2])
        assert all(value.isfinite().all() for value in found[0].state_dict().values())

    @pytest.mark.parametrize(
        ("options", "error", "says"),
        [
            ({"rate": 1.5}, ValueError, r"expected rate in \[0.0, 1.0\], got 1.5"),
            ({"kinds": ["blur"]}, ValueError, "expected kinds to be one of 'noise', .* got 'blur'"),
            ({"snr_db": (5.0, 0.0)}, ValueError, r"expected snr_db\[1\] in \[5.0, inf\), got 0.0"),
            ({"folds": 1}, ValueError, "expected folds of at least 2, got 1"),
            ({"draws": 0}, ValueError, "expected draws of at least 1, got 0"),
            ({"steps": 1.5}, TypeError, "expected steps to be an integer, got float"),
            ({"lr": 0.0}, ValueError, r"expected lr in \(0.0, inf\), got 0.0"),
            ({"groups": torch.zeros(5)}, TypeError, "expected groups to be an integer tensor, got torch.float32"),
            ({"groups": torch.arange(4)}, ValueError, r"expected groups of shape \(N,\) = \(5,\), got \(4,\)"),
        ],
    )
    def test_wrong_options(self, options: dict[str, Any], error: type[Exception], says: str) -> None:
        quality, x = ModalityQuality([3]), torch.randn(5, 3)
        quality.fit([x])
        with pytest.raises(error, match=f"ModalityQuality: {says}"):
            quality.teach([x], **options)


class TestInsideOfTheModel:
    def build(self, **options: Any) -> VariationalFusionClassifier:
        torch.manual_seed(0)
        return VariationalFusionClassifier(
            {"z": 4, "s": 5},
            6,
            **{"num_classes": 2, "num_heads": 2, "sequences": ["s"], "quality": "replace", **options},
        )

    def batch(self, count: int = 60) -> dict[str, Tensor]:
        return {"z": rows(count, 4, 2, 0), "s": rows(3 * count, 5, 2, 1).reshape(count, 3, 5)}

    @pytest.mark.parametrize("frozen", [False, True])
    def test_it_is_fitted_and_taught_as_by_itself(self, frozen: bool) -> None:
        x, groups = self.batch(), torch.arange(60) // 5
        mask = torch.rand(60, 3, generator=generator()) < 0.8
        model, other = self.build(freeze_quality=frozen), self.build()
        model.fit_quality(x, None, {"s": mask}, teach=True, groups=groups, generator=generator(1))
        present = torch.stack([torch.ones(60, dtype=torch.bool), mask.any(1)], dim=1)
        steps = mask | ~present[:, 1:]
        other.quality.fit([x["z"], x["s"]], present, [None, steps])
        other.quality.teach([x["z"], x["s"]], present, [None, steps], groups=groups, generator=generator(1))
        assert same(model.quality, other.quality)
        untaught = self.build()
        untaught.fit_quality(x, None, {"s": mask})
        assert not same(model.quality, untaught.quality)

    def test_frozen_ones_get_no_gradient_and_no_term(self) -> None:
        """All else learns; what quality says is the same, and its loss is not in the auxiliary one."""
        clean = self.batch()
        spoilt = {"z": torch.zeros_like(clean["z"]), "s": clean["s"]}
        grads, losses = {}, {}
        for frozen in (False, True):
            model = self.build(freeze_quality=frozen)
            model.fit_quality(clean, teach=True, generator=generator())
            for weight in (0.0, 1.0):
                model.quality_weight = weight
                torch.manual_seed(1)
                out = model(spoilt, targets=clean)
                losses[frozen, weight] = out.aux_loss.detach()
            (out.logits.square().sum() + out.aux_loss).backward()
            grads[frozen] = {name: p.grad for name, p in model.named_parameters()}
        assert losses[True, 1.0] == losses[True, 0.0] == losses[False, 0.0] != losses[False, 1.0]
        heads = [name for name in grads[True] if name.startswith("quality.")]
        assert len(heads) == 8
        assert all(grads[True][name] is None for name in heads)
        assert all(grads[False][name] is not None for name in heads)
        for name in set(grads[True]) - set(heads):
            torch.testing.assert_close(grads[True][name], grads[False][name], msg=name)

    def test_frozen_ones_are_no_parameters_that_a_step_waits_for(self) -> None:
        """Distributed training counts on a gradient for whatever requires one."""
        model, x = self.build(freeze_quality=True, dropout=0.1), self.batch()
        model.fit_quality(x, teach=True)
        before = state_of(model.quality)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
        out = model(x)
        (out.logits.square().sum() + out.aux_loss).backward()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
        optimizer.step()
        for name, value in before.items():
            assert torch.equal(model.quality.state_dict()[name], value), name

    def test_too_few_groups_are_named(self) -> None:
        with pytest.raises(ValueError, match=r"expected features\['z'\] present in at least two groups, got 1"):
            self.build().fit_quality(self.batch(), teach=True, groups=torch.zeros(60, dtype=torch.long))
