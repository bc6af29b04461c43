"""Random draws that take an optional generator.

``generator=None`` is left out of the call altogether: passing it on breaks tracing with dynamic shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .masking import zero_missing


def uniform(size: Sequence[int], generator: torch.Generator | None, device: torch.device | str | None = None) -> Tensor:
    """Draw float32 numbers from [0, 1)."""
    if generator is None:
        return torch.rand(size, device=device)
    return torch.rand(size, generator=generator, device=device)


def normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal numbers of the shape, dtype and device of ``x``."""
    if generator is None:
        return torch.randn_like(x)
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def masked_dropout(x: Tensor, present: Tensor | None, dropout: nn.Module) -> Tensor:
    """Apply ``dropout`` to ``x (B, ...)``, rows absent by ``present (B,)`` being unread and zero.

    On a CPU the sampler behind ``nn.Dropout`` draws number by number, which for wide inputs costs as much as a layer;
    there 16 random bits decide about each entry, so that the probability is a multiple of 2**-16. The stream of random
    numbers then differs from the compiled one, the distribution does not.
    """
    x = zero_missing(x, present)
    if not (isinstance(dropout, nn.Dropout) and _is_slow(x, dropout)):
        dropped: Tensor = dropout(x)
        return dropped
    lost = min(round(dropout.p * 2**16), 2**16 - 1)
    bits = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),), dtype=torch.int64, device=x.device)
    keep = bits.view(torch.int16)[: x.numel()].view(x.shape) >= lost - 2**15
    # Multiplied, not selected: NaN in a row that is present must be seen, whether its entry is dropped or not.
    return x * keep * (2**16 / (2**16 - lost))


def _is_slow(x: Tensor, dropout: nn.Dropout) -> bool:
    """Tell whether this is nothing but a plain dropout on a CPU, in training."""
    if type(dropout) is not nn.Dropout or not dropout.training or dropout.p == 0.0 or x.device.type != "cpu":
        return False
    hooked = dropout._forward_hooks or dropout._forward_pre_hooks or dropout._backward_hooks
    traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() or torch._C._functorch.maybe_current_level()
    return not hooked and not traced
