"""Data, task and trainer of a pipeline from configuration files and command-line overrides."""

from __future__ import annotations

import hashlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from .callbacks import MONITOR, Checkpoints, EpochSeed, PatientStopping, StoreConfig
from .checkpoints import check_fits, load_checkpoint
from .errors import DataError
from .files import atomic_file


class PipelineCLI(LightningCLI):
    """What a configuration describes, ready to train; each pipeline says what its own task and data are.

    Args:
        args: command-line words: `--config FILE` (any number, later ones win) and overrides such as `--data.root PATH`.
        keep_last: whether a resumable `last.ckpt` is written beside `best.ckpt`.
        trainer: trainer defaults of the calling command; configuration files and `args` win over them.
        build: False = only parse and check the configuration.
        callbacks: what the calling command wants done in training besides.
        name: name of the configuration; None = after its files.

    Attributes:
        datamodule, model, trainer: what the configuration describes, ready to train.
        checkpoints: where the weights go.
        stored: the resolved configuration as YAML, as it is stored in each checkpoint.
    """

    task_class: ClassVar[type[LightningModule]]
    data_class: ClassVar[type[LightningDataModule]]
    prog: ClassVar[str]
    # Arguments of the task that the data decides: never an option of a configuration.
    from_data: ClassVar[tuple[str, ...]]
    # Arguments of one call, not of the experiment: they are not stored with the checkpoint.
    call_arguments: ClassVar[tuple[str, ...]] = (
        "config",
        "ckpt_path",
        "overwrite",
        "trainer.default_root_dir",
        "trainer.enable_progress_bar",
    )
    trainer_settings: ClassVar[dict[str, Any]] = {
        "max_epochs": 100,
        "gradient_clip_val": 1.0,
        "gradient_clip_algorithm": "norm",
        "logger": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    stopping: ClassVar[dict[str, Any]] = {"monitor": MONITOR, "mode": "max", "min_delta": 0.0, "patience": 10}

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
        super().__init__(
            self.task_class,
            self.data_class,
            save_config_callback=None,
            trainer_defaults={**self.trainer_settings, "enable_progress_bar": sys.stdout.isatty(), **(trainer or {})},
            parser_kwargs={"prog": self.prog, "exit_on_error": False, "allow_abbrev": False},
            args=list(args),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def value_from_data(self, name: str, data: Any) -> Any:
        """Read from the data what it decides of the task."""
        return getattr(data, name)

    def default_folder(self) -> Path:
        """Name the folder of a run that is not told one."""
        return Path("runs", self.name, f"seed{self.config.seed_everything}-fold{self.config.data.fold}")

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of weights, data order and dropout.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--ckpt_path", type=str, default=None, help="Resume from this file, such as last.ckpt.")
        parser.add_argument("--overwrite", type=bool, default=False, help="Replace the checkpoints of an earlier run.")
        parser.add_lightning_class_args(PatientStopping, "early_stopping")
        parser.set_defaults({f"early_stopping.{name}": value for name, value in self.stopping.items()})
        parser.link_arguments("seed_everything", "data.seed")
        for name in self.from_data:
            parser.link_arguments("data", f"model.{name}", compute_fn=self._reader_of(name), apply_on="instantiate")

    def _reader_of(self, name: str) -> Callable[[Any], Any]:
        def read(data: Any) -> Any:
            return self.value_from_data(name, data)

        return read

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
            self.config.trainer.default_root_dir = str(self.default_folder())
        self.name = self.given_name or self.name
        self.stored = self._stored()

    def _stored(self) -> str:
        config = self.config.clone()
        # What is linked comes from another setting or from the data, and may not be given.
        for key in (*self.call_arguments, "data.seed", *(f"model.{name}" for name in self.from_data)):
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

        The test rows are not read here, so nothing can be selected on them.
        """
        try:
            self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=ckpt_path, weights_only=True)
        except SystemExit:
            # Lightning's answer to Ctrl-C.
            raise KeyboardInterrupt from None
        best = load_checkpoint(self.checkpoints.best.best_model_path)
        if not best["validation"]["select"] > float("-inf"):
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


def store_config(stored: str, path: Path) -> Path:
    """Write a resolved configuration to a file, for runs in other processes."""
    with atomic_file(path) as scratch:
        scratch.write_text(stored, encoding="utf-8")
    return path


def stored_words(checkpoint: Mapping[str, Any], folder: Path) -> list[str]:
    """Write the configuration that a checkpoint holds to `folder`, and return the words that name it."""
    config = str(checkpoint["config"])
    name = f"{checkpoint['config_name']}-{hashlib.sha256(config.encode()).hexdigest()[:16]}.yaml"
    return ["--config", str(store_config(config, folder / name))]


def quiet() -> None:
    """Keep Lightning's banners and hints from mixing with what the commands print."""
    # After the import of Lightning, which sets its own levels.
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|jsonargparse|torchmetrics|torch)\.")


def fit(cli: PipelineCLI, *, hidden: Sequence[str] = ()) -> None:
    """Train, or go on, and print the validation scores but the `hidden` ones, and where the best checkpoint lies."""
    best = cli.train(resume_path(cli))
    if not cli.trainer.is_global_zero:
        return
    scores = "  ".join(f"{name} {value:.4f}" for name, value in best["validation"].items() if name not in hidden)
    print(f"{cli.name}: best epoch {best['epoch'] + 1} of {cli.trainer.current_epoch}  validation: {scores}")
    print(f"checkpoint: {cli.checkpoints.best.best_model_path}")


def resume_path(cli: PipelineCLI) -> str | None:
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
