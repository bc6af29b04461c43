"""Checkpoints taken together as one model: `evaluate --ensemble`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.robustness import read_rows
from examples.mer.__main__ import main
from examples.mer.normalize import Standardizer
from examples.mer.predict import Member, predictor
from examples.pipeline.checkpoints import load_checkpoint
from tests.examples.mer_runs import fails, toy_cli, write_config, write_toy

FOLDS = ["--data.split_values", "{train: [0, 1, 2], test: 3}", "--data.folds", "3"]


@pytest.fixture
def fit(tmp_path: Path) -> Any:
    """Train a run on the toy set and return its checkpoint."""
    write_toy(tmp_path / "toy.npz")

    def train(run: str, *words: str, name: str = "toy", **changes: Any) -> str:
        config = write_config(tmp_path / f"{name}.yaml", **changes)
        command = ["fit", "--config", str(config), "--data.root", str(tmp_path / "toy.npz"), *words]
        assert main([*command, "--trainer.default_root_dir", str(tmp_path / run)]) == 0
        return str(tmp_path / run / "best.ckpt")

    return train


class TestPredictor:
    def test_averages_probabilities_after_the_members_own_temperatures(self, tmp_path: Path) -> None:
        plain = {"model__family": "attention", "model__options": {"hidden_features": 8}}
        tasks = [toy_cli(tmp_path, **changes).model.eval() for changes in (plain, {"model__calibrate": True})]
        tasks[1].temperature.temperature.fill_(0.2)
        raw = toy_cli(tmp_path, "--data.normalize", "none").datamodule.sets["test"]
        own = [Standardizer.fit(raw.subset(rows)) for rows in (range(10), range(10, 25))]
        parts = [scale.apply(raw) for scale in own]
        with torch.no_grad():
            outputs = [task.model(part.features, part.present) for task, part in zip(tasks, parts, strict=True)]
        members = [Member(task, scale) for task, scale in zip(tasks, own, strict=True)]
        with torch.no_grad():
            both = predictor(members, own[0], probabilities=True)(parts[0].features, parts[0].present, {})
        expected = (outputs[0].logits.softmax(1) + (outputs[1].logits / 0.2).softmax(1)) / 2
        torch.testing.assert_close(both.logits.exp(), expected)
        torch.testing.assert_close(both.values, (outputs[0].values + outputs[1].values)[:, 0] / 2)
        torch.testing.assert_close(both.weights, (outputs[0].weights + outputs[1].weights) / 2)
        assert outputs[0].std is None and both.std is None  # not all of them have it

    def test_stays_finite_where_a_probability_is_none(self, tmp_path: Path) -> None:
        task = toy_cli(tmp_path, model__calibrate=True).model.eval()
        task.temperature.temperature.fill_(1e-4)
        part = toy_cli(tmp_path).datamodule.sets["test"]
        with torch.no_grad():
            answer = predictor([Member(task)] * 2, probabilities=True)(part.features, part.present, {})
        assert answer.logits.isfinite().all()


class TestCommand:
    def test_is_one_row_of_seeds_folds_and_families(
        self, fit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        plain = {"model__family": "attention", "model__options": {"hidden_features": 8}}
        paths = [
            fit("one", *FOLDS),
            fit("two", *FOLDS, "--data.fold", "1", "--seed_everything", "4"),
            fit("three", *FOLDS, name="plain", **plain),
        ]
        out = tmp_path / "out"
        capsys.readouterr()
        assert main(["evaluate", *paths, "--ensemble", "--out", str(out), "--views", "subset", "calibration"]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "`ensemble`: 3 checkpoints (2 of toy, 1 of plain) as one model" in printed
        assert "it has no regret" in printed
        rows = read_rows(out / "runs.csv")
        assert rows[["config", "seed", "fold"]].values.tolist() == [["ensemble", -1, -1]]
        assert not [name for name in rows if name.startswith(("regret", "specialist"))]
        assert not (out / "specialists").exists()
        assert rows["calibration[a+b].nll"][0] == pytest.approx(self.surprise(tmp_path, paths), abs=1e-5)
        scores = [load_checkpoint(path)["validation"]["weighted_f1"] for path in paths]
        assert rows["val.weighted_f1"][0] == pytest.approx(sum(scores) / 3)

    def surprise(self, folder: Path, paths: list[str]) -> float:
        """Compute the negative log-likelihood of the mean probability, each member on its own features."""
        total: Any = 0
        for path in paths:
            config = folder / "stored.yaml"
            config.write_text(load_checkpoint(path)["config"])
            cli = toy_cli(folder, "--config", str(config))
            cli.model.load_state_dict(load_checkpoint(path)["state_dict"])
            part = cli.datamodule.sets["test"]
            with torch.no_grad():
                total += cli.model.eval()(part.batch(slice(None))).logits.softmax(1) / len(paths)
        return float(F.nll_loss(total.log(), part.label))

    def test_test_rows_settings_and_classes_are_the_same(
        self, fit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = fit("first")
        rest = ["--ensemble", "--out", str(tmp_path / "out"), "--views"]
        for run, words, message in (
            ("none", ["--data.normalize", "none"], "expected data.normalize train as in "),
            ("order", ["--data.modalities", "[b, a]"], "expected data.modalities [('a', 'a'), ('b', 'b')] as in "),
            ("only", ["--data.only", "[a]"], "expected data.only None as in "),
            ("classes", ["--data.classes", "['x', 'y', 'z']"], "expected the classes ['0', '1', '2'] as in "),
            ("score", ["--data.score", "null"], "expected data.score score as in "),
            ("rows", ["--data.max_rows", "20"], "expected the test rows of "),
        ):
            other = fit(run, *words)
            error = fails(capsys, "evaluate", first, other, *rest)
            assert error.startswith(f"error: evaluate: --ensemble: {other}: ") and message in error
            assert first in error
        assert "expected different checkpoints" in fails(capsys, "evaluate", first, first, *rest)
        assert "--reference: expected one of ensemble" in fails(capsys, "evaluate", first, *rest, "--reference", "toy")
        assert not (tmp_path / "out" / "runs.csv").exists()

    def test_no_row_is_tested_by_a_member_that_was_trained_on_it(
        self, fit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["--data.split", "null", "--data.split_values", "null", "--data.folds", "4"]
        paths = [fit(fold, *words, "--data.fold", fold) for fold in ("0", "2")]
        error = fails(capsys, "evaluate", *paths, "--ensemble", "--out", str(tmp_path / "out"), "--views")
        assert f"{paths[1]}: expected the test rows of {paths[0]}, got others; 30 of those 30 are its training" in error

    def test_other_data_of_the_same_size_is_refused(
        self, fit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first, other = fit("first"), write_toy(tmp_path / "other.npz", seed=1)
        second = fit("second", "--data.root", str(other))
        error = fails(capsys, "evaluate", first, second, "--ensemble", "--out", str(tmp_path / "out"), "--views")
        assert "expected data of fingerprint" in error

    def test_is_another_result_than_its_members(
        self, fit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        paths = [fit("one"), fit("two", "--seed_everything", "1")]
        rest = ["--no-regret", "--out", str(tmp_path / "out"), "--views"]
        assert main(["evaluate", *paths, *rest]) == 0
        assert read_rows(tmp_path / "out" / "runs.csv")["config"].tolist() == ["toy", "toy"]
        assert "of other checkpoints, settings or views" in fails(capsys, "evaluate", *paths, "--ensemble", *rest)
        assert main(["evaluate", *paths, "--ensemble", "--overwrite", *rest]) == 0
        assert read_rows(tmp_path / "out" / "runs.csv")["config"].tolist() == ["ensemble"]
