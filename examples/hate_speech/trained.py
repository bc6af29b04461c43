"""Trained checkpoints: opened with the data they were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from examples.pipeline.checkpoints import check_fits, load_checkpoint
from examples.pipeline.cli import stored_words

from .cli import HateCLI, corpus_of
from .data import TextData
from .task import HateTask


class Trained(NamedTuple):
    """A checkpoint with the task it holds and the data it was trained on."""

    path: Path
    checkpoint: dict[str, Any]
    cli: HateCLI

    @property
    def task(self) -> HateTask:
        return self.cli.model

    @property
    def data(self) -> TextData:
        return self.cli.datamodule

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies the run in a table."""
        config = self.cli.config
        return {
            "config": str(self.checkpoint["config_name"]),
            "data": corpus_of(config.data.root),
            "seed": config.seed_everything,
            "fold": config.data.fold,
            "best_epoch": self.checkpoint["epoch"],
        }


def open_checkpoint(path: Path, overrides: Sequence[str], folder: Path) -> Trained:
    """Rebuild data and task from the configuration that the checkpoint holds, which is written to `folder`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint, or the data asked for does not fit it.
    """
    checkpoint = load_checkpoint(path)
    config: str = checkpoint["config"]
    words = [*stored_words(checkpoint, folder), *overrides]
    cli = HateCLI(words, keep_last=False, trainer={"enable_progress_bar": False})
    trained = yaml.safe_load(config)["data"].get("fold", 0)
    if trained != cli.config.data.fold:
        asked = cli.config.data.fold
        raise ValueError(
            f"{path}: was trained with --data.fold {trained}, the test posts of {asked} may be its training posts"
        )
    classes = list(checkpoint.get("hyper_parameters", {}).get("classes", cli.datamodule.classes))
    if classes != list(cli.datamodule.classes):
        found = ", ".join(cli.datamodule.classes)
        raise ValueError(f"{path}: expected data of the classes {', '.join(classes)}, got {found}")
    if checkpoint.get("encoder", found_encoder := cli.datamodule.encoder.fingerprint) != found_encoder:
        name = cli.datamodule.encoder_name
        raise ValueError(
            f"{path}: expected the encoder that it was trained on, {name!r} has other weights or options now"
        )
    check_fits(path, checkpoint, cli.model)
    cli.model.load_state_dict(checkpoint["state_dict"])
    cli.model.eval()
    return Trained(Path(path), checkpoint, cli)
