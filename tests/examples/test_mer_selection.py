"""How a run is selected: the ways of looking at a validation batch, and what is computed from them."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from benchmarks.robustness.corruption import corrupt
from examples.mer.cli import MerCLI
from examples.mer.selection import SPOILT, looks
from tests.examples.mer_runs import ROWS, make_batch, make_task, toy_cli, write_toy

SIZES = {"a": 5, "b": 4, "c": 3}
ALL = ("clean", "subset", "corrupt")
ONE_ENCODING = {
    "model__views": 2,
    "model__average": 0.9,
    "model__calibrate": True,
    "model__options": {"hidden_features": 8, "dropout": 0.2},
}


def subsets(count: int) -> list[tuple[bool, ...]]:
    """List the proper non-empty subsets, the larger ones first."""
    found = [one for one in product((True, False), repeat=count) if 0 < sum(one) < count]
    return sorted(found, key=sum, reverse=True)


def batch_of_three() -> dict[str, Any]:
    batch = make_batch(**SIZES)
    batch["present"][1, 2] = batch["present"][2, :2] = False
    return batch


class TestLooks:
    def test_takes_every_other_subset_once_and_counts_rows_that_lose_something_and_keep_something(self) -> None:
        batch = batch_of_three()
        (look,) = looks(batch, ("clean", "subset"), 0)
        assert look.names == ("clean", *["subset"] * 6)
        for view, pattern in enumerate([(True, True, True), *subsets(3)]):
            for row, has in enumerate(batch["present"].tolist()):
                left = [one and kept for one, kept in zip(has, pattern, strict=True)]
                assert look.present[view, row].tolist() == left
                assert bool(look.rows[view, row]) == (view == 0 or (any(left) and left != has))
        assert all(look.inputs[name] is x for name, x in batch["inputs"].items())
        assert int(look.rows[1:, 2].sum()) == 0  # has one modality, and none to lose

    def test_takes_single_modalities_and_all_but_one_where_there_are_many(self) -> None:
        (look,) = looks(make_batch(**dict.fromkeys("abcde", 2)), ("subset",), 0)
        assert sorted(look.present.sum(-1)[:, 0].tolist()) == [1] * 5 + [4] * 5
        assert len({tuple(pattern.tolist()) for pattern in look.present[:, 0]}) == 10

    @pytest.mark.parametrize("views", [("clean",), ("subset",), ("corrupt",), ("clean", "corrupt")])
    def test_yields_only_what_is_asked_for(self, views: tuple[str, ...]) -> None:
        found = list(looks(batch_of_three(), views, 0))
        assert {name for look in found for name in look.names} == set(views)

    def test_has_no_other_subset_of_one_modality(self) -> None:
        assert [look.names for look in looks(make_batch(a=5), ("clean", "subset"), 0)] == [("clean",)]

    def test_spoils_each_modality_as_the_benchmark_does_and_counts_the_rows_that_have_it(self) -> None:
        batch, rows = batch_of_three(), 6
        batch["inputs"]["b"] = torch.randn(rows, 3, 4)
        batch["masks"] = {"b": torch.arange(3) < torch.tensor([[3], [1], [2], [3], [2], [1]])}
        (look,) = looks(batch, ("corrupt",), 7)
        assert look.names == ("corrupt",) and look.present.shape == (1, 3 * len(SPOILT) * rows, 3)
        places = list(product(range(3), SPOILT))
        for place, (index, corruption) in enumerate(places):
            block = slice(place * rows, (place + 1) * rows)
            for other, (name, x) in enumerate(batch["inputs"].items()):
                mask = batch["masks"].get(name)
                if other == index:
                    x, _ = corrupt(x, mask, corruption, torch.Generator().manual_seed(7))
                assert torch.equal(look.inputs[name][block], x)
            assert torch.equal(look.masks["b"][block], batch["masks"]["b"])
            assert torch.equal(look.present[0, block], batch["present"])
            assert torch.equal(look.rows[0, block], batch["present"][:, index])
        assert all(torch.equal(x, batch_x) for x, batch_x in zip(look.inputs.values(), again(batch), strict=True))


def again(batch: dict[str, Any]) -> list[torch.Tensor]:
    (look,) = looks(batch, ("corrupt",), 7)
    return list(look.inputs.values())


class TestAnswers:
    @pytest.mark.parametrize("views", [0, 6])
    def test_the_model_is_given_exactly_the_patterns(self, views: int) -> None:
        task = make_task(family="variational", in_features=SIZES, selection=list(ALL), views=views).eval()
        batch, seen = batch_of_three(), []
        forward = task.model.forward
        task.model.forward = lambda *args, **more: seen.append((args, more)) or forward(*args, **more)
        task.validation_step(batch, 0)
        first, spoilt = looks(batch, ALL, 0)
        if views:
            assert [args[1] for args, _ in seen] == [None, None]
            given = [pattern for _, more in seen for pattern in more["views"]]
        else:
            assert not any(more for _, more in seen)
            given = [args[1] for args, _ in seen]
        expected = [*first.present, *spoilt.present]
        assert len(given) == len(expected) == 8
        assert all(torch.equal(one, other) for one, other in zip(given, expected, strict=True))

    def test_one_encoding_for_all_views_scores_as_one_for_each(self) -> None:
        batch, scores = batch_of_three(), []
        for views in (0, 6):
            torch.manual_seed(0)
            task = make_task(family="variational", in_features=SIZES, selection=list(ALL), views=views).eval()
            task.validation_step(batch, 0)
            scores.append({name: metrics.compute() for name, metrics in task.metrics.items()})
        for name in ALL:
            for metric, value in scores[0][name].items():
                torch.testing.assert_close(scores[1][name][metric], value)


def answer(cli: MerCLI, *names: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Ask the selected model about the validation rows with these modalities alone."""
    part = cli.datamodule.sets["val"]
    present = torch.tensor([[name in names for name in part.features]]) & part.present
    with torch.no_grad():
        output = cli.model.final.eval()(part.features, present)
    return output.logits, output.values[:, 0]


