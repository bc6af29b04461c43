"""The command `ablate`: what it runs and writes, how it goes on after an interruption, what it rejects."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.robustness import read_rows
from examples.mer import ablate, jobs
from examples.mer.__main__ import main
from tests.examples.mer_runs import PICTURES, fails, write_config, write_toy


@pytest.fixture
def ablation(tmp_path: Path) -> list[str]:
    write_config(tmp_path / "plain.yaml", model__family="attention", model__options={"hidden_features": 8})
    write_config(tmp_path / "toy.yaml")
    root = write_toy(tmp_path / "toy.npz")
    configs = [str(tmp_path / f"{name}.yaml") for name in ("plain", "toy")]
    return ["ablate", "--configs", *configs, "--data.root", str(root), "--out", str(tmp_path / "out"), "--workers", "1",
            "--draws", "2", "--reference", "plain"]  # fmt: skip


Planned = Callable[..., list[tuple[str, int, int, tuple[str, ...]]]]


@pytest.fixture
def planned(ablation: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Planned:
    """List configuration, seed, fold and subset of what would be trained."""

    def run(*words: str) -> list[tuple[str, int, int, tuple[str, ...]]]:
        found: list[jobs.Job] = []
        monkeypatch.setattr(ablate, "complete", lambda jobs, **options: found.extend(jobs) or ({}, []))
        assert "0 of" in fails(capsys, *ablation, *words)  # nothing has finished
        return [(job.config, job.seed, job.fold, job.subset) for job in found]

    return run


class TestAblate:
    def test_reports_all_runs_and_skips_finished_ones(
        self, ablation: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*ablation, "--seeds", "0", "1"]) == 0
        printed = capsys.readouterr().out
        assert "Difference to plain" in printed
        assert "![" not in printed
        assert "of at most" not in printed  # no line per epoch
        out = tmp_path / "out"
        assert sorted(path.name for path in out.glob("*.png")) == PICTURES
        rows = read_rows(out / "runs.csv")
        assert rows[["config", "seed"]].values.tolist() == [["plain", 0], ["plain", 1], ["toy", 0], ["toy", 1]]
        assert {"val.combined", "test.weighted_f1", "missing[0.9].accuracy"} < set(rows.columns)
        before = {path.name: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
        write_config(tmp_path / "toy.yaml", model__lr=0.02)
        assert main([*ablation, "--seeds", "0", "1", "2"]) == 0
        after = {path.name: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
        assert len(after) == 6
        assert {name for name in before if before[name] == after[name]} == {
            "plain-seed0-fold0.json",
            "plain-seed1-fold0.json",
        }

    def test_keeps_finished_runs_when_interrupted(
        self, ablation: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        real = jobs.execute

        def interrupted(job: jobs.Job) -> jobs.Result:
            if job.config == "toy":
                raise KeyboardInterrupt
            return real(job)

        monkeypatch.setattr(jobs, "execute", interrupted)
        assert "1 of 2 runs are kept" in fails(capsys, *ablation, "--seeds", "0")
        kept = tmp_path / "out" / "runs" / "plain-seed0-fold0.json"
        before = kept.stat().st_mtime_ns
        monkeypatch.setattr(jobs, "execute", real)
        assert main([*ablation, "--seeds", "0"]) == 0
        assert kept.stat().st_mtime_ns == before

    def test_reports_the_others_when_a_run_fails(
        self, ablation: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_config(tmp_path / "toy.yaml", model__lr=1e30)
        error = fails(capsys, *ablation, "--seeds", "0")
        assert "1 of 2 runs failed" in error
        assert "toy seed 0 fold 0" in error
        assert "diverged" in error
        assert read_rows(tmp_path / "out" / "runs.csv")["config"].tolist() == ["plain"]

    def test_regret_of_every_subset(self, ablation: list[str], tmp_path: Path) -> None:
        ablation = ablation[: ablation.index("--reference")]  # the default one is not among these
        assert main([*ablation, "--seeds", "0", "--regret", "--specialist-epochs", "1", "--views", "subset"]) == 0
        rows = read_rows(tmp_path / "out" / "runs.csv")
        assert {"regret[a].accuracy", "regret[b].accuracy", "regret[a+b].accuracy"} < set(rows.columns)
        one = json.loads((tmp_path / "out" / "specialists" / "toy-seed0-fold0-b.json").read_text())
        assert len(one["answer"]["logits"]) == 30
        text = (tmp_path / "out" / "summary.md").read_text()
        assert "Difference to" not in text
        assert "at most 1 epochs (`--specialist-epochs`), 1 were trained." in text

    def test_each_seed_on_one_fold_in_turn(self, ablation: list[str], planned: Planned) -> None:
        words = ["--seeds", "0", "1", "2", "--folds", "1", "4"]
        every = {("plain", seed, fold) for seed in (0, 1, 2) for fold in (1, 4)}
        assert {job[:3] for job in planned(*words) if job[0] == "plain"} == every
        found = planned(*words, "--by-seed")
        assert [job[:3] for job in found if job[0] == "toy"] == [("toy", 0, 1), ("toy", 1, 4), ("toy", 2, 1)]
        assert len(found) == 6

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ([], {}),
            (["--regret"], {("plain", 0), ("plain", 1), ("toy", 0), ("toy", 1)}),
            (["--regret", "toy"], {("toy", 0), ("toy", 1)}),
            (["--regret", "somewhere/toy.yaml"], {("toy", 0), ("toy", 1)}),
            (["--regret", "toy", "plain", "--regret-seeds", "1"], {("plain", 1), ("toy", 1)}),
            (["--regret", "--regret-seeds", "0"], {("plain", 0), ("toy", 0)}),
        ],
    )
    def test_specialists_of_some_runs(self, planned: Planned, words: list[str], expected: set[tuple[str, int]]) -> None:
        found = planned("--seeds", "0", "1", *words)
        assert [job[:2] for job in found if not job[3]] == [("plain", 0), ("plain", 1), ("toy", 0), ("toy", 1)]
        specialists = [job for job in found if job[3]]
        assert {job[:2] for job in specialists} == set(expected)
        assert {job[3] for job in specialists} <= {("a",), ("b",), ("a", "b")}
        assert len(specialists) == 3 * len(expected) == len(set(specialists))

    def test_regret_of_one_configuration(self, ablation: list[str], tmp_path: Path) -> None:
        words = ["--seeds", "0", "1", "--regret", "toy", "--regret-seeds", "1"]
        assert main([*ablation, *words, "--specialist-epochs", "1", "--views", "subset"]) == 0
        rows = read_rows(tmp_path / "out" / "runs.csv")
        known = rows["regret[mean].accuracy"].notna()
        assert rows[known][["config", "seed"]].values.tolist() == [["toy", 1]]
        assert len(list((tmp_path / "out" / "specialists").iterdir())) == 3

    def test_regret_of_a_part_of_the_modalities(self, ablation: list[str], tmp_path: Path) -> None:
        words = ["--seeds", "0", "--data.only", "[b]", "--regret", "--views", "subset"]
        assert main([*ablation, *words, "--trainer.max_epochs", "1"]) == 0
        assert {"regret[b].accuracy", "regret[mean].accuracy"} < set(read_rows(tmp_path / "out" / "runs.csv"))

    def test_variants_are_configurations_of_their_own(self, ablation: list[str], tmp_path: Path) -> None:
        toy = ablation[3]
        ablation[2:4] = [toy, f"{toy}:by_f1", f"{toy}:no_average"]
        ablation[ablation.index("--reference") + 1] = f"{toy}:by_f1"
        words = ["--seeds", "0", "--views", "subset", "--trainer.max_epochs", "1"]
        assert main([*ablation, *words]) == 0
        rows = read_rows(tmp_path / "out" / "runs.csv")
        assert rows["config"].tolist() == ["toy", "toy-by_f1", "toy-no_average"]
        assert "Difference to toy-by_f1" in (tmp_path / "out" / "summary.md").read_text()

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (["--configs", "nonsense"], "expected a YAML file or one of baseline, "),
            (["--data-config", "nonsense"], "expected a YAML file or one of mer2023, "),
            (["--folds", "7"], "--folds: expected 0 to 4, got 7"),
            (["--score", "speed"], "ablate: --score: invalid choice: 'speed'"),
            (["--score", "valence_mse", "--data.score", "null"], "--score: expected one of weighted_f1, macro_f1, acc"),
            (["--reference", "nope"], "ablate: --reference: expected one of plain, toy, got 'nope'"),
            (["--reference", "baseline"], "ablate: --reference: expected one of plain, toy, got 'baseline'"),
            (["--trainer.max_epochs", "0"], "--trainer.max_epochs: expected at least 1, or -1 for no limit, got 0"),
            (["--draws", "0"], "ablate: --draws: expected at least 1, got 0"),
            (["--workers", "0"], "ablate: --workers: expected at least 1, got 0"),
            (["--threads", "-1"], "ablate: --threads: expected at least 1, got -1"),
            (["--specialist-epochs", "0"], "ablate: --specialist-epochs: expected at least 1, got 0"),
            (["--draws", "few"], "ablate: --draws: expected a whole number, got 'few'"),
            (["--model.options.nonsense", "1"], "plain.yaml: model.options (family attention): unknown option"),
            (["--data.root", "nowhere.npz"], "nowhere.npz: no such file"),
            (["--regret", "--views", "missing"], "--regret needs the view 'subset'"),
            (["--regret", "robust"], "ablate: --regret: expected one of plain, toy, got 'robust'"),
            (["--regret-seeds", "0"], "ablate: --regret-seeds needs --regret"),
            (["--regret", "--regret-seeds", "0", "9"], "--regret-seeds: expected one of 0, 1, 2, 3, 4, got 9"),
            (["--configs", "robust:nope"], "robust:nope: expected a variant among no_views, "),
        ],
    )
    def test_says_in_one_line_what_is_wrong_before_anything_is_trained(
        self, ablation: list[str], wrong: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert message in fails(capsys, *ablation, *wrong)
        assert not (tmp_path / "out" / "runs").exists()

    @pytest.mark.parametrize(
        ("variant", "message"),
        [
            ("consistency", "model.consistency: expected 0 without model.average, got 0.5"),
            ("no_quality", "model.options (family attention): unknown option 'quality'"),
        ],
    )
    def test_a_variant_that_does_not_fit_is_an_error_before_anything_is_trained(
        self, ablation: list[str], variant: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ablation.insert(4, f"{ablation[2]}:{variant}")
        assert f"{ablation[2]}: {message}" in fails(capsys, *ablation)
        assert not (tmp_path / "out" / "runs").exists()

    @pytest.mark.slow
    def test_ctrl_c_in_parallel_processes(self, ablation: list[str], tmp_path: Path) -> None:
        ablation[ablation.index("--workers") + 1] = "2"
        command = [sys.executable, "-m", "examples.mer", *ablation, "--trainer.max_epochs", "15"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as run:
            assert run.stdout.readline().startswith("[1/10]")
            os.killpg(run.pid, signal.SIGINT)
            _, error = run.communicate(timeout=60)
        assert (run.returncode, error.count("\n"), error[:18]) == (130, 1, "error: interrupted")
        finished = list((tmp_path / "out" / "runs").glob("*.json"))
        assert 1 <= len(finished) < 10
        assert all(json.loads(path.read_text())["views"] for path in finished)
