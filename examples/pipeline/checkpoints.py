"""Reading checkpoints: one line says what is wrong with a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

CONFIG_KEYS = ("config_name", "config", "validation")


def find_checkpoint(path: str | Path) -> Path:
    """Give the path of a checkpoint that exists.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; expected a file that `fit` wrote, such as best.ckpt")
    return path


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that `fit` wrote; only tensors and plain values are unpickled.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a checkpoint, or not one of this pipeline.
    """
    path = find_checkpoint(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler meets in a broken file
        raise ValueError(f"{path}: not a readable checkpoint ({type(error).__name__})") from error
    missing = [key for key in ("state_dict", *CONFIG_KEYS) if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise ValueError(f"{path}: not a checkpoint of this pipeline: it lacks {', '.join(missing)}")
    return dict(checkpoint)


def check_fits(path: str | Path, checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Check that the checkpoint's tensors have the names and sizes of `module`.

    Raises:
        ValueError: naming the first tensor that differs.
    """
    found = {name: tuple(x.shape) for name, x in checkpoint["state_dict"].items()}
    wanted = {name: tuple(x.shape) for name, x in module.state_dict().items()}
    for name in [*wanted, *found]:
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{path}: checkpoint of other sizes: expected {name} of shape {wanted.get(name, 'none')},"
                f" got {found.get(name, 'none')}"
            )
