"""What the tests of the hate-speech commands share: a configuration on a tiny encoder, and failing commands."""

from __future__ import annotations

import pytest

from examples.hate_speech.__main__ import main
from examples.hate_speech.ablate import CONFIGS

SPAN = str(CONFIGS / "span_aware.yaml")
TINY = ["--data.encoder", "tiny", "--data.max_tokens", "32", "--data.cache", "null", "--trainer.accelerator", "cpu"]


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run a command that must fail for what it was given, and return its one line."""
    capsys.readouterr()
    status = main(list(args))
    error = capsys.readouterr().err
    assert status == 2, error
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    return error
