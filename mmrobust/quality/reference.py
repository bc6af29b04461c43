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
FIT_ROWS = 2048
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

    At most 2048 rows, evenly spaced, are decomposed. The components are the fewest that explain a share of the
    variance, never more than ``max_components``, D - 1 or an eighth of the decomposed rows (a subspace fitted to too
    few rows fits those rows better than new ones), but one at least. Features that never vary are only centred.

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
    check_fitting(where, {"max_components": max_components, "explained": explained, "num_rows": num_rows})
    if 0 in x.shape:
        raise ValueError(f"{where}: expected x of shape (N, D) with at least one row and feature, got {tuple(x.shape)}")
    with no_autocast(x), torch.no_grad():
        mean, scale = _moments(widen(x))
        z = (widen(x) - mean) / scale
        decomposed = z[:: -(-z.shape[0] // FIT_ROWS)]
        variances, components = _principal(decomposed)
        total, size = variances.sum(), min(max_components, max(1, z.shape[1] - 1))
        before = (variances.cumsum(0) - variances) / total.clamp(min=_FLOOR)
        most = max(1, min(size, decomposed.shape[0] // 8))
        used = (before < explained) & (variances > _FLOOR) & (torch.arange(variances.shape[0], device=z.device) < most)
        variances, used = _padded(variances, size), _padded(used, size)
        return Reference(
            mean,
            scale,
            zero_missing(_padded(components, size), used),
            torch.where(used, variances, 1.0),
            (total - zero_missing(variances, used).sum()).clamp(min=_FLOOR),
            z[example_rows(z.shape[0], num_rows, z.device)],
        )


def check_fitting(where: str, fitting: Fitting) -> None:
    """Raise unless the arguments of :func:`fit_reference` are in range."""
    check_size(where, "max_components", fitting["max_components"])
    check_size(where, "num_rows", fitting["num_rows"])
    check_range(where, "explained", fitting["explained"], 0.0, 1.0, low_open=True, high_open=True)


def example_rows(count: int, num_rows: int, device: torch.device) -> Tensor:
    """Say which of ``count`` rows become examples: evenly spaced ones, some of them twice if there are too few."""
    return torch.arange(num_rows, device=device) * count // num_rows


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per feature, 1 where nothing varies.

    Measured relative to the largest number: squares do not overflow, and equal numbers have exactly no spread.
    """
    peak = x.abs().amax(0).clamp(min=torch.finfo(x.dtype).tiny)
    relative = x / peak
    scale = relative.std(0, correction=0) * peak
    return relative.mean(0) * peak, torch.where(scale > 0, scale, 1.0)


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
    extra = x.new_zeros((max(0, size - x.shape[0]), *x.shape[1:]))
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
    return measure(x, reference, as_mask(where, "mask", mask, **sizes))


def measure(x: Tensor, reference: Reference, keep: Tensor | None, apart: Tensor | None = None) -> Tensor:
    """Compute :func:`novelty_statistics`; ``apart (B, R)`` says which examples may be a row's nearest."""
    with no_autocast(x):
        x = widen(zero_missing(x.detach(), keep))
        reference = Reference(*(part.to(x.dtype) for part in reference))
        if x.dim() == 2:
            return zero_missing((_distances(x, reference, apart) + _FLOOR).log(), keep)
        keep = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if keep is None else keep
        parts = masked_mean(_distances(x, reference, None if apart is None else apart.unsqueeze(1)), keep)
        return zero_missing((parts + _FLOOR).log(), keep.any(1))


def _distances(x: Tensor, reference: Reference, apart: Tensor | None) -> Tensor:
    z = ((x - reference.mean) / reference.scale).clamp(-_FAR, _FAR)
    inside = z @ reference.components.mT
    features, used = z.shape[-1], (reference.components != 0).any(1).sum().clamp(min=1)
    energy = z.square().sum(-1)
    residual = (z - inside @ reference.components).square().sum(-1) / reference.rest
    spread = (inside.square() / reference.variances).sum(-1) / used
    # |z - r|^2 written out: cdist has no derivative to lose here, but keeps no batch of steps together.
    products = z @ reference.rows.mT
    squares = energy.unsqueeze(-1) - 2 * products + reference.rows.square().sum(-1)
    nearest = (squares if apart is None else torch.where(apart, squares, torch.inf)).amin(-1).clamp(min=0.0)
    return torch.stack([residual, spread, energy / features, nearest / features], dim=-1)
