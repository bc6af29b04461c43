"""What all modules do around their gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import as_mask, check_floating, check_shape
from .._precision import no_autocast, widen
from ..masking import zero_missing


class CalibratedTokens(NamedTuple):
    """Tokens ``(B, T, H)`` and the ``gate (B, T, H)`` that made them; masked tokens are 0 in both."""

    tokens: Tensor
    gate: Tensor


def calibrate(
    where: str,
    x: Tensor,
    mask: Tensor | None,
    hidden_features: int,
    gate: Callable[[Tensor, Tensor | None], Tensor],
    return_gate: bool,
    fast: Callable[[Tensor], Tensor] | None = None,
) -> Tensor | CalibratedTokens:
    """Multiply tokens ``x (B, T, H)`` by what ``gate`` makes of them and of their mask, ``(B, T or 1, H)``.

    ``fast`` makes the product of masked tokens and their gate at once, where nobody asks for the gate.
    """
    check_floating(where, "x", x)
    check_shape(where, "x", x, B=None, T=None, H=hidden_features)
    keep = as_mask(where, "mask", mask, B=x.shape[0], T=x.shape[1])
    x = zero_missing(x, keep)
    if fast is not None and not return_gate:
        return fast(x)
    opened = gate(x, keep).to(x.dtype)
    tokens = x * opened
    return CalibratedTokens(tokens, zero_missing(opened.expand_as(x), keep)) if return_gate else tokens


def around_one(logits: Tensor) -> Tensor:
    """Return a gate in (0, 2) that is 1 at 0."""
    with no_autocast(logits):
        return 2 * torch.sigmoid(widen(logits))
