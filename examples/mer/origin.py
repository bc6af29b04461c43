"""What the results in a folder were made from, so that those of other checkpoints are not written over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.pipeline.checkpoints import find_checkpoint
from examples.pipeline.files import atomic_file

Origin = dict[str, Any]
PENDING = "being written"


def origin_of(checkpoints: Sequence[Path], overrides: Sequence[str], options: Mapping[str, Any]) -> Origin:
    """Tell checkpoints apart by content: a run that was trained again is another one, a renamed file is not.

    `overrides` and `options` are the settings changed and what was measured.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
    """
    found = sorted(_digest(find_checkpoint(path)) for path in checkpoints)
    return {"checkpoints": found, "settings": [*overrides], "options": {**options}}


def check_origin(folder: Path, origin: Origin) -> None:
    """Raise if `folder` holds runs, unless `write_origin` was told the same origin when they were written.

    Raises:
        FileExistsError: naming the folder and the ways out.
    """
    if not (folder / "runs.csv").exists():
        return
    try:
        found = json.loads((folder / "origin.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        found = None
    # `ablate` may have written into the folder since: then the runs are not those of that origin any more.
    runs = None if found is None else found.pop("runs", None)
    if found != origin or runs not in (PENDING, _digest(folder / "runs.csv")):
        raise FileExistsError(
            f"evaluate: {folder}: holds the runs.csv of other checkpoints, settings or views;"
            " choose another --out, or pass --overwrite"
        )


def check_free(folder: Path) -> None:
    """Raise if `folder` holds what `evaluate` wrote, which a table of other runs would replace.

    Raises:
        FileExistsError: naming the folder.
    """
    if (folder / "origin.json").exists():
        raise FileExistsError(f"ablate: {folder}: holds the results of evaluate; choose another --out")


def write_origin(folder: Path, origin: Origin, *, pending: bool = False) -> None:
    """Note what the runs in `folder` are made from; `pending` = they are about to be written."""
    runs = PENDING if pending else _digest(folder / "runs.csv")
    with atomic_file(folder / "origin.json") as path:
        path.write_text(json.dumps({**origin, "runs": runs}, indent=1), encoding="utf-8")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