class Break(Callback):
    """Let the weights diverge in one epoch, from which no other recovers."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        if trainer.current_epoch == self.epoch:
            module.model.heads.classes.weight.data.fill_(torch.nan)


class TestSelect:
    def test_follows_the_mean_of_the_views(self, tmp_path: Path) -> None:
        cli = toy_cli(tmp_path, model__selection=list(ALL), trainer__max_epochs=1)
        scores = cli.train()["validation"]
        assert scores["combined"] == pytest.approx(sum(scores[f"{view}_combined"] for view in ALL) / 3)
        assert scores["select"] == scores["combined"]

    @pytest.mark.parametrize("more", [{}, ONE_ENCODING])
    def test_likelihood_is_cross_entropy_and_weighted_squared_error(self, tmp_path: Path, more: dict[str, Any]) -> None:
        changes = {"model__select_by": "likelihood", "model__selection": ["clean", "subset"]}
        changes |= {"model__value_weight": 0.5, **more}
        cli = toy_cli(tmp_path, **changes)
        found = cli.train()["validation"]["select"]
        part = cli.datamodule.sets["val"]
        known = ~part.score.isnan()
        losses = []
        for views in ([("a", "b")], [("a",), ("b",)]):
            answers = [answer(cli, *names) for names in views]
            surprise = sum(F.cross_entropy(logits, part.label) for logits, _ in answers) / len(views)
            error = sum(F.mse_loss(values[known], part.score[known]) for _, values in answers) / len(views)
            losses.append(float(surprise + 0.5 * error))
        assert found == pytest.approx(-sum(losses) / 2, abs=1e-5)

    def test_a_model_that_diverges_is_never_selected_by_likelihood(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="toy: the training diverged in its first epoch"):
            toy_cli(tmp_path, model__lr=1e30, model__select_by="likelihood").train()

    def test_an_epoch_that_diverged_is_not_the_likeliest(self, tmp_path: Path) -> None:
        cli = toy_cli(tmp_path, model__select_by="likelihood", trainer__max_epochs=3)
        cli.trainer.callbacks.insert(0, Break(1))
        best = cli.train()
        assert best["epoch"] == 0
        assert all(x.isfinite().all() for x in cli.model.model.parameters())

    @pytest.mark.parametrize("select_by", ["combined", "likelihood"])
    def test_one_modality_is_selected_by_the_rows_as_they_are(self, tmp_path: Path, select_by: str) -> None:
        changes = {"model__selection": ["clean", "subset"], "model__select_by": select_by, "trainer__max_epochs": 3}
        cli = toy_cli(tmp_path, "--data.only", "[a]", **changes)
        scores = cli.train()["validation"]
        assert cli.trainer.current_epoch == 3
        assert abs(scores["select"]) < 100 and "subset_combined" not in scores

    def test_one_modality_without_clean_rows_is_not_calibrated(self, tmp_path: Path) -> None:
        changes = {"model__selection": ["subset", "corrupt"], "model__calibrate": True}
        cli = toy_cli(tmp_path, "--data.only", "[a]", **changes)
        cli.train()
        assert float(cli.model.temperature.temperature) == 1.0


class TestQuality:
    def test_a_model_with_quality_has_seen_the_training_rows(self, tmp_path: Path) -> None:
        options = {"hidden_features": 8, "quality": "replace", "attention": "none"}
        changes = {"model__family": "variational", "model__options": options, "model__corruption_rate": 0.5}
        cli = toy_cli(tmp_path, **changes, trainer__max_epochs=1)
        cli.train()
        train = cli.datamodule.sets["train"]
        for index, (name, reference) in enumerate(zip(train.features, cli.model.model.quality.references, strict=True)):
            torch.testing.assert_close(reference.mean, train.features[name][train.present[:, index]].mean(0))

    @pytest.mark.parametrize("teach", [False, True])
    def test_is_taught_where_the_model_is_with_whole_groups(
        self, tmp_path: Path, teach: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = {"hidden_features": 8, "quality": "replace", "freeze_quality": teach, "attention": "none"}
        changes = {"model__options": options, "model__teach_quality": teach, "trainer__max_epochs": 1}
        root = write_toy(tmp_path / "grouped.npz", subject=np.arange(ROWS) // 3)
        cli = toy_cli(tmp_path, "--data.root", str(root), "--data.group", "subject", **changes)
        task, moved, given, train = cli.model, [], [], cli.datamodule.sets["train"]
        move, fit = task.transfer_batch_to_device, task.model.fit_quality
        monkeypatch.setattr(task, "transfer_batch_to_device", lambda *args: moved.append(move(*args)) or moved[-1])
        monkeypatch.setattr(
            task.model, "fit_quality", lambda *args, **more: given.append((args, more)) or fit(*args, **more)
        )
        cli.train()
        ((inputs, present, masks), more), rows = given[0], moved[0]
        # The very tensors that were moved to the device.
        assert inputs is rows["inputs"] and present is rows["present"] and masks is None
        assert all(torch.equal(x, train.features[name]) for name, x in inputs.items())
        assert len(given) == 1 and more.get("teach", False) == teach
        if teach:
            assert more["groups"] is rows["group"]
            assert torch.equal(more["groups"], train.group)
