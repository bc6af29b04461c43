"""Shared set-up: one thread per process, fixed seeds, derandomised hypothesis, and where real data lie."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the processes a test starts inherit it
os.environ.setdefault("MPLBACKEND", "Agg")

import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from tests.ranks import Ranks

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)
hypothesis.settings.register_profile("mmrobust", derandomize=True, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("mmrobust")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)  # torch is seeded one folder up
    np.random.seed(0)  # noqa: NPY002 (third-party code draws from it)


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def mmrobust_data() -> Path:
    """Return the folder of the real data sets, or skip."""
    folder = os.environ.get("MMROBUST_DATA")
    if not folder:
        pytest.skip("needs real data: MMROBUST_DATA (the folder of the data sets) is not set")
    path = Path(folder)
    assert path.is_dir(), f"MMROBUST_DATA: expected a folder, got {folder}"
    return path


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Return what runs a function on every rank of a process group."""
    pool = Ranks(tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()
