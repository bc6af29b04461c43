"""The few lines that keep the first promise: what is absent is never read.

Masks are bool and True means present, as in ``scaled_dot_product_attention`` and the opposite of the
``key_padding_mask`` of ``nn.MultiheadAttention``. ``None`` means that everything is present.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import as_mask, check_floating, check_shape, check_size, check_tensor
from ._precision import no_autocast, widen


def zero_missing(x: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Replace what is absent by exact zeros, whatever stood there (NaN and Inf included).

    :math:`y = x` where the mask is True and 0 elsewhere. Gradients of absent entries are exactly zero. Multiplying
    by the mask would not do: ``0 * nan`` is NaN.

    Args:
        x: Tensor of shape ``(B, ...)``, any dtype.
        mask: Bool or integer 0/1 tensor whose shape is a prefix of the shape of ``x``; True = present.
            ``None`` = everything is present.

    Returns:
        A tensor of the shape and dtype of ``x``.

    Raises:
        TypeError: If the mask is neither bool nor integer.
        ValueError: If the shape of the mask is no prefix of the shape of ``x``.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [float("nan"), 3.0]])
        >>> zero_missing(x, torch.tensor([True, False]))
        tensor([[1., 2.],
                [0., 0.]])
    """
    check_tensor("zero_missing", "x", x)
    if mask is None:
        return x
    check_tensor("zero_missing", "mask", mask)
    if mask.dim() > x.dim() or mask.shape != x.shape[: mask.dim()]:
        raise ValueError(
            f"zero_missing: expected mask to have a shape that begins the shape of x {tuple(x.shape)}, "
            f"got {tuple(mask.shape)}"
        )
    keep = mask
    if mask.dtype != torch.bool:
        keep = _as_mask("zero_missing", mask)
    return torch.where(
        keep.reshape(keep.shape + (1,) * (x.dim() - keep.dim())), x, False if x.dtype == torch.bool else 0
    )


def masked_softmax(logits: Tensor, mask: Tensor | None = None, dim: int = -1) -> Tensor:
    r"""Apply a softmax over the present entries; rows without any are zero, not NaN.

    :math:`y_i = m_i e^{x_i} / \sum_j m_j e^{x_j}`, computed in float32 (float64 for float64) with the maximum of the
    present entries subtracted. Absent entries have weight exactly 0 and are never read.

    Args:
        logits: Floating tensor of any shape.
        mask: Bool or integer 0/1 tensor that broadcasts to the shape of ``logits``; True = present.
        dim: The dimension that sums to one.

    Returns:
        Weights of the shape and dtype of ``logits``: they sum to 1 along ``dim``, or to 0 where nothing is present.

    Raises:
        TypeError: If ``logits`` is not floating or the mask is neither bool nor integer.
        ValueError: If the mask does not broadcast to the shape of ``logits``.

    Example:
        >>> masked_softmax(torch.zeros(2, 3), torch.tensor([[True, True, False], [False, False, False]]))
        tensor([[0.5000, 0.5000, 0.0000],
                [0.0000, 0.0000, 0.0000]])
    """
    check_floating("masked_softmax", "logits", logits)
    with no_autocast(logits):
        if mask is None:
            return torch.softmax(widen(logits), dim).to(logits.dtype)
        keep = _broadcast_mask("masked_softmax", mask, logits)
        x = widen(logits)
        # An all-absent row has no maximum: zeros there keep the softmax, and so its gradient, finite.
        x = torch.where(keep, x, torch.where(keep.any(dim, keepdim=True), -torch.inf, 0.0).to(x.dtype))
        weights = torch.where(keep, torch.softmax(x, dim), 0.0)
    return weights.to(logits.dtype)


def masked_mean(x: Tensor, mask: Tensor | None = None, dim: int = 1) -> Tensor:
    r"""Average over the present entries of one dimension; the mean of nothing is zero.

    :math:`y = \sum_t m_t x_t / \max(1, \sum_t m_t)`, accumulated in float32 (float64 for float64).

    Args:
        x: Floating tensor such as ``(B, T, H)``.
        mask: Bool or integer 0/1 tensor whose shape is a prefix of the shape of ``x`` and reaches ``dim``, such as
            ``(B, T)``; True = present.
        dim: The dimension to average over.

    Returns:
        A tensor of the dtype of ``x`` without dimension ``dim``.

    Raises:
        TypeError: If ``x`` is not floating or the mask is neither bool nor integer.
        ValueError: If the mask does not fit, or does not reach ``dim``.

    Example:
        >>> x = torch.tensor([[[1.0], [3.0], [float("inf")]]])
        >>> masked_mean(x, torch.tensor([[True, True, False]]))
        tensor([[2.]])
    """
    check_floating("masked_mean", "x", x)
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"masked_mean: expected dim in [{-x.dim()}, {x.dim() - 1}], got {dim}")
    dim = dim % x.dim()
    if mask is None:
        mask = torch.ones(x.shape[: dim + 1], dtype=torch.bool, device=x.device)
    elif mask.dim() <= dim:
        raise ValueError(f"masked_mean: expected mask to reach dimension {dim} of x, got {mask.dim()} dimensions")
    mask = _as_mask("masked_mean", mask, x.shape[: mask.dim()])
    total = widen(zero_missing(x, mask)).sum(dim)
    count = mask.sum(dim).clamp(min=1)
    return (total / count.reshape(count.shape + (1,) * (total.dim() - count.dim()))).to(x.dtype)


def lengths_to_mask(lengths: Tensor, max_length: int) -> Tensor:
    """Turn lengths into a mask whose first ``lengths[b]`` steps are True.

    Args:
        lengths: Integer tensor ``(B,)``.
        max_length: Number of steps T.

    Returns:
        Bool tensor ``(B, T)``, True = real step.

    Raises:
        TypeError: If ``lengths`` is not an integer tensor.
        ValueError: If ``lengths`` is not one-dimensional or ``max_length`` is negative.

    Example:
        >>> lengths_to_mask(torch.tensor([2, 0]), 3)
        tensor([[ True,  True, False],
                [False, False, False]])
    """
    check_tensor("lengths_to_mask", "lengths", lengths)
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths_to_mask: expected lengths to be an integer tensor, got {lengths.dtype}")
    check_shape("lengths_to_mask", "lengths", lengths, B=None)
    check_size("lengths_to_mask", "max_length", max_length, 0)
    return torch.arange(max_length, device=lengths.device) < lengths.unsqueeze(1)


def _as_mask(where: str, mask: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    check_tensor(where, "mask", mask)
    shape = mask.shape if shape is None else shape
    keep = as_mask(where, "mask", mask, **{f"d{index}": size for index, size in enumerate(shape)})
    assert keep is not None
    return keep


def _broadcast_mask(where: str, mask: Tensor, x: Tensor) -> Tensor:
    try:
        return _as_mask(where, mask).expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"{where}: expected mask to broadcast to the shape of logits {tuple(x.shape)}, got {tuple(mask.shape)}"
        ) from None
