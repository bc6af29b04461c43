"""A first derivative that says so when somebody asks for the second, instead of being taken for a constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TWICE = "contrastive losses cannot be differentiated twice"


def once(result: Tensor, *sources: Tensor | None) -> Tensor:
    """Return a gradient, as a function of ``sources`` that raises RuntimeError when it is differentiated."""
    if not torch.is_grad_enabled():
        return result
    refused: Tensor = _Refuse.apply(result.detach(), *sources)  # type: ignore[no-untyped-call]
    return refused


def refuse(ctx: Any, *grads: Tensor | None) -> None:
    """Raise, as the derivative of an operator that is a derivative."""
    raise RuntimeError(TWICE)


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, result: Tensor, *sources: Tensor | None) -> Tensor:
        return result.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        refuse(ctx, grad)
