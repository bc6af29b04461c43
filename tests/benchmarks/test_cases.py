"""The benchmark cases and the command line: every public component has a case, and every case runs at toy sizes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mmrobust
import mmrobust.functional as MF
from benchmarks.__main__ import main
from benchmarks.harness import results
from benchmarks.harness.case import Problem, Setup, tensors
from benchmarks.harness.check import relative_error
from benchmarks.suites import SUITES, load, models

# Public names without a case, and why. Only what has nothing to measure belongs here.
UNMEASURED: dict[str, str] = {}
# Peers that are wrong in a case, which the report says, and why.
WRONG_PEERS = {("SupConLoss temperatures", "the formula of SupContrast"): "NaN at low temperatures"}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def public_components() -> set[str]:
    found = {name: getattr(mmrobust, name) for name in mmrobust.__all__}
    found |= {name: getattr(MF, name) for name in MF.__all__}
    return {
        name
        for name, value in found.items()
        if inspect.isfunction(value) or (inspect.isclass(value) and issubclass(value, nn.Module))
    }


def test_every_public_component_has_a_case() -> None:
    covered = {name for suite in SUITES for case in load(suite) for name in case.public_names()}
    assert public_components() - covered - set(UNMEASURED) == set()
    assert covered - public_components() == {"import mmrobust"}
    assert set(UNMEASURED) <= public_components() - covered


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_case_starts_at_an_everyday_size(device: str) -> None:
    for suite in SUITES:
        for case in load(suite):
            sizes = case.selected("default", device)
            assert sizes, case.name
            assert sizes[0].dims.get("B", 32) in (32, 96), case.name
            assert len(case.selected("full", device)) >= len(sizes)


@pytest.mark.parametrize("suite", SUITES)
def test_toy_run(suite: str, tmp_path: Path) -> None:
    assert main([suite, "--sizes", "toy", "--json", str(tmp_path), "--seed", "3"]) == 0
    document = results.read(tmp_path / f"cpu-{suite}.json")
    assert document["complete"]
    assert [record["case"] for record in document["cases"]] == [case.name for case in load(suite)]
    for record in document["cases"]:
        assert record["status"] == "ok", record["message"]
        wrong = {(record["case"], check["contender"]) for check in record["checks"] if not check["passed"]}
        assert wrong <= set(WRONG_PEERS), record["case"]
        assert suite == "startup" or "ours" in {check["contender"] for check in record["checks"]}
        assert {"ours"} < {timing["contender"] for timing in record["timings"]}


def test_report_comes_from_the_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fusion", "--sizes", "toy", "--json", str(tmp_path)]) == 0
    assert main(["report", str(tmp_path)]) == 0
    assert str(tmp_path / "report.md") in capsys.readouterr().out
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for case in load("fusion"):
        assert f"| {case.name} |" in text
    assert "![fusion on cpu](cpu-fusion.png)" in text
    assert (tmp_path / "cpu-fusion.png").read_bytes().startswith(b"\x89PNG")


def test_a_part_of_a_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fusion", "losses", "--sizes", "toy", "--json", str(tmp_path), "--only", "FocalLoss B=5"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cpu-losses.json"]
    document = results.read(tmp_path / "cpu-losses.json")
    assert [record["case"] for record in document["cases"]] == ["FocalLoss"]
    assert document["settings"]["only"] == ["FocalLoss B=5"]
    assert main(["fusion", "--sizes", "toy", "--json", str(tmp_path), "--only", "nothing"]) == 2
    assert "--only: no case and size holds 'nothing'" in capsys.readouterr().err
    both = ["--only", "FocalLoss B=5", "--only", "nothing"]
    assert main(["losses", "--sizes", "toy", "--json", str(tmp_path), *both]) == 2
    assert "--only: no case and size holds 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize("build", [models.build_pure, models.build_full, models.build_attention_model])
def test_training_arithmetic_agrees_when_nothing_is_random(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eval mode has no auxiliary loss, so the harness cannot see it; here training is made deterministic."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    dims = {"B": 5, "H": 8, "A": 6, "T": 9, "V": 7}
    problem: Problem = build(Setup(dims, torch.device("cpu"), wide=True))
    problem.train(True)
    for module in [*problem.modules, *(m for c in problem.contenders.values() for m in c.own)]:
        for part in module.modules():
            if isinstance(part, (nn.Dropout, mmrobust.ModalityDropout)):
                part.p = 0.0
            elif isinstance(part, nn.MultiheadAttention):
                part.dropout = 0.0
            elif hasattr(part, "vectorised"):
                part.modality_dropout = 0.0
    outputs = {name: list(tensors(c.run(*problem.inputs))) for name, c in problem.contenders.items()}
    assert relative_error(outputs["ours"], outputs["eager"]) < 1e-10
    for name, contender in problem.contenders.items():
        assert relative_error(outputs[name], outputs[contender.reference]) < 1e-10, name
    assert build is models.build_attention_model or float(outputs["ours"][3].detach()) != 0.0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fusio"], "unknown suite 'fusio': expected models, attention"),
        (["--time-budget", "0"], "--time-budget: expected a positive number"),
        (["--threads", "0"], "--threads: expected at least 1, got 0"),
        (["--sizes", "huge"], "invalid choice: 'huge'"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_report_on_nothing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert main(["report", str(tmp_path)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "nowhere: expected a folder" in first
    assert "expected at least one .json file" in second
