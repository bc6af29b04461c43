"""What a modality looked like in training, and how far an input is from that."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from .._checks import as_mask, check_floating, check_range, check_shape, check_size
from .._precision import no_autocast, widen
from ..masking import masked_mean, zero_missing

_FLOOR = 1e-3  # of a variance of 1: what is closer to the training data than this is no better for it
_FAR = 1e9  # standard deviations; squares of this, added up over a million features, fit into float32
_FIT_ROWS = 2048
NUM_STATISTICS = 4


class Fitting(TypedDict):
    """Arguments of :func:`fit_reference`."""

    max_components: int
    explained: float
    num_rows: int


class Reference(NamedTuple):
    """What a modality looked like: tensors that :func:`fit_reference` measures.

    ``mean (D,)`` and ``scale (D,)`` of the features; ``components (K, D)`` orthonormal directions of the standardised
    features and their ``variances (K,)``; ``rest ()`` the variance outside of them; ``rows (R, D)`` standardised
    examples. Unused components are zero with variance 1.
    """

    mean: Tensor
    scale: Tensor
    components: Tensor
    variances: Tensor
    rest: Tensor
    rows: Tensor


def fit_reference(x: Tensor, *, max_components: int = 64, explained: float = 0.9, num_rows: int = 256) -> Reference:
    r"""Measure what a modality looks like: moments, principal components and examples.

    The components are the fewest that explain a share of the variance, never more than ``max_components``, N / 8 (a
    subspace fitted to too few rows fits those rows better than new ones) or D - 1. At most 2048 rows, evenly spaced,
    are decomposed.

    Args:
        x: Floating features ``(N, D)`` of rows that have the modality, N >= 1.
        max_components: Largest number of components K.
        explained: Share of the variance in (0, 1) that the components explain.
        num_rows: Number of examples R.

    Returns:
        A :class:`Reference` in float32 (float64 for float64), of sizes that depend on D and the arguments alone.

    Raises:
        TypeError: If ``x`` is not floating or a size no integer.
        ValueError: If ``x`` has no row or no feature, or an argument is out of range.

    Example:
        >>> reference = fit_reference(torch.randn(100, 6), max_components=4, num_rows=10)
        >>> reference.components.shape, reference.rows.shape
        (torch.Size([4, 6]), torch.Size([10, 6]))
    """
    where = "fit_reference"
    check_floating(where, "x", x)
    check_shape(where, "x", x, N=None, D=None)
    check_size(where, "max_components", max_components)
    check_size(where, "num_rows", num_rows)
    check_range(where, "explained", explained, 0.0, 1.0, low_open=True, high_open=True)
    if 0 in x.shape:
        raise ValueError(f"{where}: expected x of shape (N, D) with at least one row and feature, got {tuple(x.shape)}")
    with no_autocast(x), torch.no_grad():
        x = widen(x)
        mean, scale = x.mean(0), x.std(0, correction=0)
        scale = torch.where(scale > 0, scale, 1.0)
        z = (x - mean) / scale
        variances, components = _principal(z[:: -(-len(z) // _FIT_ROWS)])
        total, size = variances.sum(), min(max_components, max(1, z.shape[1] - 1))
        before = (variances.cumsum(0) - variances) / total.clamp(min=_FLOOR)
        most = max(1, min(size, len(z) // 8))
        used = (before < explained) & (variances > _FLOOR) & (torch.arange(len(variances), device=z.device) < most)
        variances, used = _padded(variances, size), _padded(used, size)
        return Reference(
            mean,
            scale,
            zero_missing(_padded(components, size), used),
            torch.where(used, variances, 1.0),
            (total - zero_missing(variances, used).sum()).clamp(min=_FLOOR),
            z[torch.arange(num_rows, device=z.device) * len(z) // num_rows],
        )


def _principal(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variances of centred data, falling, and their directions, through the smaller of the two products."""
    rows, features = z.shape
    z = z - z.mean(0)
    variances, vectors = torch.linalg.eigh(z.mT @ z / rows if features <= rows else z @ z.mT / rows)
    variances, vectors = variances.flip(0).clamp(min=0.0), vectors.flip(1)
    components = vectors.mT if features <= rows else vectors.mT @ z
    return variances, F.normalize(components, dim=1)


def _padded(x: Tensor, size: int) -> Tensor:
    """Cut or fill up with zeros along the first dimension."""
    extra = x.new_zeros((max(0, size - len(x)), *x.shape[1:]))
    return torch.cat([x[:size], extra])


def novelty_statistics(x: Tensor, reference: Reference, mask: Tensor | None = None) -> Tensor:
    r"""Measure how unlike the training data each row is, in four ways.

    With :math:`z = (x - m) / s`, components U, their variances :math:`\lambda` and :math:`c = U z`, the logarithms of
    the residual :math:`\|z - U^T c\|^2` over its mean, the Mahalanobis distance :math:`\tfrac1K \sum_k c_k^2 /
    \lambda_k`, the energy :math:`\|z\|^2 / D`, and the squared distance to the nearest example over D. All are near 0
    for what is like the training data, and none passes a gradient on to ``x``.

    Args:
        x: Floating features ``(B, D)`` or ``(B, T, D)``.
        reference: What the modality looks like, see :func:`fit_reference`.
        mask: Bool or integer 0/1 mask ``(B,)`` or ``(B, T)``, True = present. Steps are averaged before the
            logarithm; rows without any are 0.

    Returns:
        ``(B, 4)``, float32 (float64 for float64).

    Raises:
        TypeError: If ``x`` is not floating or the mask neither bool nor integer.
        ValueError: If a shape does not fit.

    Example:
        >>> x = torch.randn(200, 6)
        >>> far = novelty_statistics(10 * x, fit_reference(x)) - novelty_statistics(x, fit_reference(x))
        >>> bool((far.mean(0) > 1).all())
        True
    """
    where = "novelty_statistics"
    check_floating(where, "x", x)
    steps = x.dim() == 3
    features = reference.mean.shape[0]
    check_shape(where, "x", x, **({"B": None, "T": None} if steps else {"B": None}), D=features)
    sizes = {"B": x.shape[0], "T": x.shape[1]} if steps else {"B": x.shape[0]}
    keep = as_mask(where, "mask", mask, **sizes)
    with no_autocast(x):
        parts = _distances(widen(zero_missing(x.detach(), keep)), reference)
        if steps:
            parts = masked_mean(parts, keep)
            keep = None if keep is None else keep.any(1)
        return zero_missing((parts + _FLOOR).log(), keep)


def _distances(x: Tensor, reference: Reference) -> Tensor:
    z = ((x - reference.mean) / reference.scale).clamp(-_FAR, _FAR)
    inside = z @ reference.components.mT
    features, used = z.shape[-1], (reference.components != 0).any(1).sum().clamp(min=1)
    energy = z.square().sum(-1)
    residual = (z - inside @ reference.components).square().sum(-1) / reference.rest
    spread = (inside.square() / reference.variances).sum(-1) / used
    # |z - r|^2 written out: cdist has no derivative to lose here, but keeps no batch of steps together.
    products = z @ reference.rows.mT
    nearest = (energy.unsqueeze(-1) - 2 * products + reference.rows.square().sum(-1)).amin(-1).clamp(min=0.0)
    return torch.stack([residual, spread, energy / features, nearest / features], dim=-1)
