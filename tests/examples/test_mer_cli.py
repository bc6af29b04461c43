"""The commands `fit`, `synthesize`, `convert` and `demo` as a user types them, and what they say of bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from examples.mer.__main__ import main
from tests.examples.mer_runs import PICTURES, fails, write_config, write_toy


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The configuration and set that most commands here use."""
    config, root = write_config(tmp_path / "toy.yaml"), write_toy(tmp_path / "toy.npz")
    return ["--config", str(config), "--data.root", str(root)]


class TestFit:
    def test_writes_best_and_last_and_resumes(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = ["--trainer.default_root_dir", str(tmp_path / "run")]
        assert main(["fit", *words, *run, "--trainer.max_epochs", "1"]) == 0
        assert "best epoch 1 of 1" in capsys.readouterr().out
        assert main(["fit", *words, *run, "--ckpt_path", "last.ckpt", "--trainer.max_epochs", "3"]) == 0
        assert torch.load(tmp_path / "run" / "last.ckpt")["epoch"] == 2
        assert (
            main(["fit", *words, "--trainer.default_root_dir", str(tmp_path / "whole"), "--trainer.max_epochs", "3"])
            == 0
        )
        states = [torch.load(tmp_path / name / "last.ckpt")["state_dict"] for name in ("run", "whole")]
        assert all(torch.equal(x, states[1][key]) for key, x in states[0].items())

    def test_prints_a_line_per_epoch_where_no_bar_is_shown(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words += ["--trainer.default_root_dir", str(tmp_path / "run")]
        assert main(["fit", *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        starts = [f"epoch {epoch} of at most 2, validation combined " for epoch in (1, 2)]
        assert all(line.startswith(start) for line, start in zip(lines, starts, strict=False))
        assert len(lines) == 4
        assert main(["fit", *words, "--trainer.enable_progress_bar", "true", "--overwrite", "true"]) == 0
        assert "of at most" not in capsys.readouterr().out

    def test_names_the_folder_after_configurations_seed_and_fold(
        self, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["fit", *words, "--seed_everything", "3", "--data.fold", "1", "--trainer.max_epochs", "1"]) == 0
        assert (tmp_path / "runs" / "toy" / "seed3-fold1" / "best.ckpt").is_file()

    def test_does_not_write_over_another_run(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words += ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.max_epochs", "1"]
        assert main(["fit", *words]) == 0
        assert "already there; give --ckpt_path last.ckpt to go on" in fails(capsys, "fit", *words)
        assert main(["fit", *words, "--overwrite", "true"]) == 0

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (["--data.root", "nowhere.npz"], "nowhere.npz: no such file"),
            (["--data.label", "mood"], "expected an array 'mood'"),
            (["--data.split_values", "{train: 9, val: [0, 1, 2], test: 3}"], "expected rows of 'train'"),
            (["--model.options.hiden", "3"], "unknown option 'hiden'; allowed: absence"),
            (["--model.family", "graph"], "model.family"),
            (["--model.lr", "fast"], "model.lr"),
            (["--trainer.max_epoch", "3"], "--trainer.max_epoch"),
            (["--nonsense"], "--nonsense"),
            (["--config", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
            (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt: no such checkpoint"),
            (["--data.only", "[c]"], "only: expected one of a, b"),
            (["--data.fold", "9"], "--data.fold: expected 0 to 4, got 9"),
            (["--trainer.max_epochs", "0"], "--trainer.max_epochs: expected at least 1, or -1 for no limit, got 0"),
        ],
    )
    def test_says_in_one_line_what_is_wrong(
        self, words: list[str], wrong: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = tmp_path / "run"
        assert message in fails(capsys, "fit", *words, "--trainer.default_root_dir", str(run), *wrong)
        assert not run.exists()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("model: {famly: attention}", "model: unknown option 'famly'; allowed: average, calibrate, consistency"),
            ("modle: {}", "unknown option 'modle'; allowed: "),
            ("model: [", "not a YAML file"),
            ("just words", "expected a YAML mapping"),
        ],
    )
    def test_names_the_file_of_a_wrong_configuration(
        self, text: str, message: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "wrong.yaml"
        path.write_text(text)
        error = fails(capsys, "fit", *words, "--config", str(path))
        assert str(path) in error
        assert message in error

    def test_rejects_a_checkpoint_that_is_none_or_of_other_sizes(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words += ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.max_epochs", "1"]
        for content, message in ((b"", "not a readable checkpoint"), (None, "it lacks state_dict, config_name")):
            path = tmp_path / "other.ckpt"
            path.write_bytes(content) if content is not None else torch.save({"a": 1}, path)
            assert message in fails(capsys, "fit", *words, "--ckpt_path", str(path))
        assert main(["fit", *words]) == 0
        error = fails(capsys, "fit", *words, "--ckpt_path", "last.ckpt", "--model.options.hidden_features", "4")
        assert "checkpoint of other sizes: expected model." in error

    def test_debug_shows_where(self, words: list[str]) -> None:
        with pytest.raises(ValueError, match="nowhere"):
            main(["--debug", "fit", *words, "--data.root", "nowhere.npz"])


class TestOthers:
    def test_lists_the_commands(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--help"]) == 0
        assert "synthesize" in capsys.readouterr().out
        assert main([]) == 2
        assert "expected one of fit, evaluate, ablate" in fails(capsys, "train")

    def test_synthesize_and_convert(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["synthesize", "--out", str(tmp_path / "set"), "--scale", "0.01"]) == 0
        assert (tmp_path / "set" / "labels.csv").is_file()
        assert "is there already" in fails(capsys, "synthesize", "--out", str(tmp_path / "set"), "--scale", "0.01")
        assert "nowhere.npz: no such file" in fails(capsys, "convert", str(tmp_path / "nowhere.npz"))

    def test_demo_needs_an_epoch(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        error = fails(capsys, "demo", "--out", str(tmp_path / "demo"), "--epochs", "0")
        assert error == "error: demo: --epochs: expected at least 1, got 0\n"
        assert not (tmp_path / "demo").exists()

    @pytest.mark.slow
    def test_demo(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--scale", "0.03", "--epochs", "2", "--seeds", "0", "--workers", "1"]
        assert main(["demo", "--out", str(tmp_path), *words]) == 0
        printed = capsys.readouterr().out
        assert "robust seed 0 fold 0: epoch 2 of at most 2, validation combined" in printed
        assert "![" not in printed
        for path in [tmp_path / "results" / name for name in ["summary.md", *PICTURES]]:
            assert path.is_file()
            assert str(path) in printed
