"""The `fit` command, and the configuration parser that all commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from examples.pipeline.callbacks import EpochLines
from examples.pipeline.cli import PipelineCLI, fit
from examples.pipeline.errors import DataError

from .data import TextData
from .task import FROM_DATA, HateTask

RUNS = Path("runs", "hate_speech")


class HateCLI(PipelineCLI):
    """Data, task and trainer of hate-speech detection from configuration files and command-line overrides."""

    task_class, data_class, prog = HateTask, TextData, "python -m examples.hate_speech fit"
    from_data = FROM_DATA
    call_arguments = (*PipelineCLI.call_arguments, "data.cache")
    trainer_settings: ClassVar[dict[str, Any]] = {**PipelineCLI.trainer_settings, "max_epochs": 20}
    stopping: ClassVar[dict[str, Any]] = {**PipelineCLI.stopping, "patience": 5}

    def default_folder(self) -> Path:
        # Runs of two corpora do not meet.
        run = f"seed{self.config.seed_everything}-fold{self.config.data.fold}"
        return RUNS / self.name / corpus_of(self.config.data.root) / run

    def value_from_data(self, name: str, data: TextData) -> Any:
        if len(data.classes) < 2:
            expected = "expected a corpus of at least two classes to train on"
            raise DataError(f"{data.root}: {expected}, {data.corpus.name} has only {data.classes[0]!r}")
        if name == "classes":
            return list(data.classes)
        if name == "weights":
            return data.class_weight().tolist()
        if name == "encoder":
            return None if data.frozen else data.encoder.new_model()
        return super().value_from_data(name, data)


def corpus_of(root: str) -> str:
    """Name a corpus after its folder or file."""
    return Path(root).name.partition(".")[0] or "data"


def fit_command(args: Sequence[str]) -> None:
    """Train one configuration and print where its best checkpoint lies."""
    cli = HateCLI(args, callbacks=[EpochLines({"macro_f1": "macro F1", "accuracy": "accuracy"})])
    for note in cli.datamodule.notes:
        print(f"data: {note}")
    fit(cli, hidden=("select",))
