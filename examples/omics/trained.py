"""Trained checkpoints: opened with the data they were trained on, and the preparation that they hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from examples.pipeline.checkpoints import check_fits, load_checkpoint
from examples.pipeline.cli import stored_words

from .cli import OmicsCLI, data_name
from .data import OmicsData
from .features import Preparation
from .parts import ELSE, members_from_state
from .task import OmicsTask

# The settings that decide which rows are for training.
SPLITTING = ("fold", "folds", "fold_array", "split", "split_values", "split_seed", "leave_out")
# Those on which it depends, too, where a checkpoint does not say which rows they were.
READING = ("root", "branches", "label", "ids")


class Trained(NamedTuple):
    """A checkpoint with the task it holds and the data it was trained on, which is read when it is asked for."""

    path: Path
    task: OmicsTask
    data: OmicsData
    facts: dict[str, Any]


def open_checkpoint(path: Path, overrides: Sequence[str], folder: Path) -> Trained:
    """Rebuild data and task from what the checkpoint holds; its configuration is written to `folder`.

    Features are picked by their names and samples by their ids, so that the data may have them in another order.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint of this pipeline, or another split is asked for.
    """
    checkpoint = load_checkpoint(path)
    if "preparation" not in checkpoint or "hyper_parameters" not in checkpoint:
        raise ValueError(f"{path}: not a checkpoint of this pipeline: it lacks the preparation of features")
    config: str = checkpoint["config"]
    words = [*stored_words(checkpoint, folder), *overrides]
    cli = OmicsCLI(words, build=False, trainer={"enable_progress_bar": False})
    stored, asked = yaml.safe_load(config), cli.config
    check_split(path, stored, asked.as_dict())
    if "members" not in checkpoint:
        check_reading(path, stored["data"], asked.as_dict()["data"])
    task = OmicsTask(**checkpoint["hyper_parameters"])
    check_fits(path, checkpoint, task)
    task.load_state_dict(checkpoint["state_dict"])
    data = OmicsData(**{**vars(asked.data), "seed": asked.seed_everything})
    members = members_from_state(checkpoint["members"]) if "members" in checkpoint else None
    data.use(Preparation.from_state(checkpoint["preparation"]), members)
    facts = {
        "config": str(checkpoint["config_name"]),
        "data": data_name(asked.data.root),
        "seed": asked.seed_everything,
        "fold": asked.data.fold,
        "best_epoch": checkpoint["epoch"],
    }
    return Trained(Path(path), task.eval(), data, facts)


def check_split(path: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise if another split is asked for than was trained with: its test rows may have been training rows."""
    names = [f"data.{name}" for name in SPLITTING]
    before, after = ([config["data"].get(name) for name in SPLITTING] for config in (stored, asked))
    seeds = stored.get("seed_everything", 0), asked["seed_everything"]
    for name, old, new in zip([*names, "seed_everything"], [*before, seeds[0]], [*after, seeds[1]], strict=True):
        if old != new:
            raise ValueError(
                f"{path}: was trained with --{name} {old}, the test rows of {new} may be its training rows; {ELSE}"
            )


def check_reading(path: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise if other data are asked for of a checkpoint that does not hold which rows it was trained on."""
    for name in READING:
        if stored.get(name) != asked[name]:
            raise ValueError(
                f"{path}: does not hold which samples it was trained on, as checkpoints do now: expected --data.{name}"
                f" {stored.get(name)} as in training, got {asked[name]}; {ELSE}, or train again"
            )
