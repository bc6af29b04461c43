"""Where the time of a call goes: matrix products, exponentials, sums, other arithmetic, memory, and the rest."""

from __future__ import annotations

import os
import re
import time
from typing import Any

import torch

from .measure import Action, no_collection

# An operator belongs to the first part that names the beginning of its name.
_PARTS = {
    "products": "mm addmm bmm baddbmm addbmm linear scaled_dot_product einsum convolution",
    "exponentials": "exp expm1 log log1p logsumexp logaddexp softmax sigmoid tanh pow sqrt rsqrt",
    "sums": "sum mean var std mv addmv dot amax amin max min argmax cumsum norm linalg_vector_norm",
    "indexing": "index gather scatter sort searchsorted nonzero masked where eye arange tril triu",
    "memory": "empty new copy to cat stack clone zero zeros ones fill full resize repeat roll contiguous",
    "arithmetic": "add addcmul sub rsub mul div neg abs square reciprocal maximum minimum clamp eq ne gt lt bitwise",
}
_PATTERNS = {part: re.compile(f"_?({'|'.join(words.split())})(_|$)") for part, words in _PARTS.items()}
_SECONDS, _CALLS = 1.0, 200


def split_time(action: Action, device: torch.device) -> list[dict[str, Any]]:
    """Return parts of the time of a call: name, seconds per call, and share of the time it takes; largest first.

    On the CPU "rest" is what no operator accounts for: Python, autograd, and the profiler itself, which weighs on
    small calls. On CUDA shares are of the time in kernels.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    calls = _calls(action)
    with no_collection(), profile(activities=activities, record_shapes=True) as recorded:
        start = time.perf_counter()
        for _ in range(calls):
            action()
        if on_gpu:
            torch.cuda.synchronize(device)
        total = (time.perf_counter() - start) / calls
    seconds: dict[str, float] = {}
    for event in recorded.key_averages(group_by_input_shape=True):
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue  # a kernel, which its operator accounts for
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        name = part_of(event.key, event.input_shapes)
        seconds[name] = seconds.get(name, 0.0) + spent * 1e-6 / calls
    if on_gpu:
        total = sum(seconds.values())
    else:
        seconds["rest"] = max(0.0, total - sum(value for name, value in seconds.items() if name != "rest"))
    parts = [{"part": n, "seconds": s, "share": s / total} for n, s in seconds.items() if total and s / total >= 5e-4]
    return sorted(parts, key=lambda part: -part["seconds"])


def part_of(operator: str, shapes: list[list[int]]) -> str:
    """Return the part that an operator belongs to.

    A product with a single row or column is a sum, one with an inner size of two or less arithmetic.
    """
    space, _, name = operator.rpartition("::")
    if space != "aten":
        return "rest"
    matrices = [shape for shape in shapes if len(shape) >= 2]
    part = next((part for part, pattern in _PATTERNS.items() if pattern.match(name)), "rest")
    if part == "products" and len(matrices) >= 2:
        left, right = matrices[-2:] if name.startswith(("add", "badd")) else matrices[:2]
        return "sums" if min(left[-2], right[-1]) == 1 else "arithmetic" if left[-1] <= 2 else part
    return part


def _calls(action: Action) -> int:
    action()
    start = time.perf_counter()
    action()
    return max(1, min(_CALLS, int(_SECONDS / max(time.perf_counter() - start, 1e-6))))
