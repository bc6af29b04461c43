"""The small training scripts of examples/train, run as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("loss", ["info_nce", "nt_xent"])
def test_large_batch_learns_within_its_memory(loss: str) -> None:
    done = run("examples/train/large_batch.py", "--batch", "2048", "--steps", "12", "--chunk", "512", "--loss", loss)
    assert done.returncode == 0, done.stderr
    before, after = (
        float(line.split("finds ")[1].split("%")[0]) for line in done.stdout.splitlines() if "finds" in line
    )
    assert after > 5 * max(before, 0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "1"], "error: --batch: expected at least 2, got 1"),
        (["--loss", "nothing"], "error: --loss: invalid choice: 'nothing'"),
        (["--dense", "--batch", "1000000"], "error: --dense: expected at most the free "),
        (
            ["--batch", "512", "--steps", "1", "--memory-limit", "0"],
            "error: expected at most 0 GiB of additional memory",
        ),
    ],
)
def test_large_batch_says_what_is_wrong_in_one_line(words: list[str], message: str) -> None:
    done = run("examples/train/large_batch.py", *words)
    assert done.returncode != 0
    assert done.stderr.startswith(message)
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("gather", ["all", "ring"])
def test_ranks_have_the_gradients_of_one_process(gather: str) -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = run(*launch, "examples/train/ddp.py", "--check", "--gather", gather)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("gradients differ from one process by") == 2


def test_one_process_trains() -> None:
    done = run("examples/train/ddp.py", "--epochs", "3")
    assert done.returncode == 0, done.stderr
    before, *lines = done.stdout.splitlines()
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines]
    found = [float(line.split(", ")[1].split("%")[0]) for line in lines]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert found[-1] > float(before.removeprefix("before: ").split("%")[0]) + 10.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "0"], "error: --epochs: expected at least 1, got 0"),
        (["--seed", "-1"], "error: --seed: expected at least 0, got -1"),
        (["--gather", "some"], "error: --gather: invalid choice: 'some'"),
        (["--nothing"], "error: unrecognized arguments: --nothing"),
    ],
)
def test_ddp_says_what_is_wrong_in_one_line(words: list[str], message: str) -> None:
    done = run("examples/train/ddp.py", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.strip().splitlines()) == 1
