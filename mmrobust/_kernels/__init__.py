"""Kernels in Triton, never needed: each one has a definition in torch, and is imported where it is used.

Nothing here imports Triton before a kernel is launched. :func:`available` says beforehand whether one can be.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Major compute capabilities for which the kernels are compiled and inspected. Not 10: there Triton 3.6 multiplies some
# float32 as TF32 although it is told not to.
_CAPABILITIES = (8, 9, 12)


def available(x: Tensor) -> str | None:
    """Return None when the kernels can run on tensors such as ``x``, else the reason why not, for an error message.

    They run on NVIDIA GPUs of compute capability 8, 9 and 12, and on CPU tensors in Triton's interpreter, which the
    environment variable ``TRITON_INTERPRET=1`` turns on for a whole process (for tests: it is far slower than torch).
    """
    if not _is_installed():
        return "Triton is not installed (pip install 'mmrobust[triton]')"
    if x.dtype not in _DTYPES:
        return f"there is no Triton kernel for {x.dtype}"
    if x.device.type == "cpu":
        return None if is_interpreted() else "Triton kernels need a CUDA tensor, got one on the CPU"
    if x.device.type != "cuda" or torch.version.hip is not None:
        return f"Triton kernels need an NVIDIA GPU, got a tensor on {x.device}"
    major, minor = torch.cuda.get_device_capability(x.device)
    if major not in _CAPABILITIES:
        known = ", ".join(f"{each}.x" for each in _CAPABILITIES)
        return f"Triton kernels are made for compute capabilities {known}, {x.device} has {major}.{minor}"
    return None


def is_interpreted() -> bool:
    """Return whether Triton runs in its interpreter; it decides so when the kernels are imported."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on", "yes", "y"}


@cache
def _is_installed() -> bool:
    return find_spec("triton") is not None
