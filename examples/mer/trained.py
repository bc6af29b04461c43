"""Trained checkpoints: opened with the data they were trained on, and taken together as one model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.robustness import Predict
from examples.pipeline.checkpoints import check_fits, load_checkpoint
from examples.pipeline.cli import stored_words
from examples.pipeline.jobs import data_fingerprint

from .cli import MerCLI
from .data import MultimodalData
from .normalize import Standardizer
from .predict import Member, list_tests, predictor
from .task import FusionTask

# The settings of the data that decide which rows are for training.
SPLITTING = ("fold", "folds", "fold_array", "group", "split", "split_values", "split_seed")
# Those that decide how a row is read.
READING = ("format", "modalities", "only", "frames", "align_to", "max_frames", "label", "score", "normalize")


class Trained(NamedTuple):
    """A checkpoint with the task it holds and the data it was trained on."""

    path: Path
    checkpoint: dict[str, Any]
    cli: MerCLI
    words: tuple[str, ...]

    @property
    def task(self) -> FusionTask:
        return self.cli.model

    @property
    def data(self) -> MultimodalData:
        return self.cli.datamodule

    @property
    def name(self) -> str:
        return str(self.checkpoint["config_name"])

    @property
    def tests(self) -> dict[str, list[str]]:
        """The rows of every test part."""
        return {name: self.data.sets[name].ids for name in list_tests(self.data)}

    @property
    def key(self) -> tuple[str, int, tuple[str, ...]]:
        """What the folds of one seed share: configuration, seed and the rows they are tested on."""
        return self.name, self.cli.config.seed_everything, tuple(next(iter(self.tests.values())))


def open_checkpoint(path: Path, overrides: Sequence[str], out: Path) -> Trained:
    """Rebuild data and task from the configuration that the checkpoint holds."""
    checkpoint = load_checkpoint(path)
    config: str = checkpoint["config"]
    # A file, as specialists are trained from the same words in other processes.
    words = (*stored_words(checkpoint, out / "configs"), *overrides)
    cli = MerCLI(words, keep_last=False, trainer={"enable_progress_bar": False})
    check_split(path, yaml.safe_load(config)["data"], vars(cli.config.data))
    check_fits(path, checkpoint, cli.model)
    cli.model.load_state_dict(checkpoint["state_dict"])
    return Trained(path, checkpoint, cli, words)


def check_split(path: Path, trained: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise if another split is asked for than the checkpoint was trained with: its test rows were training rows."""
    for name in SPLITTING:
        if name in trained and trained[name] != asked.get(name):
            raise ValueError(
                f"evaluate: {path}: was trained with --data.{name} {trained[name]}, so that the test rows of "
                f"{asked.get(name)} may be its training rows; evaluate it as it was trained"
            )


def check_ensemble(trained: Sequence[Trained]) -> None:
    """Raise unless all checkpoints can answer for the same test rows, read in the same way, with the same classes."""
    if len({one.path.resolve() for one in trained}) < len(trained):
        paths = ", ".join(str(one.path) for one in trained)
        raise ValueError(f"evaluate: --ensemble: expected different checkpoints, got {paths}")
    first = trained[0]
    expected = _facts(first)
    for one in trained[1:]:
        for name, found in _facts(one).items():
            if found != expected[name]:
                wanted = f"{name} {expected[name]} as in {first.path}"
                raise ValueError(f"evaluate: --ensemble: {one.path}: expected {wanted}, got {found}")
        if one.tests != first.tests:
            rows = {row for ids in first.tests.values() for row in ids}
            seen = len(rows.intersection(one.data.sets["train"].ids))
            raise ValueError(
                f"evaluate: --ensemble: {one.path}: expected the test rows of {first.path}, got others; "
                f"{seen} of those {len(rows)} are its training rows"
            )


def _facts(one: Trained) -> dict[str, Any]:
    settings, data = vars(one.cli.config.data), one.data
    facts = {f"data.{name}": settings[name] for name in READING}
    # Their order is that of the columns of `present`.
    facts["data.modalities"] = list(data.modalities.items())
    if data.normalize == "group":
        facts["data.group"] = settings["group"]
    return {**facts, "the classes": data.class_names, "data of fingerprint": data_fingerprint(data.root)[:16]}


def describe_ensemble(trained: Sequence[Trained]) -> str:
    """Say in one line what an ensemble consists of."""
    counts = Counter(one.name for one in trained)
    members = ", ".join(f"{count} of {name}" for name, count in counts.items())
    return (
        f"`ensemble`: {len(trained)} checkpoints ({members}) as one model, whose class probabilities are the mean of "
        f"theirs, each after its own temperature; it has no regret, as there are no specialists of its kind."
    )


def combine(trained: Sequence[Trained], *, probabilities: bool = False) -> Predict:
    """Make one function of one or more checkpoints, for the data of the first; see `predictor`."""
    if len(trained) == 1 or trained[0].data.normalize != "train":
        return predictor([Member(one.task) for one in trained], probabilities=probabilities)
    own = [standardizer_of(one) for one in trained]
    members = [Member(one.task, scale) for one, scale in zip(trained, own, strict=True)]
    return predictor(members, own[0], probabilities=probabilities)


def standardizer_of(one: Trained) -> Standardizer:
    """Measure the training rows of a checkpoint as its data module did."""
    raw = MerCLI([*one.words, "--data.normalize", "none"], trainer={"enable_progress_bar": False}).datamodule
    return Standardizer.fit(raw.sets["train"])
