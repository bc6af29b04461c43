"""How a kernel is laid out for a number of features, a precision and a GPU: chosen here, in Python, from tables.

No autotuner: it would have to time on the user's first batch, and cannot run in the interpreter. Every plan is compiled
ahead of time by the tests, which bound its registers, its spilled bytes (none) and its shared memory.

Products of a tile of rows with a tile of keys read both once per step from L2, so larger tiles mean less traffic;
what limits them is the registers for the sums, ``rows * out`` values of float32 over ``32 * warps`` threads with at
most 255 each, and the shared memory for ``stages`` tiles of keys. Where a row of sums does not fit, its features are
split over programs, and each computes the scores again: ``1 + width / out`` products instead of 2. On an H100 at 128
features the exponentials cost as much as the products, so :data:`_LSE_9` keeps registers at half for two programs on a
multiprocessor, one of which multiplies while the other exponentiates.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

ALL = 1 << 30
_MIN_WIDTH = 16  # the narrowest matrix that tensor cores multiply


class Plan(NamedTuple):
    """The layout of one launch; sizes are powers of two."""

    width: int  # features of a matrix, filled up with zeros; the only one that need not be a power of two
    chunk: int  # features multiplied at a time
    out: int  # features of the sums that a program owns
    rows: int
    keys: int
    warps: int
    stages: int


class _Shape(NamedTuple):
    limit: int  # up to how many features
    chunk: int  # 0 = all of them
    out: int
    rows: int
    keys: int
    warps: int
    stages: int


_Table = dict[str, list[_Shape]]

# Compute capability 9.0: 227 KiB of shared memory, warp groups.
_LSE_9: _Table = {
    "bf16": [
        _Shape(128, 0, 128, 128, 64, 8, 3),
        _Shape(256, 0, 256, 128, 64, 8, 3),
        _Shape(ALL, 64, 64, 128, 128, 8, 4),
    ],
    "tf32": [_Shape(128, 0, 128, 128, 64, 8, 3), _Shape(ALL, 32, 32, 128, 128, 8, 3)],
    "tf32x3": [_Shape(ALL, 32, 32, 128, 64, 8, 3)],
    "ieee": [_Shape(ALL, 16, 16, 128, 64, 8, 3)],
}
_SUMS_9: _Table = {
    "bf16": [
        _Shape(128, 0, 128, 128, 64, 8, 3),
        _Shape(256, 0, 256, 128, 32, 8, 3),
        _Shape(512, 0, 512, 64, 32, 8, 2),
        _Shape(ALL, 64, 512, 64, 64, 8, 2),
    ],
    "tf32": [
        _Shape(64, 0, 64, 128, 64, 8, 3),
        _Shape(128, 0, 128, 128, 32, 8, 3),
        _Shape(256, 0, 256, 64, 32, 8, 2),
        _Shape(ALL, 64, 256, 64, 64, 8, 2),
    ],
    "tf32x3": [_Shape(ALL, 32, 128, 128, 32, 8, 2)],
    "ieee": [_Shape(128, 16, 128, 64, 64, 8, 3), _Shape(ALL, 16, 256, 64, 32, 8, 2)],
}

# Everything else from 8.0 on: within the 99 KiB of consumer GPUs.
_LSE_8: _Table = {
    "bf16": [_Shape(128, 0, 128, 128, 64, 8, 2), _Shape(ALL, 64, 64, 128, 64, 8, 3)],
    "tf32": [_Shape(64, 0, 64, 128, 64, 8, 2), _Shape(ALL, 32, 32, 128, 64, 8, 3)],
    "tf32x3": [_Shape(ALL, 16, 16, 128, 64, 8, 3)],
    "ieee": [_Shape(ALL, 16, 16, 128, 64, 8, 2)],
}
_SUMS_8: _Table = {
    "bf16": [_Shape(128, 0, 128, 64, 32, 4, 2), _Shape(ALL, 64, 128, 64, 32, 4, 2)],
    "tf32": [_Shape(64, 0, 64, 64, 32, 4, 2), _Shape(ALL, 32, 128, 64, 64, 8, 2)],
    "tf32x3": [_Shape(ALL, 32, 64, 64, 32, 4, 2)],
    "ieee": [_Shape(128, 16, 128, 64, 64, 8, 3), _Shape(ALL, 16, 256, 64, 32, 8, 2)],
}
_TABLES = {
    ("row_logsumexp", True): _LSE_9,
    ("weighted_sums", True): _SUMS_9,
    ("row_logsumexp", False): _LSE_8,
    ("weighted_sums", False): _SUMS_8,
}


def plan(kernel: str, features: int, precision: str, hopper: bool) -> Plan:
    """Return the layout of ``kernel`` (the function's name) for matrices with so many features."""
    shapes = _TABLES[kernel, hopper][precision]
    shape = next(shape for shape in shapes if features <= shape.limit)
    power = max(1 << max(features - 1, 0).bit_length(), _MIN_WIDTH)
    width = power if power <= shape.out else -(-features // shape.out) * shape.out
    chunk, out = min(shape.chunk or width, width), min(shape.out, width)
    return Plan(width, chunk, out, shape.rows, shape.keys, shape.warps, shape.stages)


class Processor(NamedTuple):
    """What the layout depends on."""

    multiprocessors: int
    hopper: bool


@cache
def processor(device: torch.device) -> Processor:
    """Return what is known about ``device``; the interpreter, on a CPU, follows the larger plans."""
    if device.type == "cpu":
        return Processor(1, True)
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return Processor(count, torch.cuda.get_device_capability(device)[0] == 9)


def share(blocks: int, keys: int, layout: Plan, programs: int) -> int:
    """Return how many keys one program walks when ``blocks`` programs walk them all, and ``programs`` may run.

    Few rows against many keys (a memory bank) would leave most of a GPU idle, and blocks that are not a multiple of the
    multiprocessors the last of them. Every share costs one more set of partial sums: two tiles of keys at least.
    """
    tiles = -(-keys // layout.keys)
    shares = max(min(programs // blocks, tiles // 2), 1)
    return -(-tiles // shares) * layout.keys
