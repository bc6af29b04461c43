"""The training task: loss, resuming, what a run leaves behind."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor

from examples.mer.metrics import FusionMetrics
from examples.mer.task import FusionTask, masked_squared_error
from mmrobust.presence import presence_views
from tests.examples.mer_runs import ROWS, make_batch, make_task, toy_cli

QUALITY = {"quality": "replace", "attention": "none"}
ROBUST = {
    "model__views": 2,
    "model__teach_quality": True,
    "model__average": 0.9,
    "model__consistency": 0.5,
    "model__calibrate": True,
    "model__selection": ["clean", "subset"],
    "model__select_by": "likelihood",
}
NOTHING_BESIDE = {"kl_weight": 0.0, "reconstruction_weight": 0.0, "cross_kl_weight": 0.0}
SIZES = {"a": 5, "b": 4, "c": 3}
RUNS = {
    "plain": {"model__selection": ["clean", "corrupt"]},
    "robust": {**ROBUST, "model__options": {"hidden_features": 8, "dropout": 0.2, "freeze_quality": True, **QUALITY}},
    "learnt quality": {**ROBUST, "model__options": {"hidden_features": 8, "dropout": 0.2, **QUALITY}},
}


def separate_loss(task: FusionTask, batch: dict[str, Any], present: Tensor, value_weight: float) -> Tensor:
    """Compute the loss of one view from a call of the model in evaluation mode."""
    output = task.model.eval()(batch["inputs"], present)
    known, scored = batch["label"] >= 0, ~batch["score"].isnan()
    loss = F.cross_entropy(output.logits[known], batch["label"][known])
    return loss + value_weight * F.mse_loss(output.values[scored, 0], batch["score"][scored])


class Kill(Callback):
    """End the run in the middle of an epoch, as a crash would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: object, *rest: object) -> None:
        if trainer.current_epoch == self.epoch and rest[-1] == 1:
            raise RuntimeError("killed")


