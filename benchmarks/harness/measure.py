"""Time and memory: interleaved blocks of calls, and the peak of one call."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

Action = Callable[[], Any]


class Clock:
    """Times a block of calls: device events on CUDA, ``perf_counter`` on the CPU, or what the calls return."""

    def __init__(self, device: torch.device, *, self_timed: bool = False) -> None:
        self.device = device
        self.self_timed = self_timed

    def block(self, action: Action, iterations: int) -> float:
        """Return the seconds per call over ``iterations`` calls in a row."""
        if self.self_timed:
            return statistics.fmean(action() for _ in range(iterations))
        if self.device.type == "cuda":
            return self._events(action, iterations)
        start = time.perf_counter()
        for _ in range(iterations):
            action()
        return (time.perf_counter() - start) / iterations

    def _events(self, action: Action, iterations: int) -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        first.record()
        for _ in range(iterations):
            action()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000 / iterations


def interleave(
    actions: Mapping[str, Action],
    clock: Clock,
    *,
    seconds: float,
    min_block: float = 2e-3,
    min_rounds: int = 7,
    max_rounds: int = 40,
) -> dict[str, tuple[list[float], int]]:
    """Time all actions round robin: a block of each per round, the order rotating from round to round.

    Returns:
        For each action the seconds per call of every round, and the calls per block.
    """
    iterations = {name: _warm(action, clock, min_block) for name, action in actions.items()}
    samples: dict[str, list[float]] = {name: [] for name in actions}
    names = list(actions)
    start = time.perf_counter()
    with no_collection():
        for turn in range(max_rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                samples[name].append(clock.block(actions[name], iterations[name]))
            if turn + 1 >= min_rounds and time.perf_counter() - start > seconds:
                break
    return {name: (samples[name], iterations[name]) for name in names}


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of what is measured."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _warm(action: Action, clock: Clock, min_block: float) -> int:
    """Warm up, and return how many calls fill a block."""
    if clock.self_timed:  # a fresh process each time: nothing to warm up
        return 1
    once = clock.block(action, 1)
    if once < 1.0:  # a call that takes seconds is warm enough for another
        once = clock.block(action, 1)
    if once < min_block:
        once = min(once, clock.block(action, 3))
    return max(1, min(1000, math.ceil(min_block / max(once, 1e-7))))


def summary(samples: list[float]) -> dict[str, float]:
    """Return the median, the quartiles and the least of the samples."""
    q25, median, q75 = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    return {"median": median, "q25": q25, "q75": q75, "min": min(samples)}


def free_bytes(device: torch.device) -> float:
    """Return the memory that is free on a device, infinity where the system does not tell."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), math.inf)


def peak_bytes(action: Action, device: torch.device) -> int:
    """Return the largest memory that one call holds above what was held before it.

    CUDA: ``max_memory_allocated``. CPU: the profiler's record of every allocation and release of PyTorch's
    allocator, which sees temporaries inside operators and compiled code, but not the workspaces that a library such as
    oneDNN allocates by itself.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    return _profiled_peak(action)


def _profiled_peak(action: Action) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.profiler import ProfilerActivity, profile

    with no_collection(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = action()  # outputs stay alive until the profile ends
    events = recorded.profiler.kineto_results.events() if recorded.profiler else []
    changes = sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns())
    del kept
    levels = itertools.accumulate(event.nbytes() for event in changes)
    return max([0, *levels])
