"""The `fit` command, and the configuration parser that all commands share."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from .build import FROM_DATA
from .callbacks import MONITOR, Checkpoints, EpochLines, EpochSeed, PatientStopping, StoreConfig
from .checkpoints import check_fits, load_checkpoint
from .data import DataError, MultimodalData
from .files import atomic_file
from .task import FusionTask

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 100,
    "gradient_clip_val": 1.0,
    "gradient_clip_algorithm": "value",
    "logger": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
STOPPING_DEFAULTS: dict[str, Any] = {"monitor": MONITOR, "mode": "max", "min_delta": 1e-3, "patience": 30}
# Arguments of one call, not of the experiment: they are not stored with the checkpoint.
CALL_ARGUMENTS = ("config", "ckpt_path", "overwrite", "trainer.default_root_dir", "trainer.enable_progress_bar")


class MerCLI(LightningCLI):
    """Data, task and trainer from configuration files and command-line overrides, linked with each other.

    Args:
        args: command-line words: `--config FILE` (any number, later ones win) and overrides such as `--data.root PATH`.
        keep_last: whether a resumable `last.ckpt` is written beside `best.ckpt`.
        trainer: trainer defaults of the calling command; configuration files and `args` win over them.
        build: False = only parse and check the configuration.
        callbacks: what the calling command wants done in training besides.

    Attributes:
        datamodule, model, trainer: what the configuration describes, ready to train.
        checkpoints: where the weights go.
        stored: the resolved configuration as YAML, as it is stored in each checkpoint.
    """

    def __init__(
        self,
        args: Sequence[str],
        *,
        keep_last: bool = True,
        trainer: dict[str, Any] | None = None,
        build: bool = True,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        quiet()
        self.callbacks = list(callbacks)
        self.build = build
        self.keep_last = keep_last
        super().__init__(
            FusionTask,
            MultimodalData,
            save_config_callback=None,
            trainer_defaults={**TRAINER_DEFAULTS, "enable_progress_bar": sys.stdout.isatty(), **(trainer or {})},
            parser_kwargs={"prog": "python -m examples.mer fit", "exit_on_error": False},
            args=list(args),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of weights, data order and dropout.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--ckpt_path", type=str, default=None, help="Resume from this file, such as last.ckpt.")
        parser.add_argument("--overwrite", type=bool, default=False, help="Replace the checkpoints of an earlier run.")
        parser.add_lightning_class_args(PatientStopping, "early_stopping")
        parser.set_defaults({f"early_stopping.{name}": value for name, value in STOPPING_DEFAULTS.items()})
        parser.link_arguments("seed_everything", "data.seed")
        for name in sorted(FROM_DATA):
            parser.link_arguments("data", f"model.{name}", compute_fn=_from_data(name), apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        check_config_files(parser, args)
        # Lightning's own version warns whenever the program itself was started with arguments.
        self.config = parser.parse_args(args)
        epochs = self.config.trainer.max_epochs
        if epochs is not None and epochs < 1 and epochs != -1:
            raise ValueError(f"--trainer.max_epochs: expected at least 1, or -1 for no limit, got {epochs}")
        self.files = [str(path) for path in self.config.config or []]
        self.name = "-".join(Path(file).stem for file in self.files) or "custom"
        if self.config.trainer.default_root_dir is None:
            run = f"seed{self.config.seed_everything}-fold{self.config.data.fold}"
            self.config.trainer.default_root_dir = str(Path("runs", self.name, run))
        self.stored = self._stored()

    def _stored(self) -> str:
        config = self.config.clone()
        # What is linked comes from another setting or from the data, and may not be given.
        for key in (*CALL_ARGUMENTS, "data.seed", *(f"model.{name}" for name in FROM_DATA)):
            config.pop(key, None)
        return str(yaml.safe_dump(config.as_dict(), sort_keys=False))

    def instantiate_classes(self) -> None:
        if not self.build:
            return
        try:
            super().instantiate_classes()
        except (TypeError, ValueError) as error:
            # jsonargparse wraps what the data says about its files in a message about links.
            cause = error.__cause__ if isinstance(error.__cause__, DataError) else error
            if isinstance(cause, DataError):
                raise cause from None
            raise ValueError(f"{', '.join(self.files) or 'command line'}: {error}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        self.root = Path(self.config.trainer.default_root_dir).resolve()
        self.checkpoints = Checkpoints(str(self.root), keep_last=self.keep_last)
        self.trainer_defaults["callbacks"] = [
            EpochSeed(self.config.seed_everything),
            StoreConfig(self.name, self.stored),
            *self.checkpoints.callbacks(),
            *self.callbacks,
        ]
        return super().instantiate_trainer(**kwargs)

    def train(self, ckpt_path: str | None = None) -> dict[str, Any]:
        """Fit, put the best weights back into `model` and return the best checkpoint.

        The test splits are not read here, so nothing can be selected on them.
        """
        try:
            self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=ckpt_path, weights_only=True)
        except SystemExit:
            # Lightning's answer to Ctrl-C.
            raise KeyboardInterrupt from None
        best = load_checkpoint(self.checkpoints.best.best_model_path)
        if not best["validation"]["combined"] > float("-inf"):
            raise ValueError(f"{self.name}: the training diverged in its first epoch; try a smaller model.lr")
        self.model.load_state_dict(best["state_dict"])
        self.model.eval()
        return best


def check_config_files(parser: LightningArgumentParser, args: Sequence[str]) -> None:
    """Check the first two levels of names in the configuration files among `args`.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: naming the file, the unknown name and those allowed.
    """
    known = {str(action.dest) for action in parser._actions}
    sections = {name.partition(".")[0] for name in known if not name.startswith("help")}
    for path in config_files(args):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such configuration file")
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
        if not isinstance(config, dict):
            raise ValueError(f"{path}: expected a YAML mapping with {', '.join(sorted(sections))}")
        for section, content in config.items():
            _check_names(f"{path}: ", [section], sections)
            if isinstance(content, dict):
                prefix = f"{section}."
                names = {name.removeprefix(prefix) for name in known if name.startswith(prefix)}
                _check_names(f"{path}: {section}: ", content, {name for name in names if "." not in name})


def config_files(args: Sequence[str]) -> list[Path]:
    """List the files given as `--config FILE`, `--config=FILE` or `-c FILE`, in order."""
    files = [after for word, after in pairwise([*args, ""]) if word in ("--config", "-c")]
    return [Path(file) for file in files + [word[9:] for word in args if word.startswith("--config=")]]


def _check_names(where: str, names: Iterable[str], allowed: set[str]) -> None:
    for name in names:
        if name not in allowed:
            raise ValueError(f"{where}unknown option {name!r}; allowed: {', '.join(sorted(allowed))}")


def _from_data(name: str) -> Callable[[MultimodalData], Any]:
    def read(data: MultimodalData) -> Any:
        if not data.num_classes:
            raise DataError(
                f"{data.root}: expected labelled rows, got data.label = {data.columns['label']!r} without any"
            )
        return getattr(data, name)

    return read


def store_config(stored: str, path: Path) -> Path:
    """Write a resolved configuration to a file, for runs in other processes."""
    with atomic_file(path) as scratch:
        scratch.write_text(stored, encoding="utf-8")
    return path


def quiet() -> None:
    """Keep Lightning's banners and hints from mixing with what the commands print."""
    # After the import of Lightning, which sets its own levels.
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|jsonargparse|torchmetrics|torch)\.")


def fit_command(args: Sequence[str]) -> None:
    """Train one configuration and print where its best checkpoint lies."""
    cli = MerCLI(args, callbacks=[EpochLines()])
    resume = _resume_path(cli)
    best = cli.train(resume)
    if not cli.trainer.is_global_zero:
        return
    scores = "  ".join(f"{name} {value:.4f}" for name, value in best["validation"].items())
    print(f"{cli.name}: best epoch {best['epoch'] + 1} of {cli.trainer.current_epoch}  validation: {scores}")
    print(f"checkpoint: {cli.checkpoints.best.best_model_path}")


def _resume_path(cli: MerCLI) -> str | None:
    """Find and check the file to resume from; refuse to write over the checkpoints of another run."""
    given = cli.config.ckpt_path
    if given is None:
        if (cli.root / "best.ckpt").exists() and not cli.config.overwrite:
            raise FileExistsError(
                f"{cli.root / 'best.ckpt'}: already there; give --ckpt_path last.ckpt to go on,"
                " --overwrite true to start anew, or another --trainer.default_root_dir"
            )
        return None
    path = Path(given) if Path(given).exists() else cli.root / given
    check_fits(path, load_checkpoint(path), cli.model)
    return str(path)
