"""Every layout that the host code can choose compiles ahead of time, without a GPU, and fits into one.

The host functions run as they are, on CPU tensors; only the launch is replaced, by a compilation for the GPU asked for.
So what is compiled is what would be launched, with Triton's own specialisation of the arguments.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from mmrobust._kernels import contrastive, is_interpreted, plans

pytestmark = [
    pytest.mark.skipif(is_interpreted(), reason="TRITON_INTERPRET=1 leaves nothing to compile"),
    pytest.mark.skipif(not triton.__version__.startswith("3.6."), reason="registers are those of Triton 3.6"),
]

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
HOPPER = 90
SHARED = {80: 166912, 90: 232448, 120: 101376}  # bytes that one program may have; 8.6 and 8.9 have those of 12.0
TENSOR_CORES = {"ieee": set(), "tf32x3": {"tf32"}, "tf32": {"tf32"}, "bf16": {"bf16"}}
# Two programs on one multiprocessor hide each other's exponentials: what plans.py says of these.
TWO_PROGRAMS = {("row_logsumexp", "bf16", features) for features in (16, 64, 128)}

ROWS, KEYS = 41, 127
SIDES = {"b": torch.zeros(KEYS), "lse_b": torch.zeros(KEYS)}
VALID = {"query_valid": torch.ones(ROWS, dtype=torch.bool), "key_valid": torch.ones(KEYS, dtype=torch.bool)}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "row_logsumexp": {"all": {"key_valid": VALID["key_valid"], "skip": 3}, "none": {}},
    "weighted_sums": {"all": SIDES | VALID | {"skip": 3}, "none": {}, "skip": SIDES | {"skip": 0}},
}


def layouts(sizes: tuple[int, ...], hopper: bool) -> Iterator[tuple[str, str, int]]:
    """Yield (function, precision, features), leaving out what only walks more of the same tiles."""
    for function in OPTIONS:
        for precision in TENSOR_CORES:
            seen = set()
            for features in sizes:
                layout = plans.plan(function, features, precision, hopper)
                walks = layout.width > layout.chunk, layout.width > layout.out and function == "weighted_sums"
                if (layout[1:], walks) not in seen:
                    seen.add((layout[1:], walks))
                    yield function, precision, features


class Device:
    """What Triton asks a driver for before it launches."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_device(self) -> int:
        return self._capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)


Compile = Callable[[int, str, str, int, str], Any]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compile:
    """Return a function that calls a host function and returns the kernel it would launch."""
    kernels: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, **options: Any) -> None:
        kernels.append(run(self, *args, **{**options, "warmup": True}))

    def call(capability: int, function: str, precision: str, features: int, options: str) -> Any:
        monkeypatch.setattr(triton.runtime.driver, "_active", Device(capability))
        monkeypatch.setattr(contrastive, "processor", lambda _: plans.Processor(132, capability == HOPPER))
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        u, v = torch.zeros(ROWS, features, dtype=dtype), torch.zeros(KEYS, features, dtype=dtype)
        extra = {} if function == "row_logsumexp" else {"a": torch.zeros(ROWS), "lse_a": torch.zeros(ROWS)}
        extra |= OPTIONS[function][options] | {"precision": None if precision == "bf16" else precision}
        getattr(contrastive, function)(u, v, torch.ones(()), **extra)
        return kernels.pop()

    monkeypatch.setattr(JITFunction, "run", compile_only)
    return call


def inspect(kernel: Any, folder: Path) -> tuple[int, int, set[str]]:
    """Return registers per thread, spilled bytes, and what its tensor cores multiply."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    usage = subprocess.run([CUOBJDUMP, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    return registers, stack, set(re.findall(r"mma\S*\.f32\.(\w+)\.\w+", kernel.asm["ptx"]))


CASES = [
    *((HOPPER, *layout, "all none skip") for layout in layouts((16, 64, 128, 256, 512, 1024), True)),
    *((80, *layout, "all") for layout in layouts((64, 128, 512), False)),
    *((120, *layout, "all none") for layout in layouts((64, 128, 512), False)),
]


@pytest.mark.parametrize(("capability", "function", "precision", "features", "variants"), CASES)
def test_fits(
    capability: int,
    function: str,
    precision: str,
    features: int,
    variants: str,
    compiled: Compile,
    record_property: Callable[[str, object], None],
    tmp_path: Path,
) -> None:
    layout = plans.plan(function, features, precision, capability == HOPPER)
    case = f"sm_{capability:<3} {function} {precision:<6} {features:>4} features"
    tile = f"{layout.rows:>3} x {layout.keys:<3} chunk {layout.chunk:>3} out {layout.out:>3}"
    variants = [name for name in variants.split() if name in OPTIONS[function]]
    kernels = {name: compiled(capability, function, precision, features, name) for name in variants}
    found = {name: inspect(kernel, tmp_path) for name, kernel in kernels.items()}
    shared = max(kernel.metadata.shared for kernel in kernels.values())
    registers, spilled = ({name: used[index] for name, used in found.items()} for index in (0, 1))
    record_property(
        "resources",
        f"{case} {tile} {layout.warps} warps {layout.stages} stages {shared:>6} bytes shared, "
        f"registers {' '.join(map(str, registers.values()))}, spilled {' '.join(map(str, spilled.values()))}",
    )
    assert set(spilled.values()) == {0}, f"{case}: {spilled}"
    assert shared <= SHARED[capability]
    assert all(used[2] == TENSOR_CORES[precision] for used in found.values())
    if capability == HOPPER and (function, precision, features) in TWO_PROGRAMS:
        assert max(registers.values()) <= 128 and 2 * shared <= SHARED[HOPPER]
