"""Ways to spoil a modality on purpose, for training against noise and for measuring robustness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ._checks import as_mask, check_floating, check_option, check_range, check_shape, check_tensor
from ._precision import no_autocast, widen
from ._random import normal_like, uniform
from .masking import zero_missing

KINDS = ("noise", "zeros", "shuffle", "scale")


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
    return _add_noise(x, snr_db, mask, generator)


def _add_noise(x: Tensor, snr_db: float | Tensor, mask: Tensor | None, generator: torch.Generator | None) -> Tensor:
    if x.dim() == 1:  # summing over no dimension would sum over all
        return _add_noise(x.unsqueeze(1), snr_db, mask, generator).squeeze(1)
    with no_autocast(x):
        clean = widen(zero_missing(x, mask))
        valid = widen(zero_missing(torch.ones_like(x), mask))
        dims = tuple(range(1, x.dim()))
        power = clean.square().sum(dims, keepdim=True) / valid.sum(dims, keepdim=True).clamp(min=1.0)
        noise = normal_like(clean, generator)
        spoilt: Tensor = clean + (power * 10.0 ** (-snr_db / 10.0)).sqrt() * noise * valid
    return spoilt.to(x.dtype)


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


class ModalityCorruption(nn.Module):
    """Spoil whole modalities during training, without saying so: noise at a random level, or zeros.

    Every modality of every sample is spoilt with probability ``rate``, in a way drawn uniformly from ``kinds``. Train
    with the spoilt inputs, and hand the clean ones to the model as ``targets``: what differs was spoilt. In eval mode
    nothing changes and nothing is drawn. Where a sample is spoilt its absent entries become zero; elsewhere they stay.

    Args:
        rate: Probability in [0, 1] that a modality of a sample is spoilt.
        kinds: One or more of ``"noise"`` (:func:`add_noise`, its ratio uniform in ``snr_db``), ``"zeros"``,
            ``"shuffle"`` (:func:`shuffle_rows`; steps that the other sample lacks are zero) and ``"scale"``
            (:func:`scale_rows` up to 20 dB).
        snr_db: Lowest and highest signal-to-noise ratio in dB.

    Raises:
        TypeError: If a number is none.
        ValueError: If an argument is out of range.

    Example:
        >>> corruption = ModalityCorruption(1.0, kinds=["zeros"])
        >>> corruption({"audio": torch.ones(2, 3)})["audio"].sum()
        tensor(0.)
    """

    def __init__(
        self,
        rate: float,
        *,
        kinds: Sequence[str] = ("noise", "zeros"),
        snr_db: tuple[float, float] = (-20.0, 15.0),
    ) -> None:
        super().__init__()
        where = "ModalityCorruption"
        check_range(where, "rate", rate, 0.0, 1.0)
        for kind in kinds:
            check_option(where, "kinds", kind, KINDS)
        if not kinds:
            raise ValueError(f"{where}: expected kinds with at least one of {', '.join(KINDS)}, got none")
        low, high = snr_db
        check_range(where, "snr_db[0]", low)
        check_range(where, "snr_db[1]", high, low)
        self.rate, self.kinds, self.snr_db = rate, tuple(kinds), (low, high)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"rate={self.rate}, kinds={self.kinds}, snr_db={self.snr_db}"

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Spoil what a batch holds.

        Args:
            inputs: By name, floating ``(B, D)`` or ``(B, T, D)``.
            masks: By name, bool or integer 0/1 masks, True = present: ``(B,)`` for samples, ``(B, T)`` for steps. A
                modality without a mask is present everywhere.
            generator: Source of randomness; ``None`` = the global one.

        Raises:
            TypeError: If an input is not floating, or a mask neither bool nor integer.
            ValueError: If a mask does not fit, or its name is not in ``inputs``.
        """
        where, given = "ModalityCorruption", masks or {}
        for name in given:
            check_option(where, "the keys of masks", name, inputs)
        keep = {}
        for name, x in inputs.items():
            check_floating(where, f"inputs[{name!r}]", x)
            mask = given.get(name)
            steps = x.dim() > 2 and isinstance(mask, Tensor) and mask.dim() != 1
            sizes = {"B": x.shape[0], "T": x.shape[1]} if steps else {"B": x.shape[0]}
            keep[name] = as_mask(where, f"masks[{name!r}]", mask, **sizes)
        if not self.training or self.rate == 0.0:
            return dict(inputs)
        return {name: self._spoil(x, keep[name], generator) for name, x in inputs.items()}

    def _spoil(self, x: Tensor, keep: Tensor | None, generator: torch.Generator | None) -> Tensor:
        draws = uniform((2, x.shape[0]), generator, x.device)
        # Below 1 with the wanted probability, and uniform again in [0, 1) where it is.
        choice = draws[0] / self.rate * len(self.kinds)
        low, high = self.snr_db
        spoilt = x
        for index, kind in enumerate(self.kinds):
            chosen = ((choice >= index) & (choice < index + 1)).reshape((-1,) + (1,) * (x.dim() - 1))
            other = _spoilt(kind, x, low + (high - low) * draws[1], keep, generator)
            spoilt = torch.where(chosen, other, spoilt)
        return spoilt


def _spoilt(kind: str, x: Tensor, snr_db: Tensor, keep: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Spoil every sample in one way; what is absent is not read and becomes zero."""
    if kind == "noise":
        return add_noise(x, snr_db, keep, generator=generator)
    if kind == "shuffle":
        rows = keep if keep is None or keep.dim() == 1 else keep.any(1)
        # Padding is zero before it is handed on, for the next sample may have a real step there.
        return zero_missing(shuffle_rows(zero_missing(x, keep), rows, generator=generator), keep)
    if kind == "scale":
        return scale_rows(x, 20.0, keep, generator=generator)
    return torch.zeros_like(x)
