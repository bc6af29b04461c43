"""Spoil a random share of the samples in mixed ways, for training against noise and for learning what it looks like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._checks import as_mask, check_floating, check_option, check_range, present_rows
from .._precision import widen
from .._random import uniform
from ..masking import zero_missing
from .functions import add_noise, noise_at, scale_rows, shuffle_rows

KINDS = ("noise", "zeros", "shuffle", "scale", "replace")


class SpoiltRows(NamedTuple):
    """Rows ``x`` of which some are spoilt, and ``share (B,)``: how much of each is no signal, 0 = untouched."""

    x: Tensor
    share: Tensor


def spoil_rows(
    x: Tensor,
    rate: float,
    mask: Tensor | None = None,
    *,
    kinds: Sequence[str] = ("noise", "zeros"),
    snr_db: tuple[float, float] = (-20.0, 15.0),
    generator: torch.Generator | None = None,
) -> SpoiltRows:
    r"""Spoil a random share of the samples, each in a way drawn uniformly, and say how much of each is no signal.

    The share of the power that is noise, :math:`1 / (1 + 10^{s/10})` at a ratio of s dB, is 1 for ``"zeros"``,
    ``"shuffle"`` and ``"replace"``, where nothing of the sample is left, and 0 for ``"scale"``, where all of it is, and
    for the only present sample of a batch, which has no other to be shuffled with.

    Args:
        x: Floating tensor ``(B, ...)``.
        rate: Probability in [0, 1] that a sample is spoilt; 0 draws nothing.
        mask: Bool or integer 0/1 mask, ``(B,)`` or ``(B, T)``; True = present. In spoilt samples absent entries
            become zero.
        kinds: One or more of ``"noise"`` (:func:`add_noise`, its ratio uniform in ``snr_db``), ``"zeros"``,
            ``"shuffle"`` (:func:`shuffle_rows`; steps that the other sample lacks are zero), ``"scale"``
            (:func:`scale_rows` up to 20 dB) and ``"replace"`` (nothing but noise, as loud as the sample).
        snr_db: Lowest and highest signal-to-noise ratio in dB.
        generator: Source of randomness; ``None`` = the global one.

    Returns:
        The rows, of the shape and dtype of ``x``, and their shares ``(B,)`` in float32 (float64 for float64).

    Raises:
        TypeError: If ``x`` is not floating, the mask neither bool nor integer, or a number is none.
        ValueError: If an argument is out of range or the mask does not fit.

    Example:
        >>> spoil_rows(torch.ones(2, 3), 1.0, kinds=["zeros"]).share
        tensor([1., 1.])
    """
    check_floating("spoil_rows", "x", x)
    check_spoiling("spoil_rows", rate, kinds, snr_db)
    keep = _as_mask("spoil_rows", "mask", mask, x)
    if rate == 0.0:
        return SpoiltRows(x, torch.zeros(x.shape[:1], dtype=widen(x).dtype, device=x.device))
    draws = uniform((2, x.shape[0]), generator, x.device).to(widen(x).dtype)
    # Below 1 with the wanted probability, and uniform again in [0, 1) where it is.
    choice = draws[0] / rate * len(kinds)
    ratio = snr_db[0] + (snr_db[1] - snr_db[0]) * draws[1]
    spoilt, share = x, torch.zeros_like(ratio)
    for index, kind in enumerate(kinds):
        chosen = (choice >= index) & (choice < index + 1)
        other = _spoilt(kind, x, ratio, keep, generator)
        spoilt = torch.where(chosen.reshape((-1,) + (1,) * (x.dim() - 1)), other, spoilt)
        share = torch.where(chosen, _share(kind, ratio, keep), share)
    return SpoiltRows(spoilt, share)


def check_spoiling(where: str, rate: float, kinds: Sequence[str], snr_db: tuple[float, float]) -> None:
    """Raise unless the arguments of :func:`spoil_rows` are in range."""
    check_range(where, "rate", rate, 0.0, 1.0)
    for kind in kinds:
        check_option(where, "kinds", kind, KINDS)
    if not kinds:
        raise ValueError(f"{where}: expected kinds with at least one of {', '.join(KINDS)}, got none")
    low, high = snr_db
    check_range(where, "snr_db[0]", low)
    check_range(where, "snr_db[1]", high, low)


class ModalityCorruption(nn.Module):
    """Spoil whole modalities during training, without saying so: noise at a random level, or zeros.

    Every modality of every sample is spoilt with probability ``rate``, in a way drawn uniformly from ``kinds``. Train
    with the spoilt inputs, and hand the clean ones to the model as ``targets``: what differs was spoilt. In eval mode
    nothing changes and nothing is drawn. Where a sample is spoilt its absent entries become zero; elsewhere they stay.

    Args:
        rate: Probability in [0, 1] that a modality of a sample is spoilt.
        kinds: One or more of ``"noise"``, ``"zeros"``, ``"shuffle"``, ``"scale"`` and ``"replace"``, as in
            :func:`spoil_rows`.
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
        check_spoiling("ModalityCorruption", rate, kinds, snr_db)
        self.rate, self.kinds, self.snr_db = rate, tuple(kinds), (snr_db[0], snr_db[1])

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
        for name, x in inputs.items():
            check_floating(where, f"inputs[{name!r}]", x)
            _as_mask(where, f"masks[{name!r}]", given.get(name), x)
        if not self.training:
            return dict(inputs)
        options: dict[str, Any] = {"kinds": self.kinds, "snr_db": self.snr_db, "generator": generator}
        return {name: spoil_rows(x, self.rate, given.get(name), **options).x for name, x in inputs.items()}


def _as_mask(where: str, name: str, mask: Tensor | None, x: Tensor) -> Tensor | None:
    """Check the mask of samples ``(B,)`` or, where ``x`` has them, of steps ``(B, T)``."""
    steps = x.dim() > 2 and isinstance(mask, Tensor) and mask.dim() != 1
    return as_mask(where, name, mask, **({"B": x.shape[0], "T": x.shape[1]} if steps else {"B": x.shape[0]}))


def _share(kind: str, snr_db: Tensor, keep: Tensor | None) -> Tensor:
    """Return the share of a sample's power that is no signal."""
    if kind == "noise":
        return torch.sigmoid(-snr_db * (math.log(10.0) / 10.0))
    if kind == "shuffle":
        rows = torch.ones_like(snr_db) if keep is None else present_rows(keep)
        return torch.where(rows.sum() > 1, torch.ones_like(snr_db), 0.0)
    return torch.full_like(snr_db, 0.0 if kind == "scale" else 1.0)


def _spoilt(kind: str, x: Tensor, snr_db: Tensor, keep: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Spoil every sample in one way; what is absent is not read and becomes zero."""
    if kind == "noise":
        return add_noise(x, snr_db, keep, generator=generator)
    if kind == "shuffle":
        rows = None if keep is None else present_rows(keep)
        # Padding is zero before it is handed on, for the next sample may have a real step there.
        return zero_missing(shuffle_rows(zero_missing(x, keep), rows, generator=generator), keep)
    if kind == "scale":
        return scale_rows(x, 20.0, keep, generator=generator)
    if kind == "replace":
        return noise_at(x, 0.0, keep, generator).to(x.dtype)
    return torch.zeros_like(x)
