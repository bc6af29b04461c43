"""Ways to spoil the samples of one modality, all of them alike."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import as_mask, check_floating, check_range, check_shape, check_tensor
from .._precision import no_autocast, widen
from .._random import normal_like, uniform
from ..masking import zero_missing


def add_noise(
    x: Tensor, snr_db: float | Tensor, mask: Tensor | None = None, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""Add white Gaussian noise at a signal-to-noise ratio, measured sample by sample.

    :math:`y = x + \sqrt{P_x 10^{-s/10}}\,\epsilon` with :math:`P_x` the mean square of the present entries of the
    sample and :math:`s` the ratio in dB.

    Args:
        x: Floating tensor ``(B, ...)``.
        snr_db: Ratio in dB, a number or one per sample ``(B,)``; 0 = as much noise as signal.
        mask: Bool or integer 0/1 mask, ``(B,)`` or ``(B, T)``; True = present. Absent entries become zero.
        generator: Source of randomness; ``None`` = the global one.

    Returns:
        A new tensor of the shape and dtype of ``x``; silent samples (all zero) stay silent.

    Raises:
        TypeError: If ``x`` is not floating or ``snr_db`` no number.
        ValueError: If the mask or the shape of ``snr_db`` does not fit, or the number ``snr_db`` is not finite.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(1, 100_000)
        >>> noise = add_noise(x, 10.0) - x
        >>> round(float(10 * torch.log10(x.square().mean() / noise.square().mean())), 1)
        10.0
    """
    check_floating("add_noise", "x", x)
    if isinstance(snr_db, Tensor):
        check_shape("add_noise", "snr_db", snr_db, B=x.shape[0])
        snr_db = snr_db.reshape((-1,) + (1,) * (max(x.dim(), 2) - 1))
    else:
        check_range("add_noise", "snr_db", snr_db)
    return (widen(zero_missing(x, mask)) + noise_at(x, snr_db, mask, generator)).to(x.dtype)


def noise_at(x: Tensor, snr_db: float | Tensor, mask: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Draw what :func:`add_noise` adds, in float32 at least; ratios per sample have as many dimensions as ``x``."""
    if x.dim() == 1:  # summing over no dimension would sum over all
        return noise_at(x.unsqueeze(1), snr_db, mask, generator).squeeze(1)
    with no_autocast(x):
        clean = widen(zero_missing(x, mask))
        valid = widen(zero_missing(torch.ones_like(x), mask))
        dims = tuple(range(1, x.dim()))
        power = clean.square().sum(dims, keepdim=True) / valid.sum(dims, keepdim=True).clamp(min=1.0)
        noise: Tensor = (power * 10.0 ** (-snr_db / 10.0)).sqrt() * normal_like(clean, generator) * valid
    return noise


def shuffle_rows(x: Tensor, mask: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
    """Give every present sample the row of another present sample: right statistics, wrong content.

    Args:
        x: Tensor ``(B, ...)``, any dtype.
        mask: Bool or integer 0/1 mask ``(B,)``; True = present. Absent rows become zero and are never handed on.
        generator: Source of randomness; ``None`` = the global one.

    Returns:
        A new tensor of the shape of ``x``. With a single present row there is no other: it stays.

    Raises:
        TypeError: If ``x`` is no tensor or the mask neither bool nor integer.
        ValueError: If the mask is not ``(B,)``.

    Example:
        >>> shuffle_rows(torch.tensor([[1.0], [2.0]]))
        tensor([[2.],
                [1.]])
    """
    check_tensor("shuffle_rows", "x", x)
    keep = as_mask("shuffle_rows", "mask", mask, B=x.shape[0])
    if keep is None:
        keep = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    # One cycle through the present rows in random order has no fixed point, and needs no rejection.
    scores = uniform((x.shape[0],), generator, x.device)
    order = torch.where(keep, scores, 2.0).argsort()
    place = torch.arange(x.shape[0], device=x.device)
    successor = order[torch.where(place + 1 < keep.sum(), place + 1, 0)]
    source = torch.empty_like(order).scatter_(0, order, successor)
    return zero_missing(zero_missing(x, keep)[source], keep)


def scale_rows(
    x: Tensor, max_db: float, mask: Tensor | None = None, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""Multiply every sample by its own gain, drawn uniformly in decibels from [-max_db, max_db].

    Args:
        x: Floating tensor ``(B, ...)``.
        max_db: Largest gain or loss in dB (amplitude: 20 dB = a factor of 10), at least 0.
        mask: Bool or integer 0/1 mask, ``(B,)`` or ``(B, T)``; True = present. Absent entries become zero.
        generator: Source of randomness; ``None`` = the global one.

    Returns:
        A new tensor of the shape and dtype of ``x``.

    Raises:
        TypeError: If ``x`` is not floating or ``max_db`` no number.
        ValueError: If ``max_db`` is negative or the mask does not fit.

    Example:
        >>> scale_rows(torch.ones(1, 2), 0.0)
        tensor([[1., 1.]])
    """
    check_floating("scale_rows", "x", x)
    check_range("scale_rows", "max_db", max_db, 0.0)
    decibels = (2 * uniform((x.shape[0],), generator, x.device) - 1) * max_db
    gain = (10.0 ** (decibels / 20.0)).reshape((-1,) + (1,) * (x.dim() - 1))
    return (widen(zero_missing(x, mask)) * gain).to(x.dtype)


def drop_frames(mask: Tensor, rate: float, *, generator: torch.Generator | None = None) -> Tensor:
    """Lose single frames: every real step disappears with probability ``rate``.

    Args:
        mask: Bool or integer 0/1 mask ``(B, T)``; True = real step.
        rate: Probability in [0, 1] that a step is lost.
        generator: Source of randomness; ``None`` = the global one.

    Returns:
        Bool tensor ``(B, T)``, a subset of ``mask``; a sequence may lose all of its frames.

    Raises:
        TypeError: If the mask is neither bool nor integer, or ``rate`` no number.
        ValueError: If the mask is not ``(B, T)`` or ``rate`` is outside [0, 1].

    Example:
        >>> drop_frames(torch.tensor([[True, True, False]]), 0.0)
        tensor([[ True,  True, False]])
    """
    keep = as_mask("drop_frames", "mask", mask, B=None, T=None)
    assert keep is not None
    check_range("drop_frames", "rate", rate, 0.0, 1.0)
    return keep & (uniform(keep.shape, generator, keep.device) >= rate)
