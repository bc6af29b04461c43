"""From how strange an input looks to a log-variance per modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .._checks import as_mask, check_floating, check_integers, check_shape, check_size, present_rows
from ..masking import zero_missing
from ._buffers import ReferenceBuffers
from ._head import build_head, read_logvar
from ._teaching import Rows, Teaching, check_teaching, count_units, teach
from .reference import Fitting, check_fitting

_WHERE = "ModalityQuality"


class ModalityQuality(nn.Module):
    r"""Read a log-variance from each modality's input: high for what does not look like the training data.

    The statistics of :func:`novelty_statistics`, relative to their mean and spread over the training rows and limited
    to [-12, 12], pass through Linear-GELU-Linear, one small network per modality, to the log-odds :math:`o` in (-8, 8)
    (:math:`8 \tanh(\cdot / 8)`) of being spoilt, and these to a log-variance :math:`\log(1 + e^o)`: the variance is one
    over the chance to be unspoilt, or over the share of the input that is signal, so that precision weights follow it
    and what is surely clean weighs the same in every modality.

    Call :meth:`fit` once, on training rows; before that everything is compared with a standard normal. Then
    :meth:`teach` the networks on training rows that are spoilt on purpose; or train them with the task on inputs of
    which some are spoilt, through :func:`quality_loss` or the task's own loss. Encoders alone do not learn it.

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
        >>> train = [torch.randn(100, 6), torch.randn(100, 9)]
        >>> quality.fit(train)
        >>> quality.teach(train)
        >>> quality([torch.randn(4, 6), torch.zeros(4, 9)]).mean(0) > 2  # text has fallen silent
        tensor([False,  True])
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
        self.references = nn.ModuleList(ReferenceBuffers(size, self.fitting) for size in self.sizes)
        self.heads = nn.ModuleList(build_head(hidden_features) for _ in self.sizes)

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
            assert isinstance(reference, ReferenceBuffers)
            reference.fit(x, mask, self.fitting)

    def teach(
        self,
        features: Sequence[Tensor],
        present: Tensor | None = None,
        masks: Sequence[Tensor | None] | None = None,
        *,
        groups: Tensor | None = None,
        rate: float = 0.5,
        kinds: Sequence[str] = ("noise", "zeros", "replace"),
        snr_db: tuple[float, float] = (-20.0, 20.0),
        folds: int = 5,
        draws: int = 2,
        steps: int = 200,
        lr: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> None:
        r"""Teach the networks on training rows that :func:`spoil_rows` spoils: once, after :meth:`fit`, without labels.

        Each network learns the share of the input's power that is signal: with as much noise as signal the precision
        :math:`e^{-\ell}` becomes one half, where nothing of the signal is left it goes to 0. Rows are looked at as new
        ones will be, those of a fold compared with references that were fitted without them, and as training rows are,
        compared with the reference of :meth:`fit`.

        Args:
            features: As in :meth:`fit`, like the next two.
            present: Bool or integer 0/1 mask ``(N, M)``, True = present.
            masks: Step masks.
            groups: Integer ``(N,)``, such as the number of the subject or the video: rows of one group stay in one
                fold, so that the networks learn how strange a clean row of a *new* group looks. On any device;
                ``None`` = every row is a group of its own.
            rate: Probability that a row is spoilt; this and the next two as in :func:`spoil_rows`.
            kinds: Ways to spoil.
            snr_db: Range of the signal-to-noise ratio.
            folds: Number of folds, at most one per group is used.
            draws: How often each row is spoilt anew.
            steps: Steps of Adam on 1024 examples, with weight decay 1e-4.
            lr: Its learning rate.
            generator: Source of randomness; ``None`` = the global one.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape or an argument does not fit, or a modality is present in less than two groups.
        """
        teaching = Teaching(rate, kinds, snr_db, folds, draws, steps, lr)
        check_teaching(_WHERE, teaching)
        parts = self._parts(features, present, masks)
        if groups is not None:
            check_integers(_WHERE, "groups", groups)
            check_shape(_WHERE, "groups", groups, N=len(features[0]))
        grouped = [Rows(x, mask, None if groups is None else groups.to(mask.device)) for x, mask in parts]
        for name, rows in zip(self.names, grouped, strict=True):
            units = count_units(rows)
            if units < 2:
                raise ValueError(f"{_WHERE}: expected features[{name!r}] present in at least two groups, got {units}")
        for reference, head, rows in zip(self.references, self.heads, grouped, strict=True):
            assert isinstance(reference, ReferenceBuffers)
            teach(reference, head, rows, self.fitting, teaching, generator)

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
            columns.append(zero_missing(read_logvar(head, reference(x, mask)), present_rows(mask)))
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
