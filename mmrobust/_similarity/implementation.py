"""Which implementation of the core runs: the torch definition, or the Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def resolve(where: str, impl: str, x: Tensor) -> str:
    """Return "torch" or "triton:PRECISION" for features ``x``; "triton" raises RuntimeError where it cannot run.

    "auto" is the torch definition until the kernels have been measured on a device.
    """
    if impl != "triton":
        return "torch"
    from .._kernels import contrastive

    reason = contrastive.available(x)
    if reason is not None:
        raise RuntimeError(f"{where}: impl='triton' cannot run: {reason}")
    if x.dtype in (torch.float16, torch.bfloat16):
        return "triton:" + str(x.dtype).removeprefix("torch.")
    exact = torch.get_float32_matmul_precision() == "highest"
    return "triton:ieee" if exact else "triton:tf32"
