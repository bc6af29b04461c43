"""A command that must fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def fails(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run a command that must fail for what it was given, and return its one line."""
    capsys.readouterr()
    status = main(list(args))
    error = capsys.readouterr().err
    assert status == 2, error
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    return error
