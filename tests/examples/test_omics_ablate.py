"""The command `ablate` as a user types it, the configurations it compares, and the data they are for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from examples.omics import ablate, jobs
from examples.omics.__main__ import main
from examples.omics.cli import CONFIGS, OmicsCLI
from examples.omics.report import PUBLISHED, read_published
from examples.pipeline.arguments import find_parts
from tests.examples.test_omics_commands import DATA, TINY, fails
from tests.examples.test_omics_readers import write_npz

REAL = pytest.mark.skipif(not os.environ.get("MMROBUST_DATA"), reason="MMROBUST_DATA, the folder of data, is not set")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("omics")
    write_npz(path / "toy.npz")
    (path / "toy.yaml").write_text(DATA)
    return path


@pytest.fixture(scope="module")
def options(folder: Path) -> list[str]:
    data = ["--data", str(folder / "toy.yaml"), "--data.root", str(folder / "toy.npz")]
    return [*data, *TINY, "--trainer.max_epochs", "1", "--workers", "1", "--seeds", "2"]


class TestAblate:
    def test_keeps_checkpoints_of_runs_that_were_finished_without(self, options: list[str], tmp_path: Path) -> None:
        words = ["ablate", *options, "--configs", "plain", "--baselines", "logistic_regression", "--seeds", "1"]
        words += ["--out", str(tmp_path)]
        assert main(words) == 0
        assert not list(tmp_path.rglob("best.ckpt"))
        baseline = tmp_path / "runs" / "logistic_regression-seed0-fold0.json"
        before = baseline.stat().st_mtime_ns
        assert main([*words, "--keep"]) == 0
        assert len(list(tmp_path.rglob("best.ckpt"))) == 1
        assert baseline.stat().st_mtime_ns == before  # there is nothing of it to keep

    def test_compares_resumes_and_tests_unknown_classes(
        self, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ["ablate", *options, "--configs", "plain", "asymmetric+dim1", "--baselines", "logistic_regression"]
        words += ["--leave-out", "1", "--by-seed", "--folds", "0", "1", "--out", str(tmp_path)]
        assert main(words) == 0
        said = capsys.readouterr().out
        assert "asymmetric+dim1 seed 1 fold 1 without class 1: validation balanced accuracy" in said
        assert "residual minus softmax" in said
        assert "| asymmetric+dim1: without 1 |" in said
        for part in ("**best by validation: ", "## Differences to plain", "## Without a branch", "## Unknown classes"):
            assert part in said
        table = pd.read_csv(tmp_path / "runs.csv")
        assert table["config"].tolist() == ["plain"] * 2 + ["asymmetric+dim1"] * 2 + ["logistic_regression"] * 2
        assert table["fold"].tolist() == [0, 1] * 3
        assert table["open[1].residual"].notna().tolist() == [False, False, True, True, False, False]
        assert table["open[1].rejected"].notna().tolist() == [False, False, True, True, False, False]
        assert table["fit"].notna().sum() == 4
        assert json.loads((tmp_path / "runs" / "plain-seed0-fold0.json").read_text())["config"] == "plain"

        def never(*_: object, **__: object) -> None:
            raise AssertionError("a finished run was started again")

        monkeypatch.setattr(jobs.OmicsCLI, "train", never)
        monkeypatch.setattr(jobs, "measure_classical", never)
        assert main(words) == 0

    def test_skips_the_open_set_test_of_two_classes(
        self, options: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write_npz(tmp_path / "two.npz", label=np.arange(60) // 3 % 2)
        words = ["ablate", *options, "--data.root", str(path), "--configs", "plain", "--baselines", "--seeds", "1"]
        assert main([*words, "--leave-out", "all", "--out", str(tmp_path / "out")]) == 0
        assert (
            "open-set test skipped: two has two classes, 0 and 1; without one, one is left" in capsys.readouterr().out
        )

    def test_skips_subspaces_that_do_not_fit_unless_they_are_asked_for(
        self, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        planned: list[str] = []

        def record(plan: list[jobs.OmicsJob], *_: object, **__: object) -> tuple[dict[str, object], list[object]]:
            planned.extend(job.config for job in plan)
            return {}, []

        monkeypatch.setattr(ablate, "complete", record)
        monkeypatch.setattr(ablate, "show", lambda _: None)
        wide = ["--model.deep", "[16,12]", "--model.shallow", "[12]", "--model.bank", "16"]
        words = ["ablate", *options[:4], *wide, "--out", str(tmp_path)]
        assert main(words) == 0
        assert len(set(planned)) == len(ablate.ALL) - 2 + 3, "three baselines"
        said = capsys.readouterr().out
        expected = "model.subspace_dim: expected at most 4 for 3 classes and embeddings of 12 features"
        assert [line.partition(" skipped: ")[0] for line in said.splitlines()] == [
            "asymmetric+dim8",
            "asymmetric+dim16",
        ]
        assert expected in said
        assert expected in fails(capsys, *words, "--configs", "asymmetric+dim8")

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (["--configs", "plian"], "plian: no such configuration; expected a YAML file or one of"),
            (["--configs", "plain", "plain"], "--configs: expected different names"),
            (["--baselines", "svm"], "--baselines: invalid choice: 'svm'"),
            (["--folds", "5"], "ablate: --folds: expected 0 to 4, got 5"),
            (["--seeds", "0"], "--seeds: expected at least 1, got 0"),
            (["--leave-out", "7"], "--leave-out: expected all, or some of 0, 1, 2, got '7'"),
            (["--reference", "other"], "--reference: expected one of plain"),
            (["--model.subspace_dim", "9", "--configs", "asymmetric"], "model.subspace_dim: expected at most 2"),
            (["--data", "nowhere"], "nowhere: no such configuration; expected a YAML file or one of asymmetric, plain"),
            (["--nonsense"], "unrecognized arguments: --nonsense"),
        ],
    )
    def test_says_in_one_line_what_is_wrong(
        self, options: list[str], wrong: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["ablate", *options, "--configs", "plain", "--out", str(tmp_path / "out"), *wrong]
        assert message in fails(capsys, *words)


class TestConfigs:
    @pytest.mark.parametrize("name", ablate.ALL)
    def test_every_configuration_is_read(self, name: str, folder: Path) -> None:
        words = [word for path in find_parts(name, CONFIGS) for word in ("--config", str(path))]
        data = ["--config", str(folder / "toy.yaml"), "--data.root", str(folder / "toy.npz")]
        cli = OmicsCLI([*words, *data], build=False)
        assert (cli.config.model.head == "linear") == (name in ("plain", "asymmetric+linear_head"))

    @pytest.mark.parametrize("name", ["rosmap", "mfeat", "pollen", "buettner"])
    def test_published_figures_have_marks_and_sources(self, name: str) -> None:
        assert read_published(PUBLISHED, name)

    def test_published_figures_are_checked(self, tmp_path: Path) -> None:
        for entry, message in (
            ("{method: a, source: b}", "mark: expected one of checked, recalled, got None"),
            ("{method: a, mark: checked}", "expected a source"),
            ("{method: a, mark: checked, source: b, scores: {acc: 1}}", "got 'acc'"),
        ):
            (tmp_path / "x.yaml").write_text(f"toy:\n  - {entry}\n")
            with pytest.raises(ValueError, match=message):
                read_published(tmp_path / "x.yaml", "toy")


@REAL
@pytest.mark.parametrize(
    ("name", "file", "sizes"),
    [
        ("rosmap", "rosmap/rosmap.npz", {"mrna": 200, "methylation": 200, "mirna": 200}),
        ("mfeat", "mfeat/mfeat.npz", {"fou": 76, "fac": 216, "kar": 64, "pix": 240, "zer": 47, "mor": 6}),
        ("pollen", "scrna_simlr/pollen.npz", {"wide": 6982, "narrow": 2000}),
        ("buettner", "scrna_simlr/buettner.npz", {"wide": 8989, "narrow": 2000}),
    ],
)
def test_reads_the_real_data(name: str, file: str, sizes: dict[str, int]) -> None:
    words = ["--config", "asymmetric", "--config", str(CONFIGS / "data" / f"{name}.yaml")]
    cli = OmicsCLI([*words, "--data.root", str(Path(os.environ["MMROBUST_DATA"]) / file)])
    assert cli.datamodule.in_features == sizes
    ids = [set(rows.ids) for rows in cli.datamodule.sets.values()]
    assert not ids[0] & ids[1]
    assert not ids[1] & ids[2]
    batch = cli.datamodule.sets["test"].batch([0, 1])
    assert cli.model.eval()(batch).logits.shape == (2, len(cli.datamodule.classes))
