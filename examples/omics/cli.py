"""The `fit` command, and the configuration parser that all commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningDataModule, LightningModule

from examples.pipeline import cli as shared
from examples.pipeline.callbacks import MONITOR, EpochLines
from examples.pipeline.cli import PipelineCLI

from .data import OmicsData
from .history import HISTORY, History, read_history, verdict
from .task import FROM_DATA, OmicsTask

CONFIGS = Path(__file__).parent / "configs"
RUNS = Path("runs", "omics")
LINE = {"balanced_accuracy": "balanced accuracy", "nll": "NLL"}


class OmicsCLI(PipelineCLI):
    """Data, task and trainer of this pipeline; see `PipelineCLI`.

    A configuration may be given by its name in `configs/`, `configs/variants/` or `configs/data/`.
    """

    task_class: ClassVar[type[LightningModule]] = OmicsTask
    data_class: ClassVar[type[LightningDataModule]] = OmicsData
    prog: ClassVar[str] = "python -m examples.omics fit"
    from_data: ClassVar[tuple[str, ...]] = FROM_DATA
    trainer_settings: ClassVar[dict[str, Any]] = {
        **PipelineCLI.trainer_settings,
        "max_epochs": 100,
        "log_every_n_steps": 1,
    }
    stopping: ClassVar[dict[str, Any]] = {"monitor": MONITOR, "mode": "max", "min_delta": 0.0, "patience": 20}

    def __init__(self, args: Sequence[str], *, callbacks: Sequence[Callback] = (), **options: Any) -> None:
        self.history = History()
        super().__init__(find_configs(args), callbacks=[self.history, *callbacks], **options)

    def default_folder(self) -> Path:
        run = f"seed{self.config.seed_everything}-fold{self.config.data.fold}"
        return RUNS / self.name / data_name(self.config.data.root) / run


def find_configs(args: Sequence[str]) -> list[str]:
    """Replace the names of the pipeline's own configurations by their files."""
    found, after = [], False
    for word in args:
        start = "--config=" if word.startswith("--config=") else ""
        given = word.removeprefix(start)
        if (after or start) and not Path(given).is_file():
            word = start + _find(given)
        after = word in ("--config", "-c")
        found.append(word)
    return found


def _find(name: str) -> str:
    """Return the file of a name, or what is no name as it is: its error is that of a file."""
    stem, folders = name.removesuffix(".yaml"), (CONFIGS, CONFIGS / "variants", CONFIGS / "data")
    found = next((str(path) for path in (folder / f"{stem}.yaml" for folder in folders) if path.is_file()), None)
    if found is None and stem == name == Path(name).name:
        known = "; ".join(", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) for folder in folders)
        raise FileNotFoundError(f"{name}: no such configuration; expected a YAML file or one of {known}")
    return found or name


def data_name(root: str) -> str:
    """Name a data set after its file or folder."""
    return Path(root).name.partition(".")[0] or "data"


def fit_command(args: Sequence[str]) -> None:
    """Train one configuration and print where its best checkpoint lies, and whether it over- or underfits."""
    cli = OmicsCLI(args, callbacks=[EpochLines(LINE, every=5)])
    shared.fit(cli, hidden=("select",))
    if cli.trainer.is_global_zero:
        print(f"fit: {verdict(read_history(cli.root / HISTORY)).text}")
