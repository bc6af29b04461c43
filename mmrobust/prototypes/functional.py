"""Distances to subspaces and what keeps their bases in shape, as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_floating, check_shape
from .._precision import no_autocast, widen


def subspace_residual(x: Tensor, basis: Tensor, *, precise: bool = False) -> Tensor:
    r"""Return what each basis leaves over of vectors: the squared distance to its span, if its rows are orthonormal.

    With coefficients :math:`c = U x` and the Gram matrix :math:`G = U U^\top`,

    .. math:: r = \|x - U^\top U x\|^2 = \|x\|^2 + c^\top (G - 2 I)\, c

    for any U; the distance to the span where the rows of U are orthonormal. No D x D projector and no residual vector
    is ever built: memory is B C K numbers.

    Args:
        x: Floating tensor ``(B, D)``.
        basis: Floating tensor ``(C, K, D)``: K rows for each of C classes.
        precise: Compute in float64. In float32 the error is up to 2e-6 :math:`\|x\|^2` for orthonormal rows (without
            TF32), whatever the residual: harmless for logits, but a residual far below :math:`\|x\|^2`, its root or
            its logarithm is then noise. Takes up to 2.5 times as long.

    Returns:
        Residuals ``(B, C)`` in float32 (float64 for float64), never negative; at most :math:`\|x\|^2` up to rounding
        for orthonormal rows.

    Raises:
        TypeError: If an argument is not floating.
        ValueError: If a shape does not fit.

    Example:
        >>> x = torch.tensor([[3.0, 4.0, 0.0]])
        >>> basis = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]])
        >>> subspace_residual(x, basis)
        tensor([[16., 25.]])
    """
    check_floating("subspace_residual", "x", x)
    check_shape("subspace_residual", "x", x, B=None, D=None)
    _check_basis("subspace_residual", basis, x.shape[1])
    with no_autocast(x):
        dtype = torch.promote_types(widen(x).dtype, widen(basis).dtype)
        inner = torch.float64 if precise else dtype
        x, u = x.to(inner), basis.to(inner)
        classes, size, width = u.shape
        coefficients = (x @ u.reshape(classes * size, width).mT).view(-1, classes, size).transpose(0, 1)
        form = u @ u.mT - 2 * torch.eye(size, dtype=inner, device=u.device)
        inside = (coefficients * (coefficients @ form)).sum(2).mT
        return (x.square().sum(1, keepdim=True) + inside).clamp(min=0).to(dtype)


def orthonormality_penalty(basis: Tensor) -> Tensor:
    r"""Return the mean over classes of :math:`\|U U^\top - I\|_F^2`: 0 where the rows of each basis are orthonormal.

    Rows are not normalised first: that would leave their length free, and with it the residual.

    Args:
        basis: Floating tensor ``(C, K, D)``.

    Returns:
        A scalar in float32 (float64 for float64).

    Raises:
        TypeError: If ``basis`` is not floating.
        ValueError: If its shape does not fit.

    Example:
        >>> orthonormality_penalty(torch.tensor([[[2.0, 0.0]]]))
        tensor(9.)
    """
    _check_basis("orthonormality_penalty", basis)
    with no_autocast(basis):
        u = widen(basis)
        gram = u @ u.mT - torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
        return gram.square().sum((1, 2)).mean()


def subspace_separation(basis: Tensor) -> Tensor:
    r"""Return how much the subspaces of different classes overlap.

    .. math:: \frac{1}{C (C - 1) K} \sum_{c \ne c'} \|U_c U_{c'}^\top\|_F^2

    the mean squared cosine of the angles between two subspaces: 0 where all are orthogonal to each other, 1 where they
    are the same. It does not depend on which orthonormal basis spans a subspace. Memory is the smaller of (C K)^2 and
    D^2.

    Args:
        basis: Floating tensor ``(C, K, D)``, orthonormal rows in each class.

    Returns:
        A scalar in float32 (float64 for float64); 0 for one class.

    Raises:
        TypeError: If ``basis`` is not floating.
        ValueError: If its shape does not fit.

    Example:
        >>> subspace_separation(torch.eye(2).view(2, 1, 2))
        tensor(0.)
    """
    _check_basis("subspace_separation", basis)
    classes, size, width = basis.shape
    with no_autocast(basis):
        u = widen(basis)
        flat = u.reshape(classes * size, width)
        gram = flat @ flat.mT if classes * size <= width else flat.mT @ flat
        total = gram.square().sum() - (u @ u.mT).square().sum()
        return total.clamp(min=0) / max(classes * (classes - 1) * size, 1)


def _check_basis(where: str, basis: Tensor, features: int | None = None) -> None:
    check_floating(where, "basis", basis)
    check_shape(where, "basis", basis, C=None, K=None, D=features)
