"""The one formula behind the three classification losses, computed from ``log p``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .._checks import check_floating, check_option, check_range, check_shape, check_tensor
from .._precision import no_autocast, widen
from ..masking import zero_missing

Reduction = Literal["mean", "sum", "none"]
Convention = Literal["uniform", "off_target"]
FocalFactor = Literal["per_class", "target"]

_LABEL_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def cross_entropy(
    where: str,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    validate: bool,
    *,
    gamma: float = 0.0,
    smoothing: float = 0.0,
    convention: Convention = "uniform",
    focal_factor: FocalFactor = "per_class",
) -> Tensor:
    """Return ``sum_k w_k q_k (1 - p_k)^gamma (-log p_k)`` of every valid item, reduced."""
    check_options(where, gamma, smoothing, convention, focal_factor, reduction)
    _check_inputs(where, logits, target, weight)
    valid = target != ignore_index
    if validate:
        _check_labels(where, target, valid, logits.shape[1], ignore_index)
    labels = torch.where(valid, target, 0).long()
    with no_autocast(logits):
        log_p = widen(zero_missing(logits.movedim(1, -1), valid)).log_softmax(-1)
        weight = None if weight is None else weight.to(log_p.dtype)
        on_target, on_each = _smoothed_target(smoothing, convention, logits.shape[1])
        item_weight = valid.to(log_p.dtype) if weight is None else torch.where(valid, weight[labels], 0.0)
        picked = log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        inner, outer = (gamma, 0.0) if focal_factor == "per_class" else (0.0, gamma)
        loss = on_target * item_weight * _focal(-picked, picked, inner)
        if on_each:
            terms = _focal(-log_p, log_p, inner)
            loss = loss + on_each * (terms if weight is None else terms * weight).sum(-1)
        loss = torch.where(valid, _focal(loss, picked, outer), 0.0)
        return _reduce(loss, item_weight, reduction)


def _focal(loss: Tensor, log_p: Tensor, gamma: float) -> Tensor:
    """Multiply by ``(1 - p)^gamma``."""
    if gamma == 0.0:
        return loss
    # At p = 1 the derivative of x^gamma is infinite for gamma < 1; the floor stops it before it meets -log p = 0.
    rest = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
    return loss * rest.pow(gamma)


def _smoothed_target(smoothing: float, convention: Convention, classes: int) -> tuple[float, float]:
    """Return the target mass as (extra mass on the label, mass on every class)."""
    if smoothing == 0.0 or classes == 1:
        return 1.0, 0.0
    each = smoothing / (classes if convention == "uniform" else classes - 1)
    return 1.0 - smoothing - (0.0 if convention == "uniform" else each), each


def _reduce(loss: Tensor, item_weight: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    total = item_weight.sum()
    return loss.sum() / torch.where(total > 0, total, 1.0)


def check_options(
    where: str, gamma: float, smoothing: float, convention: str, focal_factor: str, reduction: str
) -> None:
    """Raise unless every option is allowed."""
    check_range(where, "gamma", gamma, 0.0)
    check_range(where, "smoothing", smoothing, 0.0, 1.0)
    check_option(where, "convention", convention, ("uniform", "off_target"))
    check_option(where, "focal_factor", focal_factor, ("per_class", "target"))
    check_option(where, "reduction", reduction, ("mean", "sum", "none"))


def class_weights(where: str, weight: Sequence[float] | Tensor | None) -> Tensor | None:
    """Return class weights as a floating vector of its own, checked."""
    if weight is None:
        return None
    values = weight.tolist() if isinstance(weight, Tensor) else list(weight)
    for index, value in enumerate(values):
        check_range(where, f"weight[{index}]", value, 0.0)
    if not isinstance(weight, Tensor):
        return torch.tensor(values, dtype=torch.get_default_dtype())
    check_floating(where, "weight", weight)
    return weight.detach().clone()


def _check_inputs(where: str, logits: Tensor, target: Tensor, weight: Tensor | None) -> None:
    check_floating(where, "logits", logits)
    if logits.dim() < 2 or logits.shape[1] < 1:
        raise ValueError(f"{where}: expected logits of shape (B, C, ...) with C >= 1, got {tuple(logits.shape)}")
    check_tensor(where, "target", target)
    if target.dtype not in _LABEL_DTYPES:
        raise TypeError(f"{where}: expected target to be an integer tensor of class labels, got {target.dtype}")
    extra = {f"d{index}": size for index, size in enumerate(logits.shape[2:], 1)}
    check_shape(where, "target", target, B=logits.shape[0], **extra)
    if weight is not None:
        check_floating(where, "weight", weight)
        check_shape(where, "weight", weight, C=logits.shape[1])


def _check_labels(where: str, target: Tensor, valid: Tensor, classes: int, ignore_index: int) -> None:
    wrong = target[valid & ((target < 0) | (target >= classes))]
    if wrong.numel():
        raise ValueError(
            f"{where}: expected target in [0, {classes - 1}] or ignore_index {ignore_index}, got {int(wrong[0])}"
        )
