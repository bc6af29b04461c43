"""What every training run does beside the loss: seed each epoch, keep the best and the last epoch, stop early."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

MONITOR = "val_select"


class EpochSeed(Callback):
    """Seed Python, NumPy and torch at the start of every training epoch from (seed, epoch, rank).

    All randomness of an epoch then follows from its number, so a run that is resumed after a kill ends in the same
    weights as one that was never interrupted, on every process of a multi-GPU run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sequence = np.random.SeedSequence([self.seed, trainer.current_epoch, trainer.global_rank])
        torch_seed, numpy_seed, python_seed = (int(word) for word in sequence.generate_state(3))
        torch.manual_seed(torch_seed)
        np.random.seed(numpy_seed)  # noqa: NPY002 - the global generator is what user code may draw from
        random.seed(python_seed)


class StoreConfig(Callback):
    """Write the configuration and the validation scores into each checkpoint.

    `evaluate` then needs nothing but the file and the data.
    """

    def __init__(self, name: str, config: str) -> None:
        self.name = name
        self.config = config

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
        checkpoint["config_name"] = self.name
        checkpoint["config"] = self.config
        checkpoint["validation"] = {name.removeprefix("val_"): value for name, value in metrics.items()}


class EpochLines(Callback):
    """Print validation scores every few epochs, where no progress bar shows them.

    Args:
        scores: what to print: name of a score -> its title.
        every: number of epochs between two lines.
        label: put before each line, where several runs print.
    """

    def __init__(self, scores: Mapping[str, str], every: int = 1, label: str = "") -> None:
        self.scores = dict(scores)
        self.every = every
        self.prefix = f"{label}: " if label else ""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        if trainer.progress_bar_callback is None and trainer.is_global_zero and done % self.every == 0:
            limit = "" if trainer.max_epochs in (None, -1) else f" of at most {trainer.max_epochs}"
            found = {title: float(trainer.callback_metrics[f"val_{name}"]) for name, title in self.scores.items()}
            select = float(trainer.callback_metrics[MONITOR])
            chosen_by = "" if select in found.values() else f", selected by {select:.4f}"
            scores = ", ".join(f"{title} {value:.4f}" for title, value in found.items())
            print(f"{self.prefix}epoch {done}{limit}, validation {scores}{chosen_by}", flush=True)


class PatientStopping(EarlyStopping):
    """Early stopping that also stays stopped: a finished run that is resumed does not train one more epoch."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class Checkpoints:
    """The two files of a run: `best.ckpt` by the validation score and `last.ckpt` for resuming.

    Both are written at the end of the training epoch, after the learning rate schedule has stepped.
    """

    def __init__(self, folder: str, *, keep_last: bool = True) -> None:
        # The resumable file also has to be written in epochs that were not the best: ModelCheckpoint(save_last=True)
        # would skip those.
        options: dict[str, Any] = {
            "dirpath": folder,
            "enable_version_counter": False,
            "save_on_train_epoch_end": True,
            "auto_insert_metric_name": False,
        }
        self.best = ModelCheckpoint(filename="best", monitor=MONITOR, mode="max", every_n_epochs=1, **options)
        self.last = ModelCheckpoint(filename="last", **options) if keep_last else None

    def callbacks(self) -> list[Callback]:
        return [self.best] if self.last is None else [self.best, self.last]
