"""The `fit` command, and the configuration parser that all commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from examples.pipeline.callbacks import EpochLines
from examples.pipeline.cli import PipelineCLI, fit
from examples.pipeline.errors import DataError

from .build import FROM_DATA
from .data import MultimodalData
from .task import FusionTask

EPOCH_SCORES = {"combined": "combined"}


class MerCLI(PipelineCLI):
    """Data, task and trainer of emotion recognition from configuration files and command-line overrides."""

    task_class, data_class, prog = FusionTask, MultimodalData, "python -m examples.mer fit"
    from_data = tuple(sorted(FROM_DATA))
    trainer_settings: ClassVar[dict[str, Any]] = {
        **PipelineCLI.trainer_settings,
        "gradient_clip_algorithm": "value",
    }
    stopping: ClassVar[dict[str, Any]] = {**PipelineCLI.stopping, "min_delta": 1e-3, "patience": 30}

    def value_from_data(self, name: str, data: MultimodalData) -> Any:
        if not data.num_classes:
            raise DataError(
                f"{data.root}: expected labelled rows, got data.label = {data.columns['label']!r} without any"
            )
        return super().value_from_data(name, data)


def fit_command(args: Sequence[str]) -> None:
    """Train one configuration and print where its best checkpoint lies."""
    fit(MerCLI(args, callbacks=[EpochLines(EPOCH_SCORES)]))
