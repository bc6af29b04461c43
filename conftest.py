"""Names and settings that the examples in docstrings rely on."""

from __future__ import annotations

import pytest
import torch

collect_ignore = ["mmrobust/_kernels/triton_pairs.py"]  # needs Triton when it is imported; tests/kernels has its tests


@pytest.fixture(autouse=True)
def _doctest_setup(doctest_namespace: dict[str, object]) -> None:
    torch.manual_seed(0)
    doctest_namespace["torch"] = torch
