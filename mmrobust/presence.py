"""Which modalities a sample has, and how to take some away on purpose.

Presence is a bool tensor ``(B, M)``, True = the sample has the modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import as_mask, check_range, check_size, check_tensor
from ._random import uniform
from ._schedules import EpochSchedule

_MAX_BITS = 16  # subsets whose number a float32 draw resolves well


def presence_from_zeros(x: Tensor | Sequence[Tensor] | Mapping[str, Tensor]) -> Tensor:
    """Read presence from all-zero rows, the silent sign of absence in published feature sets.

    A sample has a modality unless every entry of its row is exactly zero. NaN is not zero: such a row counts as
    present, so that bad data are seen and not hidden.

    Args:
        x: One modality ``(B, ...)``, or a sequence or mapping of M of them (order kept).

    Returns:
        Bool tensor ``(B,)`` for one modality, ``(B, M)`` for several.

    Raises:
        TypeError: If an entry is no tensor.
        ValueError: If a tensor has no feature dimension, or the batch sizes differ.

    Example:
        >>> presence_from_zeros(torch.tensor([[0.0, 0.0], [0.0, 2.0]]))
        tensor([False,  True])
    """
    if isinstance(x, Tensor):
        if x.dim() < 2:
            raise ValueError(f"presence_from_zeros: expected x of shape (B, ...) with features, got {tuple(x.shape)}")
        return (x != 0).flatten(1).any(1)
    parts = list(x.values()) if isinstance(x, Mapping) else list(x)
    if not parts:
        raise ValueError("presence_from_zeros: expected x to hold at least one modality, got none")
    for part in parts:
        check_tensor("presence_from_zeros", "x", part)
    columns = [presence_from_zeros(part) for part in parts]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"presence_from_zeros: expected equal batch sizes in x, got {[len(c) for c in columns]}")
    return torch.stack(columns, dim=1)


def all_presence_patterns(modalities: int) -> Tensor:
    """List every non-empty subset of the modalities, the complete one first, then by falling size.

    Args:
        modalities: Number of modalities M, at most 16.

    Returns:
        Bool tensor ``(2**M - 1, M)``.

    Raises:
        TypeError: If ``modalities`` is no integer.
        ValueError: If it is not between 1 and 16.

    Example:
        >>> all_presence_patterns(2)
        tensor([[ True,  True],
                [ True, False],
                [False,  True]])
    """
    check_size("all_presence_patterns", "modalities", modalities)
    check_range("all_presence_patterns", "modalities", modalities, 1, 16)
    return _patterns(modalities, None)


def _patterns(modalities: int, device: torch.device | None) -> Tensor:
    bits = torch.arange(modalities - 1, -1, -1, device=device)
    subsets = (torch.arange(2**modalities - 1, 0, -1, device=device).unsqueeze(1) >> bits) % 2 == 1
    return subsets[subsets.sum(1).argsort(descending=True, stable=True)]


def random_presence(
    batch: int,
    modalities: int,
    rate: float,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw presence with a missing rate: every modality of every sample is absent with probability ``rate``.

    A sample that would lose everything keeps one modality drawn uniformly, so the measured missing rate stays below
    ``rate`` (by ``rate**M / M``). This is the evaluation protocol of missing rates 0.0 ... 0.9 of P-RMF (Zhu et
    al., ACL 2025) and LNLN (Zhang et al., NeurIPS 2024) at the level of modalities.

    Args:
        batch: Number of samples B.
        modalities: Number of modalities M.
        rate: Missing rate in [0, 1].
        generator: Source of randomness; ``None`` = the global one.
        device: Where the result lives.

    Returns:
        Bool tensor ``(B, M)`` with at least one True in every row.

    Raises:
        TypeError: If a size is no integer or the rate no number.
        ValueError: If a size or the rate is out of range.

    Example:
        >>> random_presence(2, 3, 0.0)
        tensor([[True, True, True],
                [True, True, True]])
    """
    check_size("random_presence", "batch", batch, 0)
    check_size("random_presence", "modalities", modalities)
    check_range("random_presence", "rate", rate, 0.0, 1.0)
    scores = uniform((batch, modalities), generator, device)
    # Given that all of them fell below the rate, the largest score belongs to a uniformly drawn modality.
    return (scores >= rate) | (scores == scores.amax(1, keepdim=True))


