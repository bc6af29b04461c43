"""The floors: how fast this machine copies and multiplies, measured in the same run as the cases.

No version of a case can run much faster than one copy that moves the bytes it must move, or than one matrix product of
the operations it must do. The copy rate is measured over a ladder of sizes, so that a problem that fits into a cache is
compared with copies that fit into it too, and a tiny one with the time of a single launch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from .case import Problem, tensors
from .measure import Clock, interleave, summary

_COPY_BYTES = {
    "toy": (2**12, 2**16),
    "cpu": tuple(2**k for k in range(12, 29, 2)),
    "cuda": tuple(2**k for k in range(12, 33, 2)),
}
_MATMUL_SIZES = {"toy": (64,), "cpu": (512, 1536), "cuda": (4096, 8192)}


@dataclass(frozen=True)
class Ceilings:
    """Seconds per copy for each number of bytes moved (read + written), and operations per second of a product."""

    copies: tuple[tuple[int, float], ...]
    flops_per_second: float

    def copy_seconds(self, moved: float) -> float:
        """Return the time of a copy that moves ``moved`` bytes, between measured sizes in proportion of logarithms."""
        below = [pair for pair in self.copies if pair[0] <= moved]
        above = [pair for pair in self.copies if pair[0] > moved]
        if not below:
            return self.copies[0][1]
        if not above:
            return below[-1][1] * moved / below[-1][0]
        (low, fast), (high, slow) = below[-1], above[0]
        part = math.log(moved / low) / math.log(high / low)
        return fast * (slow / fast) ** part

    def floor_seconds(self, moved: float, flops: float) -> float:
        return max(self.copy_seconds(moved), flops / self.flops_per_second)

    def record(self) -> dict[str, Any]:
        copies = [{"bytes": b, "seconds": s, "bytes_per_second": b / s} for b, s in self.copies]
        return {"copy": copies, "matmul": {"dtype": "float32", "flops_per_second": self.flops_per_second}}


def measure_ceilings(device: torch.device, *, toy: bool = False) -> Ceilings:
    """Measure copies and float32 matrix products (no TF32) of random numbers on the device."""
    kind = "toy" if toy else device.type
    copies = tuple((moved, _copy_seconds(device, moved)) for moved in _COPY_BYTES[kind])
    return Ceilings(copies, max(_matmul_rate(device, size) for size in _MATMUL_SIZES[kind]))


def least_bytes(problem: Problem, outputs: Any) -> dict[str, int]:
    """Return the fewest bytes that each mode must move.

    Forward: every input and parameter read once, every output written once. Forward + backward: the same, then the
    inputs and the outputs' gradients read, and the gradients written. A training step with Adam reads and writes two
    moments besides, and writes the parameters.
    """
    parameters = _bytes(p for module in problem.modules for p in module.parameters())
    read, written = _bytes(tensors(problem.inputs)) + parameters, _bytes(tensors(outputs))
    gradients = _bytes(problem.wanted(problem.contenders["ours"]))
    both = 2 * (read + written)
    return {
        "forward": read + written,
        "forward_backward": both + gradients,
        "training_step": both + 6 * parameters,
    }


def _bytes(found: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in found)


def _copy_seconds(device: torch.device, moved: int) -> float:
    source = torch.randn(moved // 8, device=device)
    target = torch.empty_like(source)
    return _seconds(device, lambda: target.copy_(source))


def _matmul_rate(device: torch.device, size: int) -> float:
    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    target = torch.empty_like(left)
    return 2 * size**3 / _seconds(device, lambda: torch.mm(left, right, out=target))


def _seconds(device: torch.device, action: Any) -> float:
    timed = interleave({"it": action}, Clock(device), seconds=0.1, min_rounds=5)
    return summary(timed["it"][0])["median"]
