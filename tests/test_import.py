"""Importing the package warns of nothing, drags nothing in, and costs little beyond torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 0.05  # seconds
HEAVY = ("triton", "lightning", "matplotlib", "pandas", "scipy", "sklearn", "torch._dynamo", "torch._inductor")

MEASURE = """
import time
import torch
start = time.process_time()
import mmrobust
print(time.process_time() - start)
"""
LOADED = """
import sys
import torch
before = set(sys.modules)
import mmrobust
print(*(set(sys.modules) - before))
"""


def python(*arguments: str, cache: Path | None = None) -> str:
    environment = dict(os.environ)
    if cache is not None:
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(cache)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def test_import_without_a_warning() -> None:
    assert python("-W", "error", "-c", "import mmrobust, mmrobust.functional") == ""


def test_import_brings_only_the_package() -> None:
    new = python("-c", LOADED).split()
    assert "mmrobust" in new
    assert not [module for module in new if module.startswith(HEAVY)]


def test_import_is_quick(tmp_path: Path) -> None:
    """With compiled modules, as pip leaves them: the first run compiles."""
    # Processor time, and the best of several: other processes on the machine must not decide the outcome.
    best = float("inf")
    for _ in range(5):
        best = min(best, float(python("-c", MEASURE, cache=tmp_path)))
        if best < BUDGET:
            return
    pytest.fail(f"import mmrobust adds {best:.3f} s to import torch, allowed {BUDGET} s")


def test_typed_marker_is_there() -> None:
    assert (ROOT / "mmrobust" / "py.typed").is_file()
