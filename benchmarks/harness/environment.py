"""Where and with what a run was made; no host names and no paths, so that results can be published."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import mmrobust

_ROOT = Path(__file__).resolve().parents[2]
_PEERS = ("numpy", "triton", "kornia", "pytorch-metric-learning", "lightly")


def describe(device: torch.device) -> dict[str, Any]:
    """Return the metadata of a run on ``device``."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")  # the results of this very run
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": None if status is None else bool(status),
        "source_sha256": source_digest(),
        "device": device.type,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "logical_cpus": os.cpu_count() or 1,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "packages": {"mmrobust": mmrobust.__version__, **{name: _version(name) for name in _PEERS}},
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
    }


def source_digest() -> str:
    """Return a digest of the library's source, which names the code even where there is no git."""
    digest = hashlib.sha256()
    for path in sorted((_ROOT / "mmrobust").rglob("*.py")):
        digest.update(path.relative_to(_ROOT).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def device_name(device: torch.device) -> str:
    """Return the name of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown CPU"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
