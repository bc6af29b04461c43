"""What importing the package costs a program that has imported torch already."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.harness.case import Case, Contender, Problem, Setup, Size, Target

_ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import mmrobust
print(middle - start, time.perf_counter() - middle)
"""


class _FreshImports:
    """Imports torch, then mmrobust, in a new process; one process answers for both contenders."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[float]] = {"torch": [], "ours": []}

    def seconds(self, name: str) -> float:
        if not self.waiting[name]:
            done = subprocess.run(
                [sys.executable, "-c", _PROGRAM], cwd=_ROOT, capture_output=True, text=True, check=True
            )
            torch_seconds, our_seconds = map(float, done.stdout.split())
            self.waiting["torch"].append(torch_seconds)
            self.waiting["ours"].append(our_seconds)
        return self.waiting[name].pop()


def build_import(setup: Setup) -> Problem:
    imports = _FreshImports()
    contenders = {
        "ours": Contender(lambda: imports.seconds("ours"), "ours", note="import mmrobust, after import torch"),
        "import torch": Contender(lambda: imports.seconds("torch"), note="import torch alone, for scale"),
    }
    target = Target("import mmrobust adds under 50 ms to import torch", mode="forward", seconds_at_most=0.05)
    return Problem(contenders, gradients=False, timer="self", targets=(target,))


CASES = (Case("import mmrobust", build_import, {"N": 1}, (Size({"N": 1}),)),)
