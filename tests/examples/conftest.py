"""Fixtures shared by the tests of the examples."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what `--debug` of another test left in the environment."""
    monkeypatch.setenv("PIPELINE_DEBUG", "")
