"""The cases, one file per family of components; every suite module ends with its ``CASES``."""

from __future__ import annotations

import importlib

from benchmarks.harness.case import Case

# In this order: should the time run out, it is the last that lose their torch.compile contender.
SUITES = (
    "models",
    "attention",
    "asrm",
    "prototypes",
    "fusion",
    "losses",
    "contrastive",
    "memory",
    "gradient_cache",
    "presence",
    "quality",
    "calibration",
    "encoders",
    "masking",
    "startup",
)


def load(suite: str) -> tuple[Case, ...]:
    """Import one suite and return its cases."""
    cases: tuple[Case, ...] = importlib.import_module(f"{__name__}.{suite}").CASES
    return cases
