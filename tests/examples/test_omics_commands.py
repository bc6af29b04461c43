"""The commands `fit`, `evaluate`, `ablate` and `plot` as a user types them, and what they say of bad input."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from examples.omics.__main__ import main
from examples.omics.cli import OmicsCLI
from tests.examples import failing
from tests.examples.test_omics_readers import make_arrays, write_npz

DATA = "data:\n  branches: {genes: genes, proteins: proteins}\n  label: label\n  fold_array: fold\n  batch_size: 16\n"
TINY = [
    *("--model.deep", "[16,8]", "--model.shallow", "[8]", "--model.subspace_dim", "2", "--model.token_features", "4"),
    *("--model.projection_features", "8", "--model.bank", "16", "--trainer.accelerator", "cpu"),
]


fails = partial(failing.fails, main)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("omics")
    write_npz(path / "toy.npz")
    (path / "toy.yaml").write_text(DATA)
    return path


@pytest.fixture(scope="module")
def words(folder: Path) -> list[str]:
    data = ["--config", str(folder / "toy.yaml"), "--data.root", str(folder / "toy.npz")]
    return ["--config", "asymmetric.yaml", *data, *TINY, "--trainer.max_epochs", "2"]


@pytest.fixture(scope="module")
def checkpoint(words: list[str], folder: Path) -> str:
    assert main(["fit", *words, "--trainer.default_root_dir", str(folder / "run")]) == 0
    return str(folder / "run" / "best.ckpt")


class TestFit:
    @pytest.mark.parametrize("balanced", ["true", "false"])
    def test_resumes_as_if_nothing_had_happened(
        self, words: list[str], balanced: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # The cosine schedule ends with max_epochs, so only a constant one can go on further.
        words = [*words, "--model.schedule", "constant", "--model.warmup", "0.0", "--data.balanced", balanced]
        run = ["--trainer.default_root_dir", str(tmp_path / "run")]
        assert main(["fit", *words, *run]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("asymmetric-toy: best epoch ")
        assert lines[-1].startswith("fit: ")
        more = ["--trainer.max_epochs", "4"]
        assert main(["fit", *words, *run, *more, "--ckpt_path", "last.ckpt"]) == 0
        assert main(["fit", *words, *more, "--trainer.default_root_dir", str(tmp_path / "whole")]) == 0
        states = [torch.load(tmp_path / name / "last.ckpt")["state_dict"] for name in ("run", "whole")]
        assert all(torch.equal(x, states[1][key]) for key, x in states[0].items())
        histories = [(tmp_path / name / "history.csv").read_text() for name in ("run", "whole")]
        assert histories[0] == histories[1]
        assert len(histories[0].splitlines()) == 5

    def test_names_the_folder_after_configurations_data_seed_and_fold(
        self, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        cli = OmicsCLI([*words, "--config", "dim2", "--seed_everything", "3"], build=False)
        assert cli.config.trainer.default_root_dir == "runs/omics/asymmetric-toy-dim2/toy/seed3-fold0"

    def test_does_not_write_over_another_run(
        self, words: list[str], checkpoint: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = ["--trainer.default_root_dir", str(Path(checkpoint).parent)]
        assert "already there; give --ckpt_path last.ckpt to go on" in fails(capsys, "fit", *words, *run)

    def test_trains_on_batches_of_one(self, words: list[str], folder: Path, tmp_path: Path) -> None:
        more = ["--data.batch_size", "1", "--data.balanced", "false", "--trainer.max_epochs", "1"]
        assert main(["fit", *words, *more, "--trainer.default_root_dir", str(tmp_path)]) == 0

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (["--data.root", "nowhere.npz"], "nowhere.npz: no such file or folder"),
            (["--data.label", "type"], "no array 'type'; expected one of label"),
            (["--data.fold", "7"], "--data.fold: expected 0 to 4, got 7"),
            (["--data.leave_out", "7"], "data.leave_out: expected one of 0, 1, 2, got '7'"),
            (["--model.subspace_dim", "3"], "model.subspace_dim: expected at most 2 for 3 classes and embeddings of 8"),
            (["--model.lr", "fast"], "model.lr"),
            (["--model.head", "cubic"], "model.head"),
            (["--model.warmup", "2"], "model.warmup: expected 0.0 to 1.0, got 2.0"),
            (["--model.shallow", "[9]"], "end in the same width"),
            (["--trainer.max_epochs", "0"], "--trainer.max_epochs: expected at least 1"),
            (["--nonsense"], "--nonsense"),
            (["--config", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
            (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt: no such checkpoint"),
        ],
    )
    def test_says_in_one_line_what_is_wrong(
        self, words: list[str], wrong: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = tmp_path / "run"
        assert message in fails(capsys, "fit", *words, "--trainer.default_root_dir", str(run), *wrong)
        assert not run.exists()

    def test_names_the_file_of_a_wrong_configuration(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "wrong.yaml"
        path.write_text("model: {subspace: 3}")
        error = fails(capsys, "fit", *words, "--config", str(path))
        assert str(path) in error
        assert "unknown option 'subspace'" in error


class TestMain:
    def test_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 2
        assert "{fit,evaluate,ablate,predict,plot}" in capsys.readouterr().out
        assert "unknown command 'fti'; expected one of fit, evaluate, ablate, predict, plot" in fails(capsys, "fti")

    @pytest.mark.parametrize("command", ["evaluate", "ablate", "predict", "plot"])
    def test_help(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([command, "--help"]) == 0
        assert f"python -m examples.omics {command}" in capsys.readouterr().out


class TestEvaluate:
    def test_writes_tables_and_pictures(
        self, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["evaluate", checkpoint, "--out", str(tmp_path), "--accept", "0.8"]) == 0
        said = capsys.readouterr().out
        assert "coverage" in said.splitlines()[0]
        assert "## Without a branch" in said
        row = pd.read_csv(tmp_path / "runs.csv").iloc[0]
        assert {"val.nll", "test.auroc", "test.ari_kmeans", "without[genes].accuracy", "rejection.coverage"} <= set(
            row.index
        )
        assert {path.name for path in tmp_path.glob("*.png")} == {"scores.png", "confusion.png", "without.png"}

    def test_is_the_same_on_reordered_features(self, checkpoint: str, tmp_path: Path) -> None:
        arrays, order = make_arrays(), np.random.default_rng(1).permutation(12)
        arrays |= {"genes": arrays["genes"][:, order], "genes_names": arrays["genes_names"][order]}
        other = write_npz(tmp_path / "toy.npz", **arrays)
        assert main(["evaluate", checkpoint, "--out", str(tmp_path / "a")]) == 0
        assert main(["evaluate", checkpoint, "--out", str(tmp_path / "b"), "--data.root", str(other)]) == 0
        assert (tmp_path / "a/runs.csv").read_text() == (tmp_path / "b/runs.csv").read_text()

    def test_tests_other_data(self, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        label = make_arrays()["label"].copy()
        label[:6] = 9
        other = str(write_npz(tmp_path / "other.npz", label=label))
        error = fails(capsys, "evaluate", checkpoint, "--out", str(tmp_path), "--test", other)
        assert "expected the classes 0, 1, 2, got 9; --unknown counts them as rows to reject" in error
        assert main(["evaluate", checkpoint, "--out", str(tmp_path), "--test", other, "--unknown"]) == 0
        row = pd.read_csv(tmp_path / "runs.csv").iloc[0]
        assert (row["data"], row["test.rows"], row["open[unknown].rows"]) == ("other", 54, 6)
        assert 0 <= row["open[unknown].residual"] <= 1

    def test_needs_no_training_data_for_other_data(self, words: list[str], tmp_path: Path) -> None:
        root = write_npz(tmp_path / "mine.npz")
        run = ["--data.root", str(root), "--trainer.default_root_dir", str(tmp_path / "run")]
        assert main(["fit", *words, *run, "--trainer.max_epochs", "1"]) == 0
        root.rename(tmp_path / "yours.npz")
        test = ["--test", str(tmp_path / "yours.npz"), "--out", str(tmp_path / "out")]
        assert main(["evaluate", str(tmp_path / "run" / "best.ckpt"), *test]) == 0
        assert "val.nll" not in pd.read_csv(tmp_path / "out" / "runs.csv")

    def test_lists_missing_features(self, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arrays = make_arrays()
        arrays |= {"genes": arrays["genes"][:, 6:], "genes_names": arrays["genes_names"][6:]}
        other = str(write_npz(tmp_path / "toy.npz", **arrays))
        for words in (["--test", other], ["--data.root", other]):
            error = fails(capsys, "evaluate", checkpoint, "--out", str(tmp_path / "out"), *words)
            assert "lacks 6 of the 12 features that were trained on: g0, g1, g2, g3, g4 and 1 more" in error

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (["--accept", "2"], "evaluate: --accept: expected a share in (0, 1], got 2.0"),
            (["--unknown"], "evaluate: --unknown: expected --test beside it"),
            (["--reference", "plain"], "evaluate: --reference: expected one of asymmetric-toy, got 'plain'"),
            (["--data.fold", "1"], "was trained with --data.fold 0, the test rows of 1 may be its training rows"),
            (["--nonsense"], "evaluate: unrecognized arguments: --nonsense"),
        ],
    )
    def test_says_in_one_line_what_is_wrong(
        self, checkpoint: str, wrong: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert message in fails(capsys, "evaluate", checkpoint, "--out", str(tmp_path), *wrong)

    def test_knows_what_is_no_checkpoint(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "nowhere.ckpt: no such checkpoint" in fails(capsys, "evaluate", "nowhere.ckpt")
        (tmp_path / "x.ckpt").write_bytes(b"nothing of the kind")
        assert "x.ckpt: not a readable checkpoint" in fails(capsys, "evaluate", str(tmp_path / "x.ckpt"))
        torch.save({key: {} for key in ("state_dict", "config_name", "config", "validation")}, tmp_path / "x.ckpt")
        error = fails(capsys, "evaluate", str(tmp_path / "x.ckpt"))
        assert "not a checkpoint of this pipeline: it lacks the preparation" in error


class TestPlot:
    def test_draws_everything(self, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plot", checkpoint, "--out", str(tmp_path), "--method", "pca"]) == 0
        said = capsys.readouterr().out
        assert f"of {2}: " in said.splitlines()[0]
        names = {"embedding.png", "subspaces.png", "confusion.png", "curves.png"}
        assert {path.name for path in tmp_path.glob("*.png")} == names

    def test_umap_needs_a_package(
        self, checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "umap", None)
        assert "--method umap: needs the package umap-learn" in fails(capsys, "plot", checkpoint, "--method", "umap")

    def test_names_an_unknown_method(self, checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--method: invalid choice: 'mds'" in fails(capsys, "plot", checkpoint, "--method", "mds")

    def test_what_nan_means_may_be_said_anew(
        self, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        genes = make_arrays()["genes"].copy()
        genes[3, 2] = np.nan
        words = [
            "evaluate",
            checkpoint,
            "--out",
            str(tmp_path),
            "--test",
            str(write_npz(tmp_path / "x.npz", genes=genes)),
        ]
        assert "to accept them give --data.nan absent or mean" in fails(capsys, *words)
        assert main([*words, "--data.nan", "mean"]) == 0
        assert main([*words, "--data.nan=absent"]) == 0


class TestPredict:
    def test_needs_no_labels(self, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arrays = make_arrays()
        del arrays["label"]
        np.savez(tmp_path / "new.npz", **arrays)
        out = tmp_path / "found.csv"
        assert main(["predict", checkpoint, "--test", str(tmp_path / "new.npz"), "--out", str(out)]) == 0
        assert "found.csv: 60 samples" in capsys.readouterr().out
        rows = pd.read_csv(out)
        classes = ["0", "1", "2"]
        assert list(rows) == ["sample", "class", *classes, "residual"]
        assert list(rows["sample"]) == list(range(60))
        assert (rows[classes].sum(axis=1) - 1).abs().max() < 1e-5
        assert (
            main(["evaluate", checkpoint, "--out", str(tmp_path), "--test", str(write_npz(tmp_path / "same.npz"))]) == 0
        )
        scores = pd.read_csv(tmp_path / "runs.csv").iloc[0]
        accepted = rows["class"].astype(str) != "none of these"
        assert accepted.mean() == pytest.approx(scores["rejection.coverage"])
        assert (rows.loc[accepted, "class"].astype(str) == rows.loc[accepted, classes].idxmax(axis=1)).all()
        right = rows[classes].idxmax(axis=1).astype(int) == make_arrays()["label"]
        assert right.mean() == pytest.approx(scores["test.accuracy"])

    def test_a_linear_head_rejects_nothing(self, words: list[str], tmp_path: Path) -> None:
        run = ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.max_epochs", "1"]
        assert main(["fit", *words, *run, "--model.head", "linear"]) == 0
        new, out = write_npz(tmp_path / "new.npz"), tmp_path / "found.csv"
        assert main(["predict", str(tmp_path / "run" / "best.ckpt"), "--test", str(new), "--out", str(out)]) == 0
        assert list(pd.read_csv(out)) == ["sample", "class", "0", "1", "2"]

    def test_says_what_is_missing(self, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = ["--out", str(tmp_path / "found.csv")]
        assert "nowhere.npz: no such file" in fails(capsys, "predict", checkpoint, "--test", "nowhere.npz", *out)
        assert not (tmp_path / "found.csv").exists()
