"""Tokens times the gate of what windows found, some texts at a time.

Written out, the gate makes a dozen passes over memory, which take longer than grouped convolutions do. Here texts stay
in the cache for all of them, forward and backward; nothing but the inputs is kept in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._precision import widen

_ELEMENTS = {"cpu": 1 << 17, "other": 1 << 26}  # numbers of a gate that are computed at a time


def weighted_windows(active: Sequence[Tensor], scale: Tensor, bias: Tensor) -> Tensor:
    """Return ``b + sum_w s_w a_w (B, H, T)`` for ``a_w (B, H, T)``, ``scale (W, H)`` and ``bias (H,)``."""
    logits = bias.unsqueeze(1)
    for one, factor in zip(active, scale, strict=True):
        logits = logits + factor.unsqueeze(1) * one
    return logits


def gated_tokens(x: Tensor, found: Sequence[Tensor], scale: Tensor, bias: Tensor) -> Tensor:
    """Return ``x * 2 sigmoid(b + sum_w s_w GELU(found_w))`` for tokens ``x (B, T, H)`` and ``found_w (B, H, T)``."""
    # A compiler keeps passes together by itself, and the transforms of torch.func want plain operations. What is left
    # out: forward-mode derivatives, and batched gradients by `is_grads_batched`.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return _plain(x, scale, bias, *found)
    tokens: Tensor = _Gated.apply(x, scale, bias, *found)  # type: ignore[no-untyped-call]
    return tokens


def _plain(x: Tensor, scale: Tensor, bias: Tensor, *found: Tensor) -> Tensor:
    active = [F.gelu(widen(one)) for one in found]
    gate = 2 * torch.sigmoid(weighted_windows(active, widen(scale), widen(bias)))
    return x * gate.mT.to(x.dtype)


def _texts(x: Tensor) -> list[slice]:
    each = x.shape[1:].numel()
    step = max(1, _ELEMENTS["cpu" if x.device.type == "cpu" else "other"] // max(each, 1))
    return [slice(start, start + step) for start in range(0, x.shape[0], step)]


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bias: Tensor, *found: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale, bias, *found)
        tokens, wide, start = torch.empty_like(x), widen(scale), widen(bias)
        for rows in _texts(x):
            active = [F.gelu(widen(one[rows])) for one in found]
            gate = weighted_windows(active, wide, start).sigmoid_().mul_(2)
            torch.mul(x[rows], gate.mT.to(x.dtype), out=tokens[rows])
        return tokens

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        # Somebody wants a second derivative, or the backward pass for many directions at once.
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            with torch.enable_grad():
                own = [x.view_as(x) for x in inputs]  # or what was found would lead back to x as well
                wanted = [x for x, needs in zip(own, ctx.needs_input_grad, strict=True) if needs]
                made = iter(torch.autograd.grad(_plain(*own), wanted, grad, create_graph=True))
            return tuple(next(made) if needs else None for needs in ctx.needs_input_grad)
        x, scale, bias, *found = inputs
        dx, pulled = torch.empty_like(x), [torch.empty_like(one) for one in found]
        wide, start = widen(scale), widen(bias)
        dscale, dbias = torch.zeros_like(wide), torch.zeros_like(start)
        for rows in _texts(x):
            parts = [widen(one[rows]) for one in found]
            active = [F.gelu(part) for part in parts]
            half = weighted_windows(active, wide, start).sigmoid_()
            torch.mul(grad[rows], half.mT.to(x.dtype), out=dx[rows]).mul_(2)
            outer = widen(grad[rows] * x[rows]).mT.contiguous()
            slope = torch.ops.aten.sigmoid_backward(outer, half).mul_(2)
            dbias += slope.sum((0, 2))
            for i, one in enumerate(active):
                dscale[i] += one.mul_(slope).sum((0, 2))
                inner = torch.ops.aten.gelu_backward(slope * wide[i].unsqueeze(1), parts[i])
                pulled[i][rows] = inner
        return dx, dscale.to(scale.dtype), dbias.to(bias.dtype), *pulled
