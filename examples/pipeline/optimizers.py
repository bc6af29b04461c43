"""Optimizers that update all tensors in one kernel, in any precision."""

from __future__ import annotations

from typing import Any

import torch


def fused(kind: type[torch.optim.Optimizer], parameters: Any, **options: Any) -> torch.optim.Optimizer:
    """Build an optimizer with ``fused=True`` whose gradients Lightning clips in mixed precision too.

    Lightning refuses to, because a fused optimizer can take gradients that are still scaled. Told that this one does
    not, the gradient scaler of float16 unscales them before they are clipped; bfloat16 has no scaler.
    """
    optimizer = kind(parameters, fused=True, **options)
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer
