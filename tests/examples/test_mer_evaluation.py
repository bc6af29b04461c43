"""The command `evaluate`: what it writes and what it rejects."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.robustness import read_rows
from examples.mer.__main__ import main
from examples.mer.normalize import Standardizer
from examples.mer.origin import PENDING
from examples.mer.predict import Member, predictor
from tests.examples.mer_runs import PICTURES, fails, toy_cli, write_config, write_toy


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The configuration and set that most commands here use."""
    config, root = write_config(tmp_path / "toy.yaml"), write_toy(tmp_path / "toy.npz")
    return ["--config", str(config), "--data.root", str(root)]


class TestEvaluate:
    def test_prints_all_four_views_and_trains_specialists_once(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(["fit", *words, "--trainer.default_root_dir", str(tmp_path / "run")])
        out = tmp_path / "out"
        command = ["evaluate", str(tmp_path / "run" / "best.ckpt"), "--out", str(out), "--specialist-epochs", "1"]
        command += ["--workers", "1", "--draws", "2"]
        assert main(command) == 0
        printed = capsys.readouterr().out
        for title in ("mean over subsets", "mean over missing rates", "mean over corruptions", "mean regret"):
            assert title in printed
        assert all(str(out / name) in printed for name in ["runs.csv", "summary.md", "regret.png", *PICTURES])
        assert "Features: standardised by the training rows (`normalize: train`)." in printed
        assert "Specialists: 1 seed per subset, family" in printed and "1 epochs (`--specialist-epochs`)" in printed
        note = " ".join(printed.split())
        assert "as the run (corruption in training, averaging, teaching and calibration too), without" in note
        assert "![" not in printed
        row = read_rows(out / "runs.csv").iloc[0]
        robust, specialist = row["subset[a].weighted_f1"], row["specialist[a].weighted_f1"]
        assert row["regret[a].weighted_f1"] == pytest.approx(specialist - robust, abs=1e-5)
        before = {path: path.stat().st_mtime_ns for path in (out / "specialists").iterdir()}
        assert len(before) == 3
        assert main(command) == 0
        assert before == {path: path.stat().st_mtime_ns for path in (out / "specialists").iterdir()}

    def test_does_not_write_over_the_results_of_other_checkpoints(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        best = []
        for seed in ("0", "1"):
            run = tmp_path / seed
            main(["fit", *words, "--seed_everything", seed, "--trainer.default_root_dir", str(run)])
            best.append(str(run / "best.ckpt"))
        out = tmp_path / "out"
        rest = ["--out", str(out), "--no-regret", "--views"]
        assert main(["evaluate", best[0], *rest]) == 0
        assert main(["evaluate", best[0], *rest]) == 0
        before = (out / "runs.csv").read_bytes()
        error = fails(capsys, "evaluate", best[1], *rest)
        assert str(out) in error and "choose another --out, or pass --overwrite" in error
        for other in (["--data.normalize", "none"], ["--draws", "3"]):
            assert "of other checkpoints, settings or views" in fails(capsys, "evaluate", best[0], *rest, *other)
        note = json.loads((out / "origin.json").read_text())
        (out / "origin.json").write_text(json.dumps({**note, "runs": PENDING}))  # as an interrupted report leaves it
        assert main(["evaluate", best[0], *rest]) == 0
        assert (out / "runs.csv").read_bytes() == before
        assert main(["evaluate", best[1], "--overwrite", *rest]) == 0
        assert read_rows(out / "runs.csv")["seed"].tolist() == [1]
        (out / "runs.csv").write_bytes(before)  # as another command would: the note is not about these runs
        fails(capsys, "evaluate", best[1], *rest)

    def test_never_tests_on_rows_it_was_trained_on(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words += ["--data.split_values", "{train: [0, 1, 2], test: 3}", "--data.folds", "3"]
        main(["fit", *words, "--trainer.default_root_dir", str(tmp_path / "run")])
        best, out = str(tmp_path / "run" / "best.ckpt"), tmp_path / "out"
        rest = ["--out", str(out), "--no-regret", "--views"]
        for other in (["--data.fold", "1"], ["--data.split_seed", "7"], ["--data.split", "null"]):
            assert f"was trained with {other[0]} " in fails(capsys, "evaluate", best, *rest, *other)
        assert main(["evaluate", best, *rest]) == 0
        error = fails(capsys, "ablate", "--configs", words[1], *words[2:], "--seeds", "0", "--out", str(out))
        assert f"{out}: holds the results of evaluate" in error

    def test_runs_of_one_name_have_one_set_of_settings(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        best = []
        for seed, normalize in (("0", "train"), ("1", "none")):
            run = ["--seed_everything", seed, "--trainer.default_root_dir", str(tmp_path / seed)]
            main(["fit", *words, *run, "--data.normalize", normalize])
            best.append(str(tmp_path / seed / "best.ckpt"))
        error = fails(capsys, "evaluate", *best, "--out", str(tmp_path / "out"), "--no-regret", "--views")
        assert best[1] in error and "data.normalize is 'none' here and 'train' there" in error

    def test_folds_of_one_seed_are_one_ensemble(self, words: list[str], tmp_path: Path) -> None:
        paths = []
        words += ["--data.split_values", "{train: [0, 1, 2], test: 3}", "--data.folds", "3"]
        for fold in ("0", "1"):
            run = tmp_path / fold
            main(["fit", *words, "--data.fold", fold, "--trainer.default_root_dir", str(run)])
            paths.append(str(run / "best.ckpt"))
        assert main(["evaluate", *paths, "--out", str(tmp_path / "out"), "--no-regret", "--views"]) == 0
        rows = read_rows(tmp_path / "out" / "runs.csv")
        assert rows["fold"].tolist() == [-1]

    def test_members_of_an_ensemble_see_their_own_standardisation(self, tmp_path: Path) -> None:
        tasks = [toy_cli(tmp_path, "--seed_everything", seed).model.eval() for seed in ("0", "1")]
        raw = toy_cli(tmp_path, "--data.normalize", "none").datamodule.sets["test"]
        own = [Standardizer.fit(raw.subset(rows)) for rows in (range(10), range(10, 25))]
        parts = [scale.apply(raw) for scale in own]
        each = [
            predictor([Member(task)])(part.features, part.present, {}) for task, part in zip(tasks, parts, strict=True)
        ]
        members = [Member(task, scale) for task, scale in zip(tasks, own, strict=True)]
        both = predictor(members, own[0])(parts[0].features, parts[0].present, {})
        torch.testing.assert_close(both.logits, (each[0].logits + each[1].logits) / 2)
        torch.testing.assert_close(both.values, (each[0].values + each[1].values) / 2)

    def test_says_in_one_line_what_is_wrong(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(["fit", *words, "--trainer.default_root_dir", str(tmp_path / "run")])
        best, out = str(tmp_path / "run" / "best.ckpt"), ["--out", str(tmp_path / "out")]
        other = write_toy(tmp_path / "other.npz", sizes={"a": 6, "b": 4})
        assert "checkpoint of other sizes" in fails(capsys, "evaluate", best, *out, "--data.root", str(other))
        assert "no such checkpoint" in fails(capsys, "evaluate", "nowhere.ckpt", *out)
        assert "one checkpoint per configuration" in fails(capsys, "evaluate", best, best, *out)
        assert "evaluate: --draws: expected at least 1, got 0" in fails(capsys, "evaluate", best, *out, "--draws", "0")
        assert "--reference: expected one of toy, got" in fails(capsys, "evaluate", best, *out, "--reference", "nope")
        assert "unrecognized arguments: --nonsense" in fails(capsys, "evaluate", best, *out, "--nonsense")
        assert "--out" in fails(capsys, "evaluate", best)
        assert "--data.root: expected a value" in fails(capsys, "evaluate", best, *out, "--data.root")
        assert not (tmp_path / "out" / "runs.csv").exists()

    def test_part_without_scores_has_f1_only(self, tmp_path: Path) -> None:
        part = np.arange(120) // 3 % 4
        score = np.where(part == 3, np.nan, 1.0)
        root = write_toy(tmp_path / "toy.npz", score=score)
        words = ["--config", str(write_config(tmp_path / "toy.yaml")), "--data.root", str(root)]
        words += ["--data.split_values", "{train: 0, val: 1, test1: 2, test3: 3}"]
        main(["fit", *words, "--trainer.default_root_dir", str(tmp_path / "run")])
        best, out = str(tmp_path / "run" / "best.ckpt"), tmp_path / "out"
        assert main(["evaluate", best, "--out", str(out), "--no-regret", "--views", "subset"]) == 0
        columns = {name for name in read_rows(out / "runs.csv") if name.startswith("test")}
        everything = {"rows", "accuracy", "macro_f1", "weighted_f1", "combined", "valence_mse"}
        expected = {f"test1.{name}" for name in everything}
        assert columns == expected | {f"test3.{name}" for name in ("rows", "macro_f1", "weighted_f1")}
