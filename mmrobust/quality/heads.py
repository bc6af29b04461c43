"""From how strange an input looks to a log-variance per modality, and the loss that teaches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._checks import as_mask, check_floating, check_shape, check_size
from .._precision import no_autocast, widen
from ..masking import zero_missing
from .reference import NUM_STATISTICS, Fitting, Reference, fit_reference, novelty_statistics

_LIMIT = 12.0  # usual spreads
_NARROW = 0.05  # a statistic that hardly varies in training is not made to shout
_BOUND = 8.0


class ModalityQuality(nn.Module):
    r"""Read a log-variance from each modality's input: high for what does not look like the training data.

    The statistics of :func:`novelty_statistics`, relative to their mean and spread over the training rows and limited
    to [-12, 12], pass through Linear-GELU-Linear, one small network per modality, to a log-variance in (-8, 8)
    (:math:`8 \tanh(\cdot / 8)`), 0 at the start. Call :meth:`fit` once, on training rows; before that everything is
    compared with a standard normal. Train the networks on inputs of which some are spoilt, with their flags
    (:func:`quality_loss`) or through the task: encoders alone do not learn it.

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
        where = "ModalityQuality"
        self.sizes = list(in_features.values() if isinstance(in_features, Mapping) else in_features)
        if not self.sizes:
            raise ValueError(f"{where}: expected in_features with at least one modality, got none")
        for index, size in enumerate(self.sizes):
            check_size(where, f"in_features[{index}]", size)
        check_size(where, "hidden_features", hidden_features)
        self.fitting: Fitting = {"max_components": max_components, "explained": explained, "num_rows": num_rows}
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
            masks: For each modality the steps ``(N, T)`` that count, or ``None`` = all.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape does not fit, or a modality is present in no row.
        """
        for index, (reference, x, mask) in enumerate(
            zip(self.references, *self._checked(features, masks), strict=True)
        ):
            keep = as_mask("ModalityQuality", "present", present, B=x.shape[0], M=len(self.sizes))
            there = torch.ones(x.shape[0], dtype=torch.bool, device=x.device) if keep is None else keep[:, index]
            mask = there if x.dim() == 2 else _steps(x, mask) & there.unsqueeze(1)
            if not bool(mask.any()):
                raise ValueError(f"ModalityQuality: expected features[{index}] with a present row, got none")
            assert isinstance(reference, _ReferenceBuffers)
            reference.fit(x, mask, self.fitting)

    def forward(
        self,
        features: Sequence[Tensor],
        present: Tensor | None = None,
        masks: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Return log-variances ``(B, M)``, 0 where absent; arguments as in :meth:`fit`.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape does not fit.
        """
        columns = []
        for index, (x, mask) in enumerate(zip(*self._checked(features, masks), strict=True)):
            keep = as_mask("ModalityQuality", "present", present, B=x.shape[0], M=len(self.sizes))
            there = None if keep is None else keep[:, index]
            if x.dim() == 3 and (mask is not None or there is not None):
                mask = _steps(x, mask) if there is None else _steps(x, mask) & there.unsqueeze(1)
            statistics = self.references[index](x, there if x.dim() == 2 else mask)
            columns.append(zero_missing(self.heads[index](statistics).squeeze(1), there))
        logvar = torch.stack(columns, dim=1)
        with no_autocast(logvar):
            return _BOUND * torch.tanh(widen(logvar) / _BOUND)

    def _checked(
        self, features: Sequence[Tensor], masks: Sequence[Tensor | None] | None
    ) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
        masks = [None] * len(self.sizes) if masks is None else masks
        for name, given in (("features", features), ("masks", masks)):
            if len(given) != len(self.sizes):
                raise ValueError(f"ModalityQuality: expected {name} of length M = {len(self.sizes)}, got {len(given)}")
        return features, masks


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
        known = x[mask]
        for name, value in fit_reference(known, **fitting)._asdict().items():
            getattr(self, name).copy_(value)
        # The examples are at distance 0 from themselves: with them left out the nearest one says what is usual.
        own = torch.arange(fitting["num_rows"], device=x.device) * len(known) // fitting["num_rows"]
        others = torch.ones(len(known), dtype=torch.bool, device=x.device).index_fill(0, own, False)
        statistics = novelty_statistics(known[others] if bool(others.any()) else known, self._reference())
        self.usual.copy_(statistics.mean(0))
        self.spread.copy_(statistics.std(0, correction=0).clamp(min=_NARROW))

    def _reference(self) -> Reference:
        return Reference(*(getattr(self, name) for name in Reference._fields))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        statistics = novelty_statistics(x, self._reference(), mask)
        limited = ((statistics - self.usual) / self.spread).clamp(-_LIMIT, _LIMIT)
        return limited.to(x.dtype)


def _steps(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mask of the steps of ``x (B, T, D)``, checked."""
    steps = as_mask("ModalityQuality", "masks", mask, B=x.shape[0], T=x.shape[1])
    return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if steps is None else steps


def quality_loss(logvar: Tensor, spoilt: Tensor, present: Tensor | None = None) -> Tensor:
    r"""Compare log-variances with flags: binary cross-entropy of :math:`\sigma(\ell)` being the chance to be spoilt.

    Args:
        logvar: Floating ``(B, M)``.
        spoilt: Bool or integer 0/1 ``(B, M)``, True = the modality of this row was spoilt.
        present: Bool or integer 0/1 mask ``(B, M)``, True = present; the rest does not count.

    Returns:
        The mean over what is present, float32 (float64 for float64); 0 and attached to the graph if nothing is.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape does not fit.

    Example:
        >>> quality_loss(torch.tensor([[-5.0, 5.0]]), torch.tensor([[False, True]]))
        tensor(0.0067)
    """
    where = "quality_loss"
    check_floating(where, "logvar", logvar)
    check_shape(where, "logvar", logvar, B=None, M=None)
    batch, count = logvar.shape
    flags = as_mask(where, "spoilt", spoilt, B=batch, M=count)
    assert flags is not None
    keep = as_mask(where, "present", present, B=batch, M=count)
    with no_autocast(logvar):
        x = widen(zero_missing(logvar, keep))
        loss = F.binary_cross_entropy_with_logits(x, flags.to(x.dtype), reduction="none")
        if keep is None:
            return loss.sum() / max(loss.numel(), 1)
        return zero_missing(loss, keep).sum() / keep.sum().clamp(min=1)
