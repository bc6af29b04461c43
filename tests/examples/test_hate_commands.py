"""The commands `fit`, `evaluate` and `ablate` as a user types them, and what they say of bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from examples.hate_speech import jobs
from examples.hate_speech.__main__ import main
from examples.hate_speech.ablate import CONFIGS
from examples.hate_speech.encoders import load_encoder
from examples.hate_speech.posts import Post
from tests.examples import hate_sets as sets
from tests.examples.hate_runs import SPAN, TINY, fails


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[override]
    return sets.write_hatexplain(tmp_path_factory.mktemp("hatexplain"))


@pytest.fixture(scope="module")
def words(root: Path) -> list[str]:
    return ["--config", SPAN, "--data.root", str(root), *TINY, "--trainer.max_epochs", "1"]


@pytest.fixture(scope="module")
def checkpoint(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    assert main(["fit", *words, "--trainer.default_root_dir", str(folder)]) == 0
    return str(folder / "best.ckpt")


class TestFit:
    def test_resumes_as_if_nothing_had_happened(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # The linear schedule ends with max_epochs, so only a constant one can go on further.
        words = [*words, "--model.schedule", "constant", "--model.warmup", "0.0"]
        run = ["--trainer.default_root_dir", str(tmp_path / "run")]
        assert main(["fit", *words, *run]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("epoch 1 of at most 1, validation macro F1 0.")
        assert lines[1].startswith("span_aware: best epoch 1 of 1  validation: cross_entropy ")
        more = ["--trainer.max_epochs", "3"]
        assert main(["fit", *words, *run, *more, "--ckpt_path", "last.ckpt"]) == 0
        assert main(["fit", *words, *more, "--trainer.default_root_dir", str(tmp_path / "whole")]) == 0
        states = [torch.load(tmp_path / name / "last.ckpt")["state_dict"] for name in ("run", "whole")]
        assert all(torch.equal(x, states[1][key]) for key, x in states[0].items())

    def test_names_the_folder_after_configurations_corpus_seed_and_fold(
        self, words: list[str], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["fit", *words, "--config", str(CONFIGS / "variants" / "dcl.yaml"), "--seed_everything", "3"]) == 0
        run = tmp_path / "runs" / "hate_speech" / "span_aware-dcl" / root.name / "seed3-fold0"
        assert (run / "best.ckpt").is_file()

    def test_does_not_write_over_another_run(
        self, words: list[str], checkpoint: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = ["--trainer.default_root_dir", str(Path(checkpoint).parent)]
        assert "already there; give --ckpt_path last.ckpt to go on" in fails(capsys, "fit", *words, *run)

    def test_fine_tunes(self, words: list[str], tmp_path: Path) -> None:
        more = ["--config", str(CONFIGS / "variants" / "finetune.yaml"), "--trainer.default_root_dir", str(tmp_path)]
        assert main(["fit", *words, *more]) == 0
        assert any("model.encoder" in key for key in torch.load(tmp_path / "best.ckpt")["state_dict"])

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (["--data.root", "nowhere"], "nowhere: no such file or folder"),
            (["--data.encoder", "./nowhere"], "encoder ./nowhere: no such folder"),
            (["--model.asrm_options.window", "3"], "unknown option 'window'; allowed: convolution"),
            (["--model.asrm", "spans"], "model.asrm"),
            (["--model.lr", "fast"], "model.lr"),
            (["--model.warmup", "2"], "model.warmup: expected 0.0 to 1.0, got 2.0"),
            (["--data.batch_size", "0"], "batch_size: expected at least 1, got 0"),
            (["--trainer.max_epoch", "3"], "--trainer.max_epoch"),
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
        path.write_text("model: {asmr: span}")
        error = fails(capsys, "fit", *words, "--config", str(path))
        assert str(path) in error
        assert "unknown option 'asmr'" in error

    def test_names_file_and_line_of_wrong_data(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = sets.write_hatexplain(tmp_path)
        (root / "val.jsonl").write_text("{}\n")
        assert "val.jsonl: line 1: expected the key 'id'" in fails(capsys, "fit", *words, "--data.root", str(root))


class TestMain:
    def test_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 2
        assert main(["--help"]) == 0
        assert "{fit,evaluate,ablate,predict,explain,padding}" in capsys.readouterr().out
        assert "unknown command 'fti'; expected one of fit, evaluate, ablate, predict, explain, padding" in fails(
            capsys, "fti"
        )

    def test_debug_shows_where(self) -> None:
        with pytest.raises(ValueError, match="unknown command"):
            main(["fti", "--debug"])

    @pytest.mark.parametrize("command", ["evaluate", "ablate", "predict", "explain", "padding"])
    def test_help(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([command, "--help"]) == 0
        assert f"python -m examples.hate_speech {command}" in capsys.readouterr().out


class TestPredict:
    def test_writes_a_row_for_every_line(
        self, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        texts = ["the sun shines", "", "a word " * 200, "the sun shines"]
        (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
        out = tmp_path / "found.csv"
        assert main(["predict", checkpoint, "--file", str(tmp_path / "texts.txt"), "--out", str(out)]) == 0
        assert "found.csv: 4 texts, 1 cut at 32 tokens" in capsys.readouterr().out
        rows = pd.read_csv(out)
        classes = ["hatespeech", "normal", "offensive"]
        assert list(rows) == ["line", "label", *classes, "cut"]
        assert list(rows["line"]) == [1, 2, 3, 4]
        assert list(rows["cut"]) == [0, 0, 1, 0]
        assert (rows[classes].sum(axis=1) - 1).abs().max() < 2e-4
        assert list(rows["label"]) == list(rows[classes].idxmax(axis=1))
        assert rows.iloc[0, 1:].equals(rows.iloc[3, 1:])

    def test_says_what_is_wrong(self, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["predict", checkpoint, "--out", str(tmp_path / "found.csv"), "--file"]
        assert "nowhere.txt: no such file" in fails(capsys, *words, "nowhere.txt")
        (tmp_path / "bad.txt").write_bytes(b"good\n\xff\n")
        assert "bad.txt: line 2: expected UTF-8" in fails(capsys, *words, str(tmp_path / "bad.txt"))
        assert not (tmp_path / "found.csv").exists()


class TestPadding:
    def test_prints_what_batches_of_similar_length_save(
        self, words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        own = ["--batches", "2", "--rounds", "2", "--data.batch_size", "4"]
        own += [word for word in words if word not in ("--trainer.max_epochs", "1")]
        assert main(["padding", *own]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].endswith("batches of 4; 2 rounds of 2 batches")
        shares = [float(line.split("padding")[1].split("%")[0]) for line in lines[1:3]]
        assert shares[1] < shares[0]
        assert lines[3].startswith("shuffled / by length: ")
        assert "--config" in fails(capsys, "padding", "--data.root", "nowhere")


class TestEvaluate:
    def test_writes_tables_and_pictures(
        self, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        spans = sets.write_spans(tmp_path / "spans")
        assert main(["evaluate", checkpoint, "--out", str(tmp_path / "out"), "--spans", str(spans)]) == 0
        out = capsys.readouterr().out
        for title in ("Classification", "Classes", "Rationales", "Bias by target group", "Character spans"):
            assert f"## {title}" in out
        names = {path.name for path in (tmp_path / "out").iterdir()}
        pictures = {"scores.png", "confusion.png", "rationales.png"}
        assert names == {"runs.csv", "summary.md", "results.json", "configs", *pictures}
        (row,) = pd.read_csv(tmp_path / "out" / "runs.csv").to_dict("records")
        best = torch.load(checkpoint)["validation"]["macro_f1"]
        assert row["val.macro_f1"] == pytest.approx(best, abs=1e-5)
        assert row["config"] == "span_aware"
        assert {"test.auroc", "rationale[gate].auprc", "spans[gate].f1", "class[normal].recall"} <= set(row)

    def test_results_lie_beside_the_checkpoint_by_default(self, checkpoint: str) -> None:
        assert main(["evaluate", checkpoint, "--no-faithfulness", "--no-attention"]) == 0
        assert (Path(checkpoint).parent / "evaluation" / "summary.md").is_file()

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (["--spans", "nowhere"], "nowhere: no such file or folder"),
            (["--data.root", "nowhere"], "nowhere: no such file or folder"),
            (["--data.fold", "1"], "was trained with --data.fold 0"),
            (["--reference", "asrm"], "evaluate: --reference: expected one of span_aware, got 'asrm'"),
            (["--threads", "0"], "evaluate: --threads: expected at least 1"),
            (["--nonsense"], "evaluate: unrecognized arguments: --nonsense"),
            (["--data.root"], "--data.root: expected a value"),
        ],
    )
    def test_says_in_one_line_what_is_wrong(
        self, checkpoint: str, wrong: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        quick = ["--no-faithfulness", "--no-attention", "--out", str(tmp_path)]
        assert message in fails(capsys, "evaluate", checkpoint, *quick, *wrong)

    def test_rejects_what_is_no_checkpoint_and_other_classes(
        self, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "other.ckpt"
        path.write_bytes(b"")
        assert "not a readable checkpoint" in fails(capsys, "evaluate", str(path))
        assert "no such checkpoint" in fails(capsys, "evaluate", str(tmp_path / "nothing.ckpt"))
        davidson = str(sets.write_davidson(tmp_path / "davidson"))
        error = fails(capsys, "evaluate", checkpoint, "--data.root", davidson, "--out", str(tmp_path))
        assert "expected data of the classes hatespeech, normal, offensive, got hate, offensive, neither" in error


class TestAblate:
    def test_runs_once_and_compares(self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        configs = ["encoder_only", "token_level", SPAN, "encoder_only+dcl"]
        args = ["ablate", "--configs", *configs, "--seeds", "2", "--data.root", str(root), *TINY]
        args += ["--out", str(tmp_path), "--workers", "1", "--trainer.max_epochs", "1"]
        assert main(args) == 0
        out = capsys.readouterr().out
        assert "[8/8] encoder_only+dcl seed 1 fold 0: validation macro F1 0." in out
        assert "span_aware − token_level" in out
        assert "encoder_only+dcl − encoder_only" in out
        assert "Best on validation: **" in out
        frame = pd.read_csv(tmp_path / "runs.csv")
        assert len(frame) == 8
        assert set(frame["config"]) == {"encoder_only", "token_level", "span_aware", "encoder_only+dcl"}
        files = sorted((tmp_path / "runs").iterdir())
        times = [path.stat().st_mtime_ns for path in files]
        files[0].unlink()
        assert main(args) == 0
        again = [path.stat().st_mtime_ns for path in files]
        assert again[0] > max(times)
        assert again[1:] == times[1:]
        pd.testing.assert_frame_equal(
            pd.read_csv(tmp_path / "runs.csv").drop(columns="seconds"), frame.drop(columns="seconds")
        )

    def test_baselines_stand_beside_the_networks(
        self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        frozen = ["--data.encoder", str(tmp_path / "model"), "--data.max_tokens", "32", "--data.cache", "null"]
        load_encoder("tiny", 32, [Post("", sets.text(i), 0) for i in range(12)]).save(tmp_path / "model")
        names = ["tfidf", "mean_logistic", "mean_mlp"]
        args = ["ablate", "--configs", "encoder_only", "--baselines", *names, "--seeds", "1", "--keep"]
        args += ["--data.root", str(root), *frozen, "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
        args += ["--data.max_posts", "30", "--out", str(tmp_path / "out"), "--workers", "1"]
        assert main(args) == 0
        out = capsys.readouterr().out
        assert "[3/4] mean_logistic seed 0 fold 0: validation macro F1 " in out
        assert "**a trial**: at most 30 posts of each part" in out
        assert "changed in all configurations: `--data.encoder" in out
        assert "--data.root" not in out
        assert "- `tfidf`: TF-IDF of words and pairs of words, logistic regression; no chance in it" in out
        frame = pd.read_csv(tmp_path / "out" / "runs.csv")
        assert list(frame["config"]) == ["encoder_only", *names]
        assert frame["test.macro_f1"].notna().all()
        message = fails(capsys, *args, "--data.frozen", "false")
        assert "--baselines: expected data.frozen: true with mean_logistic, which needs token states" in message

    def test_checkpoints_are_kept_on_request(
        self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = ["--configs", "encoder_only", "encoder_only+dcl", "--seeds", "1", "--data.root", str(root), *TINY]
        args += ["--out", str(tmp_path / "runs"), "--workers", "1", "--trainer.max_epochs", "1", "--keep"]
        assert main(["ablate", *args]) == 0
        paths = sorted(map(str, (tmp_path / "runs" / "runs").glob("*/best.ckpt")))
        assert len(paths) == 2
        quick = ["--no-faithfulness", "--no-attention", "--out", str(tmp_path / "again")]
        assert main(["evaluate", *paths, *quick]) == 0
        assert "encoder_only+dcl − encoder_only" in capsys.readouterr().out
        frames = [pd.read_csv(tmp_path / name / "runs.csv").set_index("config") for name in ("runs", "again")]
        scores = [
            frame.sort_index()[["val.macro_f1", "test.macro_f1", "rationale[gradient].auprc"]] for frame in frames
        ]
        pd.testing.assert_frame_equal(*scores)

    def test_a_run_whose_checkpoint_is_wanted_later_runs_again(self, root: Path, tmp_path: Path) -> None:
        args = ["ablate", "--configs", "encoder_only", "--seeds", "1", "--data.root", str(root), *TINY]
        args += ["--out", str(tmp_path), "--workers", "1", "--trainer.max_epochs", "1"]
        result = tmp_path / "runs" / "encoder_only-seed0-fold0.json"
        checkpoint = result.with_suffix("") / "best.ckpt"
        times = []
        for more in ([], ["--keep"], ["--keep"], []):
            assert main([*args, *more]) == 0
            times.append(result.stat().st_mtime_ns)
            assert checkpoint.is_file() == (len(times) > 1)
        assert times[0] < times[1] == times[2] == times[3]

    def test_other_weights_of_the_encoder_are_another_run(
        self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model, other = tmp_path / "model", tmp_path / "other"
        encoder = load_encoder("tiny", 32, [Post("", sets.text(i), 0) for i in range(12)])
        encoder.save(model)
        with torch.no_grad():
            next(encoder.model.parameters()).mul_(2)
        encoder.save(other)
        args = ["ablate", "--configs", "encoder_only", "--seeds", "1", "--data.root", str(root), *TINY]
        args += ["--out", str(tmp_path / "out"), "--workers", "1", "--trainer.max_epochs", "1", "--keep"]
        args += ["--data.encoder", str(model)]
        result = tmp_path / "out" / "runs" / "encoder_only-seed0-fold0.json"
        checkpoint = str(result.with_suffix("") / "best.ckpt")
        evaluate = ["evaluate", checkpoint, "--no-faithfulness", "--no-attention", "--out", str(tmp_path)]
        assert main(args) == main(evaluate) == 0
        first = json.loads(result.read_text())["fingerprint"]
        shutil.copy(other / "model.safetensors", model)
        assert "expected the encoder that it was trained on" in fails(capsys, *evaluate)
        assert main(args) == main(evaluate) == 0
        assert json.loads(result.read_text())["fingerprint"] != first

    def test_goes_on_only_with_the_encoder_it_began_with(
        self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = tmp_path / "model"
        encoder = load_encoder("tiny", 32, [Post("", sets.text(i), 0) for i in range(12)])
        encoder.save(model)
        words = ["fit", "--config", SPAN, "--data.root", str(root), *TINY, "--data.encoder", str(model)]
        words += ["--trainer.default_root_dir", str(tmp_path / "run")]
        assert main([*words, "--trainer.max_epochs", "1"]) == 0
        more = [*words, "--trainer.max_epochs", "2", "--ckpt_path", "last.ckpt"]
        with torch.no_grad():
            next(encoder.model.parameters()).mul_(2)
        encoder.save(tmp_path / "other")
        shutil.copy(model / "model.safetensors", tmp_path / "kept")
        shutil.copy(tmp_path / "other" / "model.safetensors", model)
        assert "--ckpt_path: expected the encoder that it was trained on" in fails(capsys, *more)
        shutil.copy(tmp_path / "kept", model / "model.safetensors")
        assert main(more) == 0

    def test_a_failed_run_is_an_error_after_the_others(
        self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def execute(job: jobs.Job, **options: object) -> dict[str, object]:
            if job.seed == 1:
                raise RuntimeError("out of\nmemory")
            return found(job, **options)

        found = jobs.execute
        monkeypatch.setattr(jobs, "execute", execute)
        args = ["--configs", "encoder_only", "--seeds", "2", "--data.root", str(root), *TINY, "--workers", "1"]
        error = fails(capsys, "ablate", *args, "--out", str(tmp_path), "--trainer.max_epochs", "1")
        assert "ablate: 1 of 2 runs failed" in error
        assert "encoder_only seed 1 fold 0: out of memory" in error
        assert len(pd.read_csv(tmp_path / "runs.csv")) == 1

    @pytest.mark.slow
    def test_runs_in_parallel_processes(self, root: Path, tmp_path: Path) -> None:
        args = ["ablate", "--configs", "encoder_only", "--seeds", "2", "--data.root", str(root), *TINY]
        args += ["--trainer.max_epochs", "1"]
        assert main([*args, "--out", str(tmp_path / "two"), "--workers", "2"]) == 0
        assert main([*args, "--out", str(tmp_path / "one"), "--workers", "1"]) == 0
        frames = [pd.read_csv(tmp_path / name / "runs.csv").drop(columns="seconds") for name in ("one", "two")]
        pd.testing.assert_frame_equal(*frames)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (["--configs", "spanaware"], "spanaware: no such configuration; expected a YAML file or one of asrm"),
            (["--configs", "asrm+dlc"], "dlc: no such configuration"),
            (["--configs", "asrm", "asrm"], "ablate: --configs: expected different names, got asrm, asrm"),
            (["--seeds", "0"], "ablate: --seeds: expected at least 1, got 0"),
            (["--reference", "none"], "ablate: --reference: expected one of encoder_only, got 'none'"),
            (["--spans", "nowhere"], "nowhere: no such file or folder"),
            (["--model.asrm_options.window", "3"], "model.asrm_options"),
            (["--data.root", "nowhere"], "nowhere: no such file or folder"),
        ],
    )
    def test_says_in_one_line_what_is_wrong(
        self, root: Path, wrong: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = ["--configs", "encoder_only", "--data.root", str(root), *TINY, "--out", str(tmp_path), *wrong]
        assert message in fails(capsys, "ablate", *args)
        assert not (tmp_path / "runs").exists()


def test_results_are_whole_files(checkpoint: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["evaluate", checkpoint, "--out", str(out), "--no-faithfulness", "--no-attention"]) == 0
    (result,) = json.loads((out / "results.json").read_text())
    assert result["views"]["test"][""]["rows"] == 12
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
