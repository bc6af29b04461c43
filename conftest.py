"""Names and settings that the examples in docstrings rely on."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _doctest_setup(doctest_namespace: dict[str, object]) -> None:
    torch.manual_seed(0)
    doctest_namespace["torch"] = torch
