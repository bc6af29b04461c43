"""Tests of the Triton kernels: `make test-triton` runs them, once in the interpreter and once ahead of time.

Without Triton only what does not need it is collected.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from mmrobust._kernels import is_interpreted

HERE = Path(__file__).parent
NEED_TRITON = ["test_compiled.py", "test_cuda.py", "test_interpreted.py"]
collect_ignore = NEED_TRITON if find_spec("triton") is None else []
# The interpreter's own; the first became an error in NumPy 2.4.
WARNINGS = ("Conversion of an array with ndim > 0:DeprecationWarning", "All-NaN slice encountered:RuntimeWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_interpreted() and item.path.parent == HERE:
            for warning in WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{warning}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests recorded as resources, from whatever process they ran in."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    lines = [str(line) for report in reports for name, line in report.user_properties if name == "resources"]
    if lines:
        terminalreporter.section("resources of the Triton kernels, compiled ahead of time")
        for line in sorted(lines):
            terminalreporter.write_line(line)
