"""What is trained beside the weights: their moving average, agreement with it, the temperature."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from examples.mer.average import AveragedModel
from examples.mer.predict import Member, predictor
from mmrobust.calibration import fit_temperature
from tests.examples.mer_runs import make_batch, make_task, toy_cli


def constant(value: float) -> nn.BatchNorm1d:
    """Make a small model with two weights and buffers, all of one value."""
    model = nn.BatchNorm1d(1)
    for x in (*model.parameters(), model.running_mean):
        x.data.fill_(value)
    return model


class TestAveragedModel:
    @pytest.mark.parametrize(
        ("decay", "expected"),
        # Shares of the new values: 9/11, then 9/12, unless the decay is lower than 2/11 and 3/12.
        [(0.99, [9 / 11, 9 / 11 + 3 / 4 * (3 - 9 / 11)]), (0.2, [9 / 11, 9 / 11 + 0.8 * (3 - 9 / 11)]), (0.0, [1, 3])],
    )
    def test_moves_by_one_less_the_decay_and_further_at_first(self, decay: float, expected: list[float]) -> None:
        averaged, found = AveragedModel(constant(0.0), decay), []
        averaged.start(constant(0.0))
        for value in (1.0, 3.0):
            averaged.update(constant(value))
            found.append([float(x) for x in averaged.module.parameters()])
        assert found == [pytest.approx([value, value]) for value in expected]
        assert int(averaged.updates) == 2

    def test_reaches_its_decay(self) -> None:
        averaged = AveragedModel(constant(0.0), 0.9)
        averaged.updates.fill_(1000)
        averaged.update(constant(1.0))
        assert float(averaged.module.weight) == pytest.approx(0.1)

    def test_takes_over_weights_and_buffers_before_the_first_update_only(self) -> None:
        averaged = AveragedModel(constant(0.0), 0.5)
        averaged.start(constant(5.0))
        assert [float(x) for x in (averaged.module.weight, averaged.module.running_mean)] == [5, 5]
        averaged.update(constant(5.0))
        averaged.start(constant(7.0))
        averaged.update(constant(7.0))
        assert float(averaged.module.running_mean) == 5
        assert 5 < float(averaged.module.weight) < 7

    def test_is_no_part_of_the_training(self) -> None:
        model = constant(1.0)
        averaged = AveragedModel(model, 0.9)
        assert not any(x.requires_grad for x in averaged.parameters())
        assert all(x.requires_grad for x in model.parameters())

    def test_is_what_is_validated_and_tested(self, tmp_path: Path) -> None:
        cli = toy_cli(tmp_path, model__average=0.9)
        found = cli.train()["validation"]
        task, part = cli.model, cli.datamodule.sets["val"]
        assert task.final is task.averaged.module
        assert not torch.equal(task.final.heads.classes.weight, task.model.heads.classes.weight)
        with torch.no_grad():
            averaged, plain = (model.eval()(part.features, part.present) for model in (task.final, task.model))
        right = (averaged.logits.argmax(1) == part.label).float().mean()
        assert found["accuracy"] == pytest.approx(float(right))
        answer = predictor([Member(task)])(part.features, part.present, {})
        torch.testing.assert_close(answer.logits, averaged.logits)
        assert not torch.equal(answer.logits, plain.logits)
        batches = -(-len(cli.datamodule.sets["train"]) // 16)
        assert int(torch.load(tmp_path / "run" / "last.ckpt")["state_dict"]["averaged.updates"]) == 2 * batches

    def test_starts_with_what_the_quality_networks_learnt(self, tmp_path: Path) -> None:
        options = {"hidden_features": 8, "quality": "replace", "freeze_quality": True, "attention": "none"}
        changes = {"model__options": options, "model__teach_quality": True, "model__average": 0.99}
        cli = toy_cli(tmp_path, **changes, trainer__max_epochs=1)
        untaught = [x.clone() for x in cli.model.model.quality.heads.parameters()]
        cli.train()
        ours, original = (model.quality.state_dict() for model in (cli.model.final, cli.model.model))
        for name, x in original.items():
            torch.testing.assert_close(ours[name], x)
        assert not torch.equal(next(iter(cli.model.final.quality.heads.parameters())), untaught[0])


class TestConsistency:
    def test_is_zero_where_the_average_is_the_model(self) -> None:
        task, batch = make_task(average=0.9, consistency=0.5).eval(), make_batch()
        output = task(batch)
        assert float(task._disagreement(output.logits, batch).detach()) == pytest.approx(0, abs=1e-7)

    @pytest.mark.parametrize("views", [0, 2])
    def test_is_the_divergence_from_the_average_on_complete_unspoilt_rows(self, views: int) -> None:
        options = {"hidden_features": 8, "dropout": 0.0, "kl_weight": 0.0, "reconstruction_weight": 0.0}
        changes = {"family": "variational", "options": {**options, "cross_kl_weight": 0.0}, "views": views}
        tasks, batch, losses = [], make_batch(), []
        for weight in (0.0, 0.5):
            torch.manual_seed(0)
            task = make_task(average=0.9, consistency=weight, **changes)
            torch.manual_seed(1)
            task.averaged.module.heads.classes.weight.normal_()
            tasks.append(task.train())
            losses.append(task.training_step(batch, 0))
        with torch.no_grad():
            known = (tasks[0].final.eval()(batch["inputs"], batch["present"]).logits / 2).softmax(-1)
            said = (tasks[0](batch).logits / 2).softmax(-1)
        expected = 4 * (known * (known / said).log()).sum(-1).mean()
        assert expected > 0.01
        torch.testing.assert_close((losses[1] - losses[0]).detach(), 0.5 * expected)
        losses[1].backward()
        assert all(x.grad is None for x in tasks[1].averaged.parameters())


class TestCalibration:
    @pytest.mark.parametrize("selection", [["clean"], ["clean", "subset", "corrupt"]])
    def test_the_temperature_fits_the_validation_rows_of_the_best_epoch(
        self, selection: list[str], tmp_path: Path
    ) -> None:
        # Large steps at the end: the last epoch is not the best.
        changes = {"model__calibrate": True, "model__selection": selection, "model__select_by": "likelihood"}
        cli = toy_cli(tmp_path, **changes, trainer__max_epochs=30, model__lr=0.1)
        best = cli.train()
        assert best["epoch"] < cli.trainer.current_epoch - 1
        task, part = cli.model, cli.datamodule.sets["val"]
        patterns = [[True, True]] + ([[True, False], [False, True]] if "subset" in selection else [])
        with torch.no_grad():
            logits = [task.final(part.features, part.present & torch.tensor([one])).logits for one in patterns]
        expected = fit_temperature(torch.cat(logits), part.label.repeat(len(patterns)), ignore_index=-1)
        assert float(best["state_dict"]["temperature.temperature"]) == pytest.approx(float(expected), rel=1e-4)
        assert float(expected) != pytest.approx(1.0, abs=0.01)
        answer = predictor([Member(task)])(part.features, part.present, {})
        torch.testing.assert_close(answer.logits, logits[0] / expected, rtol=1e-4, atol=1e-5)
        surprise = F.cross_entropy(answer.logits, part.label)
        if len(patterns) == 1:
            assert surprise < F.cross_entropy(logits[0], part.label)

    def test_changes_nothing_else(self, tmp_path: Path) -> None:
        scores = [toy_cli(tmp_path, run=str(on), model__calibrate=on).train()["validation"] for on in (False, True)]
        assert scores[0] == scores[1]
