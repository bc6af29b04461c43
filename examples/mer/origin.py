"""What the results in a folder were made from, so that those of other checkpoints are not written over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .checkpoints import find_checkpoint
from .files import atomic_file

Origin = dict[str, Any]


def origin_of(checkpoints: Sequence[Path], overrides: Sequence[str]) -> Origin:
    """Tell checkpoints apart by content: a run that was trained again is another one, a renamed file is not.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
    """
    return {"checkpoints": sorted(_digest(find_checkpoint(path)) for path in checkpoints), "settings": [*overrides]}


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
    if found != {**origin, "runs": _digest(folder / "runs.csv")}:
        raise FileExistsError(
            f"evaluate: {folder}: holds the runs.csv of other checkpoints or settings;"
            " choose another --out, or pass --overwrite"
        )


def write_origin(folder: Path, origin: Origin) -> None:
    """Note what the runs that are now in `folder` were made from."""
    with atomic_file(folder / "origin.json") as path:
        path.write_text(json.dumps({**origin, "runs": _digest(folder / "runs.csv")}, indent=1), encoding="utf-8")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