def presence_views(present: Tensor, count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """List ways to look at a batch: first with all that is there, then with ``count`` subsets of the modalities.

    A model that encodes every modality by itself can be trained on all of these views at the price of encoding once:
    each view is one more fusion. Where there are no more than ``count`` non-empty proper subsets all of them are
    taken, in the order of :func:`all_presence_patterns`; otherwise different ones are drawn, the same for all samples.
    A sample that would have nothing left in a view keeps all that it has.

    Args:
        present: Bool or integer 0/1 mask ``(B, M)``, True = present; M at most 16.
        count: Largest number of subsets.
        generator: Source of randomness; ``None`` = the global one.

    Returns:
        Bool tensor ``(V, B, M)``, V = 1 + min(count, 2**M - 2).

    Raises:
        TypeError: If ``present`` is neither bool nor integer, or ``count`` no integer.
        ValueError: If a shape or a size does not fit.

    Example:
        >>> presence_views(torch.tensor([[True, True], [True, False]]), 2)
        tensor([[[ True,  True],
                 [ True, False]],
        <BLANKLINE>
                [[ True, False],
                 [ True, False]],
        <BLANKLINE>
                [[False,  True],
                 [ True, False]]])
    """
    keep = as_mask("presence_views", "present", present, B=None, M=None)
    assert keep is not None
    check_range("presence_views", "the modalities of present", keep.shape[1], 1, 16)
    check_size("presence_views", "count", count, 0)
    subsets = _patterns(keep.shape[1], keep.device)[1:]
    if count < len(subsets):
        subsets = subsets[uniform((len(subsets),), generator, keep.device).argsort()[:count]]
    views = keep & subsets.unsqueeze(1)
    return torch.cat([keep.unsqueeze(0), torch.where(views.any(-1, keepdim=True), views, keep)])


class ModalityDropout(nn.Module):
    r"""Take whole modalities away during training: draws a new presence mask from a given one.

    With probability :math:`p_e` a sample loses a non-empty proper subset of the modalities it has. It never regains
    one, never loses the last, and in eval mode nothing changes and nothing is drawn. The module acts on masks, before
    the encoders, so that encoders see absence; zeroing latents after encoding, as earlier systems do, never shows it
    to them.

    The probability follows the epoch :math:`e` (a buffer: a resumed run continues exactly), with ``W`` warm-up and
    ``R`` ramp epochs: 0 for :math:`e < W`, then :math:`p \min(1, (e - W) / R)`; ``R = 0`` means :math:`p` at once.
    The published delayed schedule is ``R = W``:

    ===========  ====  ====  ====  ====  ====  ====
    epoch           0    29    30    45    60    99
    ===========  ====  ====  ====  ====  ====  ====
    W=0,  R=0       p     p     p     p     p     p
    W=30, R=0       0     0     p     p     p     p
    W=0,  R=30      0  .97p     p     p     p     p
    W=30, R=30      0     0     0   .5p     p     p
    ===========  ====  ====  ====  ====  ====  ====

    Args:
        p: Probability that a sample loses something, in [0, 1].
        warmup_epochs: Epochs without any dropout (W).
        ramp_epochs: Epochs over which the probability then rises linearly (R).
        size_weights: Relative weights of losing 1, 2, ... modalities. ``None`` = every non-empty proper subset is
            equally likely; ``[1.0]`` = always exactly one. Within a size all subsets are equally likely. A sample
            that has too few modalities for every listed size loses nothing.

    Raises:
        ValueError: If ``p`` is outside [0, 1], or a weight is negative or all are zero.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> drop = ModalityDropout(1.0)
        >>> present = torch.tensor([[True, True, True], [True, False, False]])
        >>> drop(present)[1]  # the last one stays
        tensor([ True, False, False])
        >>> bool(drop(present)[0].all())
        False
        >>> drop.eval()(present).equal(present)
        True
    """

    size_weights: Tensor | None

    def __init__(
        self,
        p: float,
        *,
        warmup_epochs: int = 0,
        ramp_epochs: int = 0,
        size_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_range("ModalityDropout", "p", p, 0.0, 1.0)
        if size_weights is not None:
            for index, weight in enumerate(size_weights):
                check_range("ModalityDropout", f"size_weights[{index}]", weight, 0.0)
            if not any(size_weights):
                raise ValueError(f"ModalityDropout: expected size_weights with a positive entry, got {size_weights!r}")
        self.p = p
        self.schedule = EpochSchedule("ModalityDropout", warmup_epochs, ramp_epochs)
        weights = None if size_weights is None else torch.tensor(list(size_weights), dtype=torch.float32)
        self.register_buffer("size_weights", weights, persistent=False)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"p={self.p}"

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch (0-based); call it at the start of every epoch."""
        self.schedule.set_epoch(epoch)

    def forward(self, present: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw a new presence mask ``(B, M)`` from ``present (B, M)`` (bool or integer 0/1, True = present).

        Raises:
            TypeError: If ``present`` is neither bool nor integer.
            ValueError: If ``present`` is not two-dimensional.
        """
        keep = as_mask("ModalityDropout", "present", present, B=None, M=None)
        assert keep is not None
        if not self.training or self.p == 0.0:
            return keep
        # Below 1 with the wanted probability, and uniform again in [0, 1) where it is.
        share = uniform((keep.shape[0], 1), generator, keep.device) / (self.p * self.schedule.factor())
        if self.size_weights is None and keep.shape[1] <= _MAX_BITS:
            return _keep_subset(keep, share)
        return keep & ~(self._draw_by_size(keep, generator) & (share < 1))

    def _draw_by_size(self, keep: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw how many go, by the inverse distribution function, then which, as the first of a random order."""
        batch, modalities = keep.shape
        draws = uniform((batch, modalities + 1), generator, keep.device)
        count, size = keep.sum(1, keepdim=True), torch.arange(1, modalities, device=keep.device)
        if self.size_weights is None:
            chance = _log_choose(count, size).exp()
        else:
            chance = F.pad(self.size_weights, (0, modalities - 1 - self.size_weights.numel()))
        chance = torch.where(size < count, chance, 0.0)
        below, total = chance.cumsum(1) - chance, chance.sum(1, keepdim=True)
        lost = (draws[:, :1] * total >= below).sum(1, keepdim=True)
        lost = torch.where(total > 0, lost.minimum(count - 1), 0)
        order = torch.where(keep, draws[:, 1:], 2.0).argsort(1).argsort(1)
        return order < lost


def _keep_subset(keep: Tensor, share: Tensor) -> Tensor:
    """Keep a non-empty proper subset of what is present if share < 1, else all of it.

    The bits of a number say what stays: 1 ... 2**count - 2 for the subsets, the next one for everything.
    """
    rank = keep.cumsum(1, dtype=torch.int32)  # 1 for the first modality that is present, 2 for the second...
    subsets = (1 << rank[:, -1:]) - 2
    number = torch.fmin(share * subsets, subsets).to(torch.int32) + 1  # a share of inf or NaN, when p = 0, keeps all
    return ((number << 1) >> rank) & keep != 0


def _log_choose(count: Tensor, size: Tensor) -> Tensor:
    rest = (count - size).clamp(min=0)
    return (count + 1.0).lgamma() - (size + 1.0).lgamma() - (rest + 1.0).lgamma()
