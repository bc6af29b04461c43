"""The configurations of the experiments and their variants: what they say, and that each of them trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from examples.mer.ablate import ALL
from examples.mer.arguments import CONFIGS, VARIANTS, find_variant, label_of
from examples.mer.cli import MerCLI
from examples.mer.jobs import Job
from examples.mer.specialists import specialist_jobs
from examples.mer.task import FusionTask
from tests.examples.mer_runs import write_toy

CHANGES = yaml.safe_load(VARIANTS.read_text())
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
    "p_rmf": {"fusion": "uncertainty", "weighting": "softmax_inverse_std", "per_dimension": True,
              "absence": "zero_fill", "corruption_kinds": ["zeros"], "corruption_rate": 0.25,
              "latent_reduction": "mean", "reconstruct_from": "own",
              "kl_weight": 0.5, "reconstruction_weight": 0.5, "cross_kl_weight": 0.5},
    "mean": {"fusion": "mean", "attention": "none", "modality_dropout": 0.5, "kl_weight": 0.0,
             "reconstruction_weight": 0.0, "cross_kl_weight": 0.0},
    "robust": {"family": "variational", "views": 14, "teach_quality": True, "quality": "replace",
               "freeze_quality": True, "average": 0.99, "calibrate": True, "select_by": "likelihood",
               "selection": ["clean", "subset"]},
    "robust_poe": {"family": "variational", "prior_expert": True, "per_dimension": True, "modality_dropout": 0.5},
}  # fmt: skip
V4 = {"hidden_features": 128, "dropout": 0.35, "kl_weight": 0.01, "reconstruction_weight": 0.1, "cross_kl_weight": 0.01,
      "temperature": 1.0, "modality_dropout": 0.15, "modality_dropout_warmup": 20, "modality_dropout_ramp": 20,
      "lr": 5e-4, "weight_decay": 5e-5, "patience": 30, "lr_patience": 10, "absence": "zero_fill",
      "weighting": "softmax_inverse_std", "attention": "per_modality", "latent_reduction": "sum",
      "reconstruct_from": "own", "logvar_bound": "clamp", "symmetric_cross_kl": False}  # fmt: skip
SIZES = {"p": 3, "q": 2, "r": 4, "s": 3}


def toy_data(folder: Path) -> list[str]:
    """Write a set of four modalities and say where it is, for any configuration."""
    root, data = folder / "toy.npz", folder / "data.yaml"
    if not root.exists():
        write_toy(root, sizes=SIZES)
    data.write_text("data: {format: npz, modalities: [p, q, r, s], folds: 3, batch_size: 64}\n")
    return ["--config", str(data), "--data.root", str(root), "--trainer.accelerator", "cpu"]


def toy_task(folder: Path, config: Path) -> FusionTask:
    return MerCLI(["--config", str(config), *toy_data(folder)], trainer={"enable_progress_bar": False}).model


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
        words = ["--config", str(CONFIGS / f"{name}.yaml"), *toy_data(tmp_path)]
        words += ["--trainer.max_epochs", "1", "--trainer.default_root_dir", str(tmp_path / "run")]
        cli = MerCLI(words, trainer={"enable_progress_bar": False})
        cli.train()
        assert cli.model.model.modalities == ("p", "q", "r", "s")

    @pytest.mark.parametrize("path", sorted((CONFIGS / "data").glob("*.yaml")), ids=lambda path: path.stem)
    def test_data_configurations_replace_the_modalities(self, path: Path, tmp_path: Path) -> None:
        words = ["--config", str(CONFIGS / "robust.yaml"), "--config", str(path), "--data.root", str(tmp_path)]
        config = MerCLI(words, build=False).config
        counts = {"mer2023": 3, "wesad": 4, "mosi": 2, "mfeat": 6, "mfeat_three": 3, "rosmap": 3}
        assert len(config.data.modalities) == counts[path.stem]


class TestPublishedGenerator:
    def test_p_rmf_sees_zeros_in_place_of_a_quarter_and_is_shown_what_was_there(self, tmp_path: Path) -> None:
        task = toy_task(tmp_path, CONFIGS / "p_rmf.yaml")
        batch = {"inputs": {name: torch.randn(400, size) for name, size in SIZES.items()}, "masks": {}}
        batch["present"], seen = torch.ones(400, len(SIZES), dtype=torch.bool), []
        forward = task.model.forward
        task.model.forward = lambda *args: seen.append(args) or forward(*args)
        torch.manual_seed(0)
        task.train()(batch)
        inputs, present, _, targets = seen[0]
        assert bool(present.all())
        gone = torch.stack([(x == 0).all(1) for x in inputs.values()], 1)
        assert gone.float().mean() == pytest.approx(0.25, abs=0.04)
        for index, (name, x) in enumerate(batch["inputs"].items()):
            assert torch.equal(targets[name], x) and torch.equal(inputs[name][~gone[:, index]], x[~gone[:, index]])

    def test_p_rmf_weighs_dimension_by_dimension_and_zeros_too(self, tmp_path: Path) -> None:
        task = toy_task(tmp_path, CONFIGS / "p_rmf.yaml").eval()
        inputs = {name: torch.randn(5, size) for name, size in SIZES.items()}
        present = torch.ones(5, len(SIZES), dtype=torch.bool)
        present[:, 0] = False
        output = task.model(inputs, present)
        torch.testing.assert_close(output.weights, (1 / output.std).softmax(1))
        assert output.weights.shape == (5, len(SIZES), 128) and bool((output.weights[:, 0] > 0).all())


class TestDefaults:
    def test_ablate_runs_eleven_configurations_that_are_there(self) -> None:
        assert len(ALL) == 11
        assert set(ALL) < {path.stem for path in CONFIGS.glob("*.yaml")}

    def test_a_specialist_of_robust_sees_and_is_selected_by_its_own_modalities(self, tmp_path: Path) -> None:
        words = ("--config", str(CONFIGS / "robust.yaml"), *toy_data(tmp_path))
        run = Job("robust", "toy", 0, 0, words, "", "print")
        config = yaml.safe_load(MerCLI(words, build=False).stored)
        jobs = specialist_jobs(run, config, ("p", "q"), tmp_path)
        assert list(jobs) == ["p", "q", "p+q"]
        cli = MerCLI(jobs["q"].args)
        assert cli.datamodule.in_features == {"q": SIZES["q"]} and cli.model.model.modalities == ("q",)
        assert (cli.model.views, cli.model.selection, cli.model.select_by) == (0, ("clean",), "likelihood")
        poe = ("--config", str(CONFIGS / "robust_poe.yaml"), *toy_data(tmp_path))
        config = yaml.safe_load(MerCLI(poe, build=False).stored)
        (job,) = specialist_jobs(replace(run, args=poe), config, ("p",), tmp_path).values()
        assert MerCLI(job.args, build=False).config.model.options["modality_dropout"] == 0


class TestVariants:
    @pytest.mark.parametrize("variant", CHANGES)
    def test_each_builds_robust_with_its_changes(self, variant: str, tmp_path: Path) -> None:
        path, words = find_variant(f"robust:{variant}")
        assert path == CONFIGS / "robust.yaml"
        cli = MerCLI(["--config", str(path), *words, *toy_data(tmp_path)], trainer={"enable_progress_bar": False})
        plain = MerCLI(["--config", str(path), *toy_data(tmp_path)], build=False)
        stored = yaml.safe_load(cli.stored)
        for name, value in CHANGES[variant].items():
            found = stored
            for key in name.split("."):
                found = found[key]
            assert found == value
        assert cli.stored != plain.stored
        batch = {"inputs": {name: torch.randn(6, size) for name, size in SIZES.items()}, "masks": {}}
        batch |= {"present": torch.ones(6, len(SIZES), dtype=torch.bool), "label": torch.arange(6) % 3}
        cli.model.log = lambda *args, **options: None
        assert cli.model.train().training_step(batch, 0).isfinite()

    def test_are_named_after_configuration_and_variant(self) -> None:
        assert label_of("robust:no_views") == "robust-no_views"
        assert label_of("some/where.yaml:no_views") == "where-no_views"
        assert label_of("robust-no_views") == "robust-no_views"
        assert find_variant("robust") == (CONFIGS / "robust.yaml", [])

    def test_names_what_is_unknown(self) -> None:
        with pytest.raises(ValueError, match=r"robust:nope: expected a variant among no_views, .*, got 'nope'"):
            find_variant("robust:nope")
        with pytest.raises(
            FileNotFoundError, match=r"robust_quality: no such .* or one of baseline, mean, p_rmf, robust,"
        ):
            find_variant("robust_quality:no_views")
