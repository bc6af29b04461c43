"""From how strange an input looks to a log-variance per modality, and the loss that teaches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import as_mask, check_floating, check_shape, check_size, check_tensor
from .._precision import no_autocast, widen
from ..masking import zero_missing
from .reference import (
    FIT_ROWS,
    NUM_STATISTICS,
    Fitting,
    Reference,
    check_fitting,
    example_rows,
    fit_reference,
    measure,
    novelty_statistics,
)

_WHERE = "ModalityQuality"
_LIMIT = 12.0  # usual spreads
_NARROW = 0.05  # a statistic that hardly varies in training is not made to shout
_BOUND = 8.0
_SURELY_CLEAN = 1e-30  # its logarithm is finite
_CHUNK = 256  # samples measured at a time


class ModalityQuality(nn.Module):
    r"""Read a log-variance from each modality's input: high for what does not look like the training data.

    The statistics of :func:`novelty_statistics`, relative to their mean and spread over the training rows and limited
    to [-12, 12], pass through Linear-GELU-Linear, one small network per modality, to the log-odds :math:`o` in (-8, 8)
    (:math:`8 \tanh(\cdot / 8)`) of being spoilt, and these to a log-variance :math:`\log(1 + e^o)`: the variance is one
    over the chance to be unspoilt, so that precision weights follow this chance, and what is surely clean weighs the
    same in every modality. Call :meth:`fit` once, on training rows; before that everything is compared with a standard
    normal. Train the networks on inputs of which some are spoilt, with their flags (:func:`quality_loss`) or through
    the task: encoders alone do not learn it.

    Args:
        in_features: Features of every modality, in order.
        hidden_features: Width of the small networks.
        max_components: As in :func:`fit_reference`, like the next two.
        explained: Share of the variance that the components explain.
        num_rows: Number of examples.

    Raises:
        TypeError: If a size is no integer.
        ValueError: If an argument is out of range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> quality = ModalityQuality({"audio": 6, "text": 9})
        >>> quality.fit([torch.randn(100, 6), torch.randn(100, 9)])
        >>> quality([torch.randn(4, 6), torch.randn(4, 9)]).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        in_features: Mapping[str, int] | Sequence[int],
        hidden_features: int = 16,
        *,
        max_components: int = 64,
        explained: float = 0.9,
        num_rows: int = 256,
    ) -> None:
        super().__init__()
        named = in_features if isinstance(in_features, Mapping) else dict(enumerate(in_features))
        self.names, self.sizes = tuple(named), tuple(named.values())
        if not self.sizes:
            raise ValueError(f"{_WHERE}: expected in_features with at least one modality, got none")
        for name, size in zip(self.names, self.sizes, strict=True):
            check_size(_WHERE, f"in_features[{name!r}]", size)
        check_size(_WHERE, "hidden_features", hidden_features)
        self.fitting: Fitting = {"max_components": max_components, "explained": explained, "num_rows": num_rows}
        check_fitting(_WHERE, self.fitting)
        self.references = nn.ModuleList(_ReferenceBuffers(size, self.fitting) for size in self.sizes)
        self.heads = nn.ModuleList(_head(hidden_features) for _ in self.sizes)

    @torch.no_grad()
    def fit(
        self,
        features: Sequence[Tensor],
        present: Tensor | None = None,
        masks: Sequence[Tensor | None] | None = None,
    ) -> None:
        """Measure the training rows: once, before training, and without any label.

        Args:
            features: For each modality ``(N, D)`` or ``(N, T, D)``, floating.
            present: Bool or integer 0/1 mask ``(N, M)``, True = present; other rows are not read.
            masks: For each modality ``(N, T, D)`` the steps ``(N, T)`` that count, or ``None`` = all.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape does not fit, or a modality is present in no row.
        """
        parts = self._parts(features, present, masks)
        for name, (_, mask) in zip(self.names, parts, strict=True):
            if not bool(mask.any()):
                raise ValueError(f"{_WHERE}: expected features[{name!r}] with a present row, got none")
        for reference, (x, mask) in zip(self.references, parts, strict=True):
            assert isinstance(reference, _ReferenceBuffers)
            reference.fit(x, mask, self.fitting)

    def forward(
        self,
        features: Sequence[Tensor],
        present: Tensor | None = None,
        masks: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Return log-variances ``(B, M)`` in (0, 8.1), 0 where absent; arguments as in :meth:`fit`.

        They are float32 (float64 for float64).

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape does not fit.
        """
        columns = []
        parts = self._parts(features, present, masks)
        for reference, head, (x, mask) in zip(self.references, self.heads, parts, strict=True):
            there = mask if mask.dim() == 1 else mask.any(1)
            odds = head(reference(x, mask)).squeeze(1)
            with no_autocast(odds):
                logvar = F.softplus(_BOUND * torch.tanh(widen(odds) / _BOUND))
            columns.append(zero_missing(logvar, there))
        return torch.stack(columns, dim=1)

    def _parts(
        self, features: Sequence[Tensor], present: Tensor | None, masks: Sequence[Tensor | None] | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Return each modality with a mask, ``(B,)`` or ``(B, T)``, of what is there."""
        masks = [None] * len(self.sizes) if masks is None else masks
        for argument, given in (("features", features), ("masks", masks)):
            if len(given) != len(self.sizes):
                raise ValueError(f"{_WHERE}: expected {argument} of length M = {len(self.sizes)}, got {len(given)}")
        for name, x in zip(self.names, features, strict=True):
            check_floating(_WHERE, f"features[{name!r}]", x)
        batch = features[0].shape[0] if features[0].dim() else None
        keep = as_mask(_WHERE, "present", present, B=batch, M=len(self.sizes))
        parts = []
        for index, (name, size, x, steps) in enumerate(zip(self.names, self.sizes, features, masks, strict=True)):
            dims = {"B": batch, "T": None, "D": size} if x.dim() == 3 else {"B": batch, "D": size}
            check_shape(_WHERE, f"features[{name!r}]", x, **dims)
            if steps is not None and x.dim() == 2:
                raise ValueError(f"{_WHERE}: expected masks[{name!r}] to be None for vectors (B, D), got a mask")
            mask = as_mask(_WHERE, f"masks[{name!r}]", steps, B=batch, T=x.shape[1])
            if mask is None:
                mask = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
            if keep is not None:
                mask = mask & (keep[:, index] if x.dim() == 2 else keep[:, index : index + 1])
            parts.append((x, mask))
        return parts


def _head(hidden_features: int) -> nn.Sequential:
    last = nn.Linear(hidden_features, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(NUM_STATISTICS, hidden_features), nn.GELU(), last)


class _ReferenceBuffers(nn.Module):
    """A :class:`Reference` as buffers, and the usual values of its statistics."""

    mean: Tensor
    scale: Tensor
    components: Tensor
    variances: Tensor
    rest: Tensor
    rows: Tensor
    usual: Tensor
    spread: Tensor

    def __init__(self, features: int, fitting: Fitting) -> None:
        super().__init__()
        size, rows = min(fitting["max_components"], max(1, features - 1)), fitting["num_rows"]
        unfitted = Reference(
            torch.zeros(features),
            torch.ones(features),
            torch.zeros(size, features),
            torch.ones(size),
            torch.tensor(float(features)),
            torch.zeros(rows, features),
        )
        for name, value in unfitted._asdict().items():
            self.register_buffer(name, value)
        self.register_buffer("usual", torch.zeros(NUM_STATISTICS))
        self.register_buffer("spread", torch.ones(NUM_STATISTICS))

    def fit(self, x: Tensor, mask: Tensor, fitting: Fitting) -> None:
        for name, value in fit_reference(x[mask], **fitting)._asdict().items():
            getattr(self, name).copy_(value)
        sample = mask.nonzero()[:, 0]
        source = sample[example_rows(len(sample), fitting["num_rows"], x.device)]
        there = (mask if mask.dim() == 1 else mask.any(1)).nonzero().squeeze(1)
        parts = []
        for rows in torch.split(there[:: -(-len(there) // FIT_ROWS)], _CHUNK):
            # A sample's own examples are too near to say what is usual; a sample without others has to use them.
            apart = source != rows.unsqueeze(1)
            apart = apart | ~apart.any(1, keepdim=True)
            parts.append(measure(x[rows], self._reference(), mask[rows], apart))
        statistics = torch.cat(parts)
        self.usual.copy_(statistics.mean(0))
        self.spread.copy_(statistics.std(0, correction=0).clamp(min=_NARROW))

    def _reference(self) -> Reference:
        return Reference(*(getattr(self, name) for name in Reference._fields))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        statistics = novelty_statistics(x, self._reference(), mask)
        limited = ((statistics - self.usual) / self.spread).clamp(-_LIMIT, _LIMIT)
        return limited.to(x.dtype)


def quality_loss(logvar: Tensor, spoilt: Tensor, present: Tensor | None = None) -> Tensor:
    r"""Compare log-variances with flags: binary cross-entropy of :math:`1 - e^{-\ell}` being the chance to be spoilt.

    An unspoilt modality costs :math:`\ell`, a spoilt one :math:`-\log(1 - e^{-\ell})`; what is negative counts as 0.

    Args:
        logvar: Floating ``(B, M)``, as :class:`ModalityQuality` gives it.
        spoilt: Bool or integer 0/1 ``(B, M)``, True = the modality of this row was spoilt.
        present: Bool or integer 0/1 mask ``(B, M)``, True = present; the rest does not count.

    Returns:
        The mean over what is present, float32 (float64 for float64); 0 and attached to the graph if nothing is.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape does not fit.

    Example:
        >>> quality_loss(torch.tensor([[0.01, 5.0]]), torch.tensor([[False, True]]))
        tensor(0.0084)
    """
    where = "quality_loss"
    check_floating(where, "logvar", logvar)
    check_shape(where, "logvar", logvar, B=None, M=None)
    batch, count = logvar.shape
    check_tensor(where, "spoilt", spoilt)
    flags = as_mask(where, "spoilt", spoilt, B=batch, M=count)
    assert flags is not None
    keep = as_mask(where, "present", present, B=batch, M=count)
    with no_autocast(logvar):
        x = widen(zero_missing(logvar, keep))
        x = x.clamp(min=_SURELY_CLEAN)
        loss = torch.where(flags, -torch.log(-torch.expm1(-x)), x)
        if keep is None:
            return loss.sum() / max(loss.numel(), 1)
        return zero_missing(loss, keep).sum() / keep.sum().clamp(min=1)