class TestLoss:
    def test_is_cross_entropy_plus_masked_squared_error(self) -> None:
        task, batch = make_task(value_weight=0.5).eval(), make_batch()
        output = task(batch)
        known, scored = batch["label"] >= 0, ~batch["score"].isnan()
        expected = F.cross_entropy(output.logits[known], batch["label"][known])
        expected = expected + 0.5 * F.mse_loss(output.values[scored, 0], batch["score"][scored])
        torch.testing.assert_close(task.training_step(batch, 0), expected)

    def test_adds_the_auxiliary_loss_of_the_variational_family(self) -> None:
        task, batch = make_task(family="variational"), make_batch()
        losses = []
        for weight in (0.0, 1.0):
            torch.manual_seed(0)
            task.model.variational_loss.reconstruction_weight = weight
            losses.append(float(task.training_step(batch, 0).detach()))
        assert losses[1] > losses[0]

    def test_without_any_label_or_score_is_finite_with_finite_gradients(self) -> None:
        task, batch = make_task(), make_batch()
        batch["label"], batch["score"] = torch.full((6,), -1), torch.full((6,), float("nan"))
        loss = task.training_step(batch, 0)
        loss.backward()
        assert loss.item() == 0
        assert all(x.grad is None or x.grad.isfinite().all() for x in task.parameters())

    def test_squared_error_reads_only_rows_with_a_score(self) -> None:
        values = torch.tensor([1.0, 2.0], requires_grad=True)
        loss = masked_squared_error(values, torch.tensor([float("nan"), 4.0]))
        loss.backward()
        assert loss.item() == 4
        assert values.grad.tolist() == [0, -4]

    def test_focal_loss_and_class_weights_are_settings(self) -> None:
        task = make_task(loss="focal", loss_options={"gamma": 1.0, "weight": [1.0, 2.0, 3.0]})
        assert task.classification_loss.weight.tolist() == [1, 2, 3]
        assert task.classification_loss.ignore_index == -1

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"options": {"hidden_features": 8, "hiden": 1}}, "unknown option 'hiden'; allowed: absence, "),
            ({"options": {"hidden_features": 8, "num_classes": 2}}, "unknown option 'num_classes'"),
            ({"options": {"dropout": 0.1}}, "option 'hidden_features' is required"),
            ({"family": "graph"}, "model.family: expected one of attention, variational, got 'graph'"),
            ({"loss": "hinge"}, "model.loss: expected one of cross_entropy, "),
            ({"loss_options": {"reduction": "sum"}}, "unknown option 'reduction'"),
            ({"select_by": "speed"}, "model.select_by: expected one of combined, likelihood, got 'speed'"),
            ({"full_weight": 1.5}, "model.full_weight: expected 0 to 1.0, got 1.5"),
            ({"average": -0.1}, "model.average: expected 0 to 1.0, got -0.1"),
            ({"consistency": -1.0}, "model.consistency: expected 0 to inf, got -1.0"),
            ({"consistency": 0.5}, "model.consistency: expected 0 without model.average, got 0.5"),
            ({"views": 2}, "model.views: expected 0 with family attention, got 2"),
            (
                {"views": 2, "family": "variational", "options": {"hidden_features": 8, "absence": "zero_fill"}},
                "model.views: expected 0 with absence zero_fill, got 2",
            ),
            (
                {"views": 2, "family": "variational", "options": {"hidden_features": 8, "modality_dropout": 0.4}},
                "model.options.modality_dropout: expected 0 with model.views, got 0.4",
            ),
            ({"teach_quality": True}, "model.teach_quality: expected false without model.options.quality, got true"),
            (
                {"family": "variational", "options": {"hidden_features": 8, "freeze_quality": True, **QUALITY}},
                "model.options.freeze_quality: expected false without model.teach_quality, got true",
            ),
            (
                {"family": "variational", "options": {"hidden_features": 8, "fusion": "mean", **QUALITY}},
                "expected quality='none' with fusion='mean', which weighs all alike, got 'replace'",
            ),
            ({"calibrate": True, "selection": ["corrupt"]}, "model.calibrate: expected 'clean' or 'subset' in"),
            ({"corruption_rate": 1.5}, r"ModalityCorruption: expected rate in \[0.0, 1.0\], got 1.5"),
            ({"selection": ["clean", "noisy"]}, "model.selection: expected one of clean, subset, corrupt, got 'noisy'"),
        ],
    )
    def test_names_a_wrong_option_and_what_is_allowed(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            make_task(**changes)


class TestViews:
    def task(self, **changes: Any) -> FusionTask:
        settings = {
            "family": "variational",
            "options": {"hidden_features": 8, "dropout": 0.0, **NOTHING_BESIDE},
            "in_features": SIZES,
            "value_weight": 0.5,
        }
        return make_task(**{**settings, **changes})

    @pytest.mark.parametrize("full_weight", [None, 0.0, 0.7, 1.0])
    def test_loss_weighs_the_batch_as_it_is_and_the_mean_over_the_subsets(self, full_weight: float | None) -> None:
        task, batch = self.task(views=14, full_weight=full_weight), make_batch(**SIZES)
        batch["present"][1, 2] = batch["present"][2, :2] = False
        found = task.train().training_step(batch, 0)
        others = []
        for names in [one for size in (1, 2) for one in combinations(range(3), size)]:
            kept = batch["present"] & torch.tensor([index in names for index in range(3)])
            # A row that has none of the subset is seen with all it has.
            kept = torch.where(kept.any(1, keepdim=True), kept, batch["present"])
            others.append(separate_loss(task, batch, kept, 0.5))
        full = separate_loss(task, batch, batch["present"], 0.5)
        share = 1 / 7 if full_weight is None else full_weight  # None: every view counts alike
        torch.testing.assert_close(found, share * full + (1 - share) * torch.stack(others).mean())

    def test_fewer_subsets_are_drawn(self) -> None:
        task, batch = self.task(views=2), make_batch(**SIZES)
        torch.manual_seed(3)
        found = task.train().training_step(batch, 0)
        torch.manual_seed(3)
        views = presence_views(batch["present"], 2)
        full, *others = [separate_loss(task, batch, view, 0.5) for view in views]
        torch.testing.assert_close(found, (full + others[0] + others[1]) / 3)

    def test_one_modality_is_its_only_view(self) -> None:
        task, batch = self.task(in_features={"a": 5}, views=3, full_weight=0.3), make_batch(a=5)
        found = task.train().training_step(batch, 0)
        torch.testing.assert_close(found, separate_loss(task, batch, batch["present"], 0.5))

    def test_are_for_training_only(self) -> None:
        task, batch = self.task(views=14), make_batch(**SIZES)
        assert task.train()(batch).logits.shape == (7, 6, 3)
        assert task.eval()(batch).logits.shape == (6, 3)


class TestCorruption:
    def test_model_reads_spoilt_inputs_and_reconstructs_clean_ones_in_training_only(self) -> None:
        task, batch = make_task(family="variational", corruption_rate=1.0), make_batch()
        seen = []
        forward = task.model.forward
        task.model.forward = lambda *args: seen.append(args) or forward(*args)
        task(batch)
        task.eval()(batch)
        assert not torch.equal(seen[0][0]["a"], batch["inputs"]["a"])
        assert torch.equal(seen[0][3]["a"], batch["inputs"]["a"])
        assert seen[1][0]["a"] is batch["inputs"]["a"]

    def batch(self) -> dict[str, Any]:
        """Make a batch of a vector that three rows lack and a sequence that one row lacks."""
        batch, steps = make_batch(a=5, b=4), torch.arange(3) < torch.tensor([[3], [0], [2], [1], [2], [3]])
        batch["inputs"]["b"] = torch.where(steps.unsqueeze(-1), torch.randn(6, 3, 4), 0.0)
        batch["masks"], batch["present"][:, 1] = {"b": steps}, steps.any(1)
        batch["present"][[0, 2, 4], 0], batch["inputs"]["a"][[0, 2, 4]] = False, 0.0
        return batch

    def spoilt(self, batch: dict[str, Any], kinds: list[str]) -> tuple[dict[str, Tensor], FusionTask]:
        task = make_task(family="variational", sequences=["b"], corruption_rate=1.0, corruption_kinds=kinds)
        seen: list[Any] = []
        forward = task.model.forward
        task.model.forward = lambda *args: seen.append(args) or forward(*args)
        torch.manual_seed(3)
        task(batch)
        return seen[0][0], task

    def test_absent_rows_are_never_handed_to_present_ones(self) -> None:
        batch = self.batch()
        (found, _), clean = self.spoilt(batch, ["shuffle"]), batch["inputs"]["a"]
        present = batch["present"][:, 0]
        assert not found["a"][~present].any() and not found["b"][1].any()
        # A cycle through the three present rows: each gets another one, and none is lost.
        assert (found["a"][present] != clean[present]).any(1).all()
        torch.testing.assert_close(found["a"][present].sort(0).values, clean[present].sort(0).values)

    @pytest.mark.parametrize("kinds", [["noise"], ["zeros"], ["noise", "zeros"]], ids=str)
    def test_present_rows_are_spoilt_as_if_nothing_were_absent(self, kinds: list[str]) -> None:
        batch = self.batch()
        found, task = self.spoilt(batch, kinds)
        torch.manual_seed(3)
        alike = task.corruption(batch["inputs"], batch["masks"])
        present = batch["present"][:, 0]
        assert torch.equal(found["a"][present], alike["a"][present]) and torch.equal(found["b"], alike["b"])
        assert not found["a"][~present].any() and not found["b"][1].any()


class TestTraining:
    @pytest.mark.parametrize("kind", RUNS)
    def test_resumed_after_two_kills_equals_uninterrupted(self, kind: str, tmp_path: Path) -> None:
        changes = {"trainer__max_epochs": 5, "early_stopping__patience": 3, "model__lr_patience": 0}
        changes |= {"model__corruption_rate": 0.3, **RUNS[kind]}
        toy_cli(tmp_path, run="whole", **changes).train()
        for epoch, resume in ((1, None), (3, "last.ckpt"), (99, "last.ckpt")):
            cli = toy_cli(tmp_path, run="killed", **changes)
            cli.trainer.callbacks.insert(0, Kill(epoch))
            try:
                cli.train(None if resume is None else str(cli.root / resume))
            except RuntimeError as error:
                assert str(error) == "killed"
        for name in ("best", "last"):
            whole, killed = (torch.load(tmp_path / run / f"{name}.ckpt") for run in ("whole", "killed"))
            assert whole["epoch"] == killed["epoch"]
            assert whole["validation"] == killed["validation"]
            assert whole["lr_schedulers"] == killed["lr_schedulers"]
            assert all(torch.equal(x, killed["state_dict"][key]) for key, x in whole["state_dict"].items())

    def test_run_that_stopped_early_stays_stopped_when_resumed(self, tmp_path: Path) -> None:
        changes = {"trainer__max_epochs": 30, "early_stopping__patience": 1, "early_stopping__min_delta": 1.0}
        first = toy_cli(tmp_path, **changes)
        first.train()
        again = toy_cli(tmp_path, **changes)
        again.train(str(again.root / "last.ckpt"))
        assert first.trainer.current_epoch == again.trainer.current_epoch < 30

    def test_best_weights_are_restored_and_score_what_was_selected(self, tmp_path: Path) -> None:
        # Large steps at the end: the last epoch is not the best.
        cli = toy_cli(tmp_path, trainer__max_epochs=6, model__lr=0.3)
        best = cli.train()
        assert best["epoch"] < 5
        assert all(torch.equal(x, best["state_dict"][key]) for key, x in cli.model.state_dict().items())
        part = cli.datamodule.sets["val"]
        metrics = FusionMetrics(3, with_values=True)
        with torch.no_grad():
            output = cli.model(part.batch(slice(None)))
        metrics.update(output.logits, part.label, output.values[:, 0], part.score)
        assert float(metrics.compute()["combined"]) == pytest.approx(best["validation"]["combined"], abs=1e-5)

    def test_never_depends_on_the_test_rows(self, tmp_path: Path) -> None:
        toy_cli(tmp_path, run="one").train()
        part = np.arange(ROWS) // 3 % 4
        with np.load(tmp_path / "toy.npz") as file:
            arrays = dict(file)
        for name in ("a", "b", "score"):
            arrays[name] = np.where((part == 3).reshape(-1, *[1] * (arrays[name].ndim - 1)), 77.0, arrays[name])
        arrays["label"] = np.where(part == 3, 0, arrays["label"])
        np.savez(tmp_path / "toy.npz", **arrays)
        toy_cli(tmp_path, run="two").train()
        one, two = (torch.load(tmp_path / run / "best.ckpt")["state_dict"] for run in ("one", "two"))
        assert all(torch.equal(x, two[key]) for key, x in one.items())

    def test_seed_decides_the_weights(self, tmp_path: Path) -> None:
        states = []
        for run, seed in (("one", "0"), ("two", "0"), ("three", "1")):
            cli = toy_cli(tmp_path, "--seed_everything", seed, run=run)
            cli.train()
            states.append(cli.model.model.heads.classes.weight)
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])

    def test_settings_of_the_trainer_and_schedules(self, tmp_path: Path) -> None:
        cli = toy_cli(tmp_path, trainer__max_epochs=3)
        cli.train()
        assert (cli.trainer.gradient_clip_val, cli.trainer.gradient_clip_algorithm) == (1.0, "value")
        assert cli.trainer.early_stopping_callback.min_delta == pytest.approx(1e-3)
        scheduler = cli.trainer.lr_scheduler_configs[0].scheduler
        assert (scheduler.mode, scheduler.factor, scheduler.min_lrs) == ("max", 0.5, [1e-6])
        assert scheduler.last_epoch == 3  # stepped once per epoch
        last = torch.load(cli.root / "last.ckpt")
        epochs = [x for key, x in last["state_dict"].items() if "modality_dropout" in key and "epoch" in key]
        assert [int(x) for x in epochs] == [2]
        assert sorted(path.name for path in cli.root.iterdir()) == ["best.ckpt", "last.ckpt"]

    @pytest.mark.parametrize(("select_by", "score"), [("likelihood", -1.3), ("combined", 0.6)])
    def test_rate_falls_where_the_score_does_not_rise(self, select_by: str, score: float) -> None:
        task = make_task(select_by=select_by, lr_patience=1)
        task.trainer = SimpleNamespace(precision="32-true")
        scheduler = task.configure_optimizers()["lr_scheduler"]["scheduler"]
        for _ in range(3):
            scheduler.step(score)
        assert scheduler.get_last_lr() == [0.5e-3]

    def test_divergence_in_the_first_epoch_is_one_error(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="toy: the training diverged in its first epoch"):
            toy_cli(tmp_path, model__lr=1e30).train()

    def test_mixed_precision(self, tmp_path: Path) -> None:
        best = toy_cli(tmp_path, "--trainer.precision", "bf16-mixed").train()
        assert 0 <= best["validation"]["weighted_f1"] <= 1
