"""Words of the command line that several commands understand."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from benchmarks.robustness import VIEWS

from .data import MultimodalData
from .predict import list_metrics
from .reporting import METRICS

CONFIGS = Path(__file__).parent / "configs"
VARIANTS = CONFIGS / "variants.yaml"
OVERRIDES = ("--data.", "--model.", "--trainer.", "--early_stopping.")


class Arguments(argparse.ArgumentParser):
    """A parser whose errors are exceptions: one line, without the usage."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog.rpartition(' ')[2]}: {message.removeprefix('argument ')}")


def count(text: str) -> int:
    """Parse a number of which there is at least one; argparse puts the name of the argument before the message."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `ablate` and `evaluate` share."""
    parser.add_argument("--out", type=Path, required=True, help="folder for CSV, tables, pictures and finished runs")
    parser.add_argument("--workers", type=count, default=2, help="parallel processes (default: %(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="threads of each process (default: %(default)s)")
    parser.add_argument(
        "--score", default="weighted_f1", choices=METRICS, help="metric of tables and pictures (default: %(default)s)"
    )
    parser.add_argument("--views", nargs="*", default=list(VIEWS), choices=VIEWS, help="default: all")
    parser.add_argument("--draws", type=count, default=10, help="draws per missing rate (default: %(default)s)")
    parser.add_argument("--specialist-epochs", type=count, help="epochs of a specialist (default: as the run)")


def check_reference(command: str, reference: object, runs: Sequence[object], option: str = "--reference") -> None:
    """Raise unless `reference` is None or one of the configurations (or seeds) of the runs."""
    if reference is not None and reference not in runs:
        names = ", ".join(dict.fromkeys(map(str, runs)))
        raise ValueError(f"{command}: {option}: expected one of {names}, got {reference!r}")


def check_score(command: str, score: str, data: MultimodalData) -> None:
    """Raise unless `score` can be measured on the first test part of the data."""
    known = list_metrics(data)
    if score not in known:
        raise ValueError(f"{command}: --score: expected one of {', '.join(known)} on {data.root}, got {score!r}")


def find_config(name: str, folder: Path) -> Path:
    """Find a configuration given as a file or as a name in `folder`."""
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml") if path != VARIANTS))
    raise FileNotFoundError(f"{name}: no such configuration; expected a YAML file or one of {known}")


def label_of(name: str) -> str:
    """Name a configuration given as name, file, or either with a variant: `robust:no_views` is `robust-no_views`."""
    base, _, variant = name.partition(":")
    return Path(base).stem + (f"-{variant}" if variant else "")


def find_variant(name: str) -> tuple[Path, list[str]]:
    """Find a configuration and the words that its variant, after a colon, adds to it."""
    base, _, variant = name.partition(":")
    if not variant:
        return find_config(base, CONFIGS), []
    variants = yaml.safe_load(VARIANTS.read_text(encoding="utf-8"))
    if variant not in variants:
        raise ValueError(f"{name}: expected a variant among {', '.join(variants)}, got {variant!r}")
    words = [word for key, value in variants[variant].items() for word in (f"--{key}", json.dumps(value))]
    return find_config(base, CONFIGS), [word.strip('"') for word in words]


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate a command's own words from settings of data, model, trainer and early stopping with their values."""
    own, overrides = [], []
    rest = iter(words)
    for word in rest:
        if not word.startswith(OVERRIDES):
            own.append(word)
        elif "=" in word:
            overrides.append(word)
        else:
            value = next(rest, None)
            if value is None:
                raise ValueError(f"{word}: expected a value")
            overrides += [word, value]
    return own, overrides
