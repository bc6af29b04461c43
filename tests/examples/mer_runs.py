"""A tiny set and configuration for the tests of training, evaluation and ablation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from examples.mer.__main__ import main
from examples.mer.cli import MerCLI
from examples.mer.task import FusionTask

ROWS = 120
PICTURES = ["corruption.png", "missing_rate.png", "reliability.png", "selective.png", "subsets.png", "weights.png"]


def write_toy(path: Path, *, sizes: dict[str, int] | None = None, seed: int = 0, **arrays: Any) -> Path:
    """Write a set of three classes in which every modality tells something about the class."""
    rng = np.random.default_rng(seed)
    label = np.arange(ROWS) % 3
    content = {
        name: rng.standard_normal((ROWS, size)) + np.eye(3)[label][:, rng.integers(0, 3, size)]
        for name, size in (sizes or {"a": 5, "b": 4}).items()
    }
    score = np.where(np.arange(ROWS) % 7 == 0, np.nan, label + 0.1 * rng.standard_normal(ROWS))
    part = np.arange(ROWS) // 3 % 4  # train 0 and 1, val 2, test 3
    np.savez(path, **{**content, "label": label, "score": score, "part": part, **arrays})
    return path


def write_config(path: Path, **changes: Any) -> Path:
    """Write a configuration for the toy set; `changes` replaces entries, named `section__key`."""
    config: dict[str, dict[str, Any]] = {
        "model": {
            "family": "variational",
            "options": {"hidden_features": 8, "dropout": 0.2, "modality_dropout": 0.4},
            "lr": 0.01,
        },
        "early_stopping": {"patience": 10},
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
        "data": {
            "format": "npz",
            "modalities": ["a", "b"],
            "score": "score",
            "split": "part",
            "split_values": {"train": [0, 1], "val": 2, "test": 3},
            "batch_size": 16,
        },
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        config[section][key] = value
    path.write_text(yaml.safe_dump(config))
    return path


def toy_cli(folder: Path, *words: str, run: str = "run", **changes: Any) -> MerCLI:
    """Build data, task and trainer on the toy set in `folder`."""
    config = write_config(folder / "toy.yaml", **changes)
    root = folder / "toy.npz"
    if not root.exists():
        write_toy(root)
    args = ["--config", str(config), "--data.root", str(root), "--trainer.default_root_dir", str(folder / run)]
    return MerCLI([*args, *words], trainer={"enable_progress_bar": False})


def make_task(**changes: Any) -> FusionTask:
    options = {"hidden_features": 8, "dropout": 0.0}
    settings = {"family": "attention", "options": options, "in_features": {"a": 5, "b": 4}, "num_classes": 3}
    task = FusionTask(**{**settings, "num_values": 1, **changes})
    task.log = lambda *args, **options: None
    return task


def make_batch(rows: int = 6, **sizes: int) -> dict[str, Any]:
    """Make a batch in which one row has no label and two have no score."""
    sizes = sizes or {"a": 5, "b": 4}
    return {
        "inputs": {name: torch.randn(rows, size) for name, size in sizes.items()},
        "masks": {},
        "present": torch.ones(rows, len(sizes), dtype=torch.bool),
        "label": torch.tensor([0, 1, 2, -1, 1, 0])[:rows],
        "score": torch.tensor([0.5, float("nan"), 1.0, 2.0, float("nan"), -1.0])[:rows],
    }


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run a command that must fail and return its one line."""
    capsys.readouterr()
    status = main(list(args))
    error = capsys.readouterr().err
    assert status != 0
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    return error
