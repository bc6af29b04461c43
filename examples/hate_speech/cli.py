"""The `fit` command, and the configuration parser that all commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from examples.mer.callbacks import MONITOR, EpochLines, PatientStopping
from examples.mer.checkpoints import load_checkpoint
from examples.mer.cli import CALL_ARGUMENTS, MerCLI, _resume_path, quiet

from .data import DataError, TextData
from .task import FROM_DATA, HateTask

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 20,
    "gradient_clip_val": 1.0,
    "gradient_clip_algorithm": "norm",
    "logger": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
STOPPING_DEFAULTS: dict[str, Any] = {"monitor": MONITOR, "mode": "max", "min_delta": 0.0, "patience": 5}
RUNS = Path("runs", "hate_speech")


class Lines(EpochLines):
    """Print the validation score after every epoch, where no progress bar shows it."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        if trainer.progress_bar_callback is None and trainer.is_global_zero and done % self.every == 0:
            found = trainer.callback_metrics
            scores = f"macro F1 {float(found[MONITOR]):.4f}, accuracy {float(found['val_accuracy']):.4f}"
            limit = "" if trainer.max_epochs in (None, -1) else f" of at most {trainer.max_epochs}"
            print(f"{self.prefix}epoch {done}{limit}, validation {scores}", flush=True)


class HateCLI(MerCLI):
    """Data, task and trainer from configuration files and command-line overrides, as `MerCLI` is for its own.

    Args:
        args: command-line words: `--config FILE` (any number, later ones win) and overrides such as `--data.root PATH`.
        keep_last: whether a resumable `last.ckpt` is written beside `best.ckpt`.
        trainer: trainer defaults of the calling command; configuration files and `args` win over them.
        build: False = only parse and check the configuration.
        callbacks: what the calling command wants done in training besides.
        name: name of the configuration; None = after its files.
    """

    def __init__(
        self,
        args: Sequence[str],
        *,
        keep_last: bool = True,
        trainer: dict[str, Any] | None = None,
        build: bool = True,
        callbacks: Sequence[Callback] = (),
        name: str | None = None,
    ) -> None:
        quiet()
        self.callbacks, self.build, self.keep_last = list(callbacks), build, keep_last
        self.given_name = name
        LightningCLI.__init__(
            self,
            HateTask,
            TextData,
            save_config_callback=None,
            trainer_defaults={**TRAINER_DEFAULTS, "enable_progress_bar": sys.stdout.isatty(), **(trainer or {})},
            parser_kwargs={"prog": "python -m examples.hate_speech fit", "exit_on_error": False, "allow_abbrev": False},
            args=list(args),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--ckpt_path", type=str, default=None, help="Resume from this file, such as last.ckpt.")
        parser.add_argument("--overwrite", type=bool, default=False, help="Replace the checkpoints of an earlier run.")
        parser.add_lightning_class_args(PatientStopping, "early_stopping")
        parser.set_defaults({f"early_stopping.{name}": value for name, value in STOPPING_DEFAULTS.items()})
        parser.link_arguments("seed_everything", "data.seed")
        for name in FROM_DATA:
            parser.link_arguments("data", f"model.{name}", compute_fn=_from_data(name), apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        run = f"seed{self.config.seed_everything}-fold{self.config.data.fold}"
        if Path(self.config.trainer.default_root_dir) == Path("runs", self.name, run):
            # The parent's default, where runs of two corpora would meet.
            folder = RUNS / self.name / corpus_of(self.config.data.root) / run
            self.config.trainer.default_root_dir = str(folder)
        self.name = self.given_name or self.name

    def _stored(self) -> str:
        config = self.config.clone()
        # What is linked comes from another setting or from the data, and may not be given.
        for key in (*CALL_ARGUMENTS, "data.seed", "data.cache", *(f"model.{name}" for name in FROM_DATA)):
            config.pop(key, None)
        return str(yaml.safe_dump(config.as_dict(), sort_keys=False))

    def train(self, ckpt_path: str | None = None) -> dict[str, Any]:
        """Fit, put the best weights back into `model` and return the best checkpoint; the test posts are not read."""
        try:
            self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=ckpt_path, weights_only=True)
        except SystemExit:
            # Lightning's answer to Ctrl-C.
            raise KeyboardInterrupt from None
        best = load_checkpoint(self.checkpoints.best.best_model_path)
        if not best["validation"]["select"] >= 0:
            raise ValueError(f"{self.name}: the training diverged in its first epoch; try a smaller model.lr")
        self.model.load_state_dict(best["state_dict"])
        self.model.eval()
        return best


def corpus_of(root: str) -> str:
    """Name a corpus after its folder or file."""
    return Path(root).name.partition(".")[0] or "data"


def _from_data(name: str) -> Callable[[TextData], Any]:
    def read(data: TextData) -> Any:
        if len(data.classes) < 2:
            expected = "expected a corpus of at least two classes to train on"
            raise DataError(f"{data.root}: {expected}, {data.corpus.name} has only {data.classes[0]!r}")
        if name == "classes":
            return list(data.classes)
        if name == "weights":
            return data.class_weight().tolist()
        if name == "encoder":
            return None if data.frozen else data.encoder.new_model()
        return data.hidden_features

    return read


def fit_command(args: Sequence[str]) -> None:
    """Train one configuration and print where its best checkpoint lies."""
    cli = HateCLI(args, callbacks=[Lines()])
    resume = _resume_path(cli)
    for note in cli.datamodule.notes:
        print(f"data: {note}")
    best = cli.train(resume)
    if not cli.trainer.is_global_zero:
        return
    scores = "  ".join(f"{name} {value:.4f}" for name, value in best["validation"].items() if name != "select")
    print(f"{cli.name}: best epoch {best['epoch'] + 1} of {cli.trainer.current_epoch}  validation: {scores}")
    print(f"checkpoint: {cli.checkpoints.best.best_model_path}")
