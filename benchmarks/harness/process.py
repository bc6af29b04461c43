"""Peak memory of one call in a process of its own, where nothing that ran before hides it or adds to it.

The process builds the problem of one case and calls one contender at a smaller size, which loads code, then at the size
itself, and then once more: the peak is how far the resident set grows during that last call. It sees everything, also
what libraries allocate by themselves. The C library's allocator is told to give back at once what is freed; otherwise
it keeps some, in amounts that vary from run to run.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

_ROOT = Path(__file__).resolve().parents[2]
_RESET = Path("/proc/self/clear_refs")
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
_PATIENCE = 5.0  # seconds: of a slower call the first is taken; what it sets up once is little beside what it needs
_SMALLER = 1 << 17  # product of the sizes


class ProcessError(RuntimeError):
    """The process could not measure; the message says why."""


def is_possible() -> bool:
    """Return whether this system tells a process its peak memory, and lets it start anew (Linux does)."""
    return _RESET.exists()


def peaks(order: Mapping[str, Any]) -> dict[str, int]:
    """Return the peak bytes of every mode of ``order``: suite, case, dims, contender, modes, seed and threads."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.harness.process"],
        input=json.dumps(dict(order)),
        cwd=_ROOT,
        env={**os.environ, **_GIVE_BACK},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise ProcessError(f"memory in a process of its own: exit status {done.returncode} {last}".strip())
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def growth(action: Callable[[], Any]) -> int:
    """Return by how many bytes the resident set of this process grows at most during one call."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what was freed and kept would be taken again unseen
    _RESET.write_text("5", encoding="ascii")  # the peak starts again from here
    before = _kilobytes("VmRSS")
    kept = action()
    peak = _kilobytes("VmHWM")
    del kept
    return max(0, peak - before) * 1024


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _warm_growth(action: Callable[[], Any]) -> int:
    start = time.perf_counter()
    first = growth(action)
    return first if time.perf_counter() - start > _PATIENCE else growth(action)


def _smaller(dims: Mapping[str, int]) -> dict[str, int]:
    """Return the same sizes with the largest halved again and again."""
    found = dict(dims)
    while math.prod(found.values()) > _SMALLER:
        longest = max(found, key=found.__getitem__)
        found[longest] //= 2
    return found


def _main() -> None:
    from benchmarks.harness.case import Setup
    from benchmarks.harness.runner import modes
    from benchmarks.suites import load

    order = json.load(sys.stdin)
    torch.set_num_threads(order["threads"])
    (case,) = (case for case in load(order["suite"]) if case.name == order["case"])
    name = order["contender"]

    def actions(dims: Mapping[str, int]) -> dict[str, Callable[[], Any]]:
        problem = case.build(Setup(dims, torch.device("cpu"), seed=order["seed"]))
        return {mode: found[name] for mode, found in modes(problem, {name: problem.contenders[name]}).items()}

    for action in actions(_smaller(order["dims"])).values():
        action()
    measured = {mode: _warm_growth(action) for mode, action in actions(order["dims"]).items() if mode in order["modes"]}
    print(json.dumps(measured))


if __name__ == "__main__":
    _main()
