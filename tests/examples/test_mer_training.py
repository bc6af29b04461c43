"""The training task: loss, metrics, selection, resuming; and the configurations of the experiments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from sklearn.metrics import accuracy_score, f1_score

from examples.mer.arguments import CONFIGS
from examples.mer.cli import MerCLI
from examples.mer.metrics import FusionMetrics
from examples.mer.selection import looks
from examples.mer.task import FusionTask, masked_squared_error
from tests.examples.mer_runs import ROWS, toy_cli, write_toy

PUBLISHED = {
    "baseline": {"lr": 1e-3, "weight_decay": 1e-5, "optimizer": "adam"},
    "robust_v1": {"weight_decay": 1e-4, "dropout": 0.5, "modality_dropout": 0.3, "patience": 20},
    "robust_v2": {"weight_decay": 5e-5, "dropout": 0.4, "modality_dropout": 0.15, "patience": 25},
    "robust_v3": {"weight_decay": 5e-5, "dropout": 0.35, "modality_dropout": 0.2, "patience": 30, "lr_patience": 15,
                  "modality_dropout_warmup": 30, "modality_dropout_ramp": 30},
    "v4_full": {"fusion": "gated", "contrastive_weight": 0.1},
    "v4_no_contrastive": {"fusion": "gated", "contrastive_weight": 0.0},
    "v4_no_gate": {"fusion": "uncertainty", "contrastive_weight": 0.1},
    "v4_pure_vae": {"fusion": "uncertainty", "contrastive_weight": 0.0},
    "robust": {"family": "variational"},
}  # fmt: skip
V4 = {"hidden_features": 128, "dropout": 0.35, "kl_weight": 0.01, "reconstruction_weight": 0.1, "cross_kl_weight": 0.01,
      "temperature": 1.0, "modality_dropout": 0.15, "modality_dropout_warmup": 20, "modality_dropout_ramp": 20,
      "lr": 5e-4, "weight_decay": 5e-5, "patience": 30, "lr_patience": 10, "absence": "zero_fill",
      "weighting": "softmax_inverse_std", "attention": "per_modality", "latent_reduction": "sum",
      "reconstruct_from": "own", "logvar_bound": "clamp", "symmetric_cross_kl": False}  # fmt: skip


def make_task(**changes: object) -> FusionTask:
    options = {"hidden_features": 8, "dropout": 0.0}
    settings = {"family": "attention", "options": options, "in_features": {"a": 5, "b": 4}, "num_classes": 3}
    return FusionTask(**{**settings, "num_values": 1, **changes})


def make_batch(rows: int = 6) -> dict[str, object]:
    label = torch.tensor([0, 1, 2, -1, 1, 0])[:rows]
    score = torch.tensor([0.5, float("nan"), 1.0, 2.0, float("nan"), -1.0])[:rows]
    present = torch.ones(rows, 2, dtype=torch.bool)
    return {
        "inputs": {"a": torch.randn(rows, 5), "b": torch.randn(rows, 4)},
        "masks": {},
        "present": present,
        "label": label,
        "score": score,
    }


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
        task.log = lambda *args, **options: None
        output = task(batch)
        known, scored = batch["label"] >= 0, ~batch["score"].isnan()
        expected = F.cross_entropy(output.logits[known], batch["label"][known])
        expected = expected + 0.5 * F.mse_loss(output.values[scored, 0], batch["score"][scored])
        torch.testing.assert_close(task.training_step(batch, 0), expected)

    def test_adds_the_auxiliary_loss_of_the_variational_family(self) -> None:
        task, batch = make_task(family="variational"), make_batch()
        task.log = lambda *args, **options: None
        losses = []
        for weight in (0.0, 1.0):
            torch.manual_seed(0)
            task.model.variational_loss.reconstruction_weight = weight
            losses.append(float(task.training_step(batch, 0).detach()))
        assert losses[1] > losses[0]

    def test_without_any_label_or_score_is_finite_with_finite_gradients(self) -> None:
        task, batch = make_task(), make_batch()
        task.log = lambda *args, **options: None
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
            ({"corruption_rate": 1.5}, r"ModalityCorruption: expected rate in \[0.0, 1.0\], got 1.5"),
            ({"selection": ["clean", "noisy"]}, "model.selection: expected one of clean, subset, corrupt, got 'noisy'"),
        ],
    )
    def test_names_a_wrong_option_and_what_is_allowed(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            make_task(**changes)


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


class TestSelection:
    def test_looks_at_every_subset_and_every_spoilt_modality_once(self) -> None:
        batch = make_batch()
        present = batch["present"]
        found = list(looks(batch, ("clean", "subset", "corrupt"), 0))
        count = present.shape[1]
        assert [look.view for look in found].count("subset") == 2**count - 2
        assert [look.view for look in found].count("corrupt") == 2 * count
        for look in found:
            assert not (look.present & ~present).any() and not (look.rows & ~look.present.any(1)).any()
        spoilt = [look for look in found if look.view == "corrupt"]
        changed = [name for look in spoilt for name, x in look.inputs.items() if x is not batch["inputs"][name]]
        assert changed == [name for name in batch["inputs"] for _ in range(2)]
        again = list(looks(batch, ("corrupt",), 0))
        assert all(torch.equal(a.inputs[n], b.inputs[n]) for a, b, n in zip(spoilt, again, changed, strict=True))

    def test_follows_the_mean_of_the_views(self, tmp_path: Path) -> None:
        views = ["clean", "subset", "corrupt"]
        cli = toy_cli(tmp_path, model__selection=views, trainer__max_epochs=1)
        scores = cli.train()["validation"]
        assert scores["combined"] == pytest.approx(sum(scores[f"{view}_combined"] for view in views) / 3)

    def test_a_model_with_quality_has_seen_the_training_rows(self, tmp_path: Path) -> None:
        options = {"hidden_features": 8, "quality": "replace", "attention": "none"}
        changes = {"model__family": "variational", "model__options": options, "model__corruption_rate": 0.5}
        cli = toy_cli(tmp_path, **changes, trainer__max_epochs=1)
        cli.train()
        train = cli.datamodule.sets["train"]
        for index, (name, reference) in enumerate(zip(train.features, cli.model.model.quality.references, strict=True)):
            torch.testing.assert_close(reference.mean, train.features[name][train.present[:, index]].mean(0))


class TestMetrics:
    def test_equal_scikit_learn_over_batches(self, rng: np.random.Generator) -> None:
        logits, label = rng.standard_normal((50, 3)), rng.integers(-1, 3, 50)
        values, score = rng.standard_normal(50), np.where(rng.random(50) < 0.3, np.nan, rng.standard_normal(50))
        metrics = FusionMetrics(3, with_values=True)
        for rows in np.split(np.arange(50), [7, 30]):
            metrics.update(*(torch.from_numpy(x[rows]) for x in (logits, label, values, score)))
        known, predicted = label >= 0, logits.argmax(1)
        truth, answer = label[known], predicted[known]
        weighted = f1_score(truth, answer, average="weighted")
        error = np.nanmean((values - score) ** 2)
        found = {name: float(value) for name, value in metrics.compute().items()}
        assert found == pytest.approx(
            {
                "weighted_f1": weighted,
                "macro_f1": f1_score(truth, answer, average="macro"),
                "accuracy": accuracy_score(truth, answer),
                "valence_mse": error,
                "combined": weighted - 0.25 * error,
            },
            rel=1e-5,
        )

    def test_combined_is_weighted_f1_without_known_scores_and_nan_for_a_model_that_diverged(self) -> None:
        metrics = FusionMetrics(2, with_values=True)
        logits, label = torch.eye(2), torch.tensor([0, 0])
        metrics.update(logits, label, torch.zeros(2), torch.full((2,), torch.nan))
        assert metrics.compute()["combined"] == metrics.compute()["weighted_f1"] > 0
        metrics.update(logits * torch.nan, label, torch.zeros(2), torch.zeros(2))
        assert metrics.compute()["combined"].isnan()
        metrics.reset()
        metrics.update(logits, label)
        assert metrics.compute()["combined"] == metrics.compute()["weighted_f1"]


class TestTraining:
    def test_resumed_after_two_kills_equals_uninterrupted(self, tmp_path: Path) -> None:
        changes = {"trainer__max_epochs": 5, "early_stopping__patience": 3, "model__lr_patience": 0}
        changes |= {"model__corruption_rate": 0.3, "model__selection": ["clean", "corrupt"]}
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

    def test_divergence_in_the_first_epoch_is_one_error(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="toy: the training diverged in its first epoch"):
            toy_cli(tmp_path, model__lr=1e30).train()

    def test_mixed_precision(self, tmp_path: Path) -> None:
        best = toy_cli(tmp_path, "--trainer.precision", "bf16-mixed").train()
        assert 0 <= best["validation"]["weighted_f1"] <= 1


class TestConfigs:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_holds_the_published_settings(self, name: str, tmp_path: Path) -> None:
        words = ["--config", str(CONFIGS / f"{name}.yaml"), "--data.root", str(tmp_path)]
        config = MerCLI(words, build=False).config
        found = {**config.model.options, **vars(config.model), "patience": config.early_stopping.patience}
        expected = {**(V4 if name.startswith("v4") else {}), **PUBLISHED[name]}
        assert {key: found[key] for key in expected} == expected
        assert list(config.data.modalities) == ["audio", "text", "video"]
        assert (config.data.batch_size, config.trainer.max_epochs) == (32, 100)

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_trains_on_any_number_of_modalities(self, name: str, tmp_path: Path) -> None:
        root = write_toy(tmp_path / "toy.npz", sizes={"p": 3, "q": 2, "r": 4, "s": 3})
        data = tmp_path / "data.yaml"
        data.write_text("data: {format: npz, modalities: [p, q, r, s], folds: 3, batch_size: 64}\n")
        words = ["--config", str(CONFIGS / f"{name}.yaml"), "--config", str(data), "--data.root", str(root)]
        words += ["--trainer.max_epochs", "1", "--trainer.default_root_dir", str(tmp_path / "run")]
        cli = MerCLI(words, trainer={"enable_progress_bar": False, "accelerator": "cpu"})
        cli.train()
        assert cli.model.model.modalities == ("p", "q", "r", "s")

    @pytest.mark.parametrize("path", sorted((CONFIGS / "data").glob("*.yaml")), ids=lambda path: path.stem)
    def test_data_configurations_replace_the_modalities(self, path: Path, tmp_path: Path) -> None:
        words = ["--config", str(CONFIGS / "robust.yaml"), "--config", str(path), "--data.root", str(tmp_path)]
        config = MerCLI(words, build=False).config
        counts = {"mer2023": 3, "wesad": 4, "mosi": 2, "mfeat": 6}
        assert len(config.data.modalities) == counts[path.stem]
