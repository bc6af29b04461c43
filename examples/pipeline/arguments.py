"""Words of the command line that several commands understand."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

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


def check_reference(command: str, reference: object, runs: Sequence[object], option: str = "--reference") -> None:
    """Raise unless `reference` is None or one of the configurations (or seeds) of the runs."""
    if reference is not None and reference not in runs:
        names = ", ".join(dict.fromkeys(map(str, runs)))
        raise ValueError(f"{command}: {option}: expected one of {names}, got {reference!r}")


def find_config(name: str, folder: Path, *, others: Sequence[str] = ()) -> Path:
    """Find a configuration given as a file or as a name in `folder`, whose files named `others` are none."""
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml") if path.name not in others))
    raise FileNotFoundError(f"{name}: no such configuration; expected a YAML file or one of {known}")


def find_parts(name: str, folder: Path) -> list[Path]:
    """Find the files of NAME+OTHER, which are put one after the other; the others are in `variants`, or like the first.

    Raises:
        FileNotFoundError: naming those that there are.
    """
    first, *others = name.split("+")
    variants = folder / "variants"
    known = {path.stem for path in variants.glob("*.yaml")}
    files = [find_config(first, folder)]
    for one in others:
        try:
            files.append(find_config(one, variants if one in known else folder))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; after a +, {', '.join(sorted(known))} as well") from None
    return files


def label_of(name: str) -> str:
    """Name a configuration given as names or files: `x/span_aware.yaml+dcl` is `span_aware+dcl`."""
    return "+".join(Path(part).stem for part in name.split("+"))


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
