"""A classifier whose classes are subspaces."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .._checks import check_floating, check_integers, check_option, check_range, check_shape, check_size
from .._precision import no_autocast, widen
from .._similarity.units import NO_DIRECTION, wide_dtype
from .functional import orthonormality_penalty, subspace_residual, subspace_separation

Orthogonality = Literal["penalty", "exact"]


class SubspacePrediction(NamedTuple):
    """``classes (B,)``, -1 = rejected, and the ``residual (B,)`` of the nearest class."""

    classes: Tensor
    residual: Tensor


class SubspacePrototypeClassifier(nn.Module):
    r"""Classify by the distance to class subspaces: logit = -residual / temperature.

    Each class has K basis vectors; :func:`~mmrobust.functional.subspace_residual` measures how much of x they leave
    over.

    Args:
        in_features: Features D.
        num_classes: Number of classes C.
        subspace_dim: Basis vectors K of each class, at most D. Where C K is at most D all start orthogonal to each
            other; beyond that classes necessarily share directions, and only the rows of each class start orthonormal.
        temperature: Divides the residuals; > 0.
        normalize: Scale x to unit length first: residuals are then squared sines in [0, 1]. A vector shorter than 1e-12
            has no direction, as that of a sample of which nothing is known: its residual to every class is 1. Without
            ``normalize`` the zero vector lies in every subspace; mask such rows.
        orthogonality: ``"penalty"``: the basis is a free parameter, kept near orthonormal by
            :meth:`orthonormality_penalty` in the loss. ``"exact"``: the rows of the parameter are orthonormalised (QR)
            in every forward pass; only their span counts. They have to stay linearly independent.
        precise: Residuals in float64, as in :func:`~mmrobust.functional.subspace_residual`.

    Raises:
        ValueError: If a size or an option does not fit.

    Source: classes as subspaces as in Simon et al., Adaptive Subspaces for Few-Shot Learning, CVPR 2020, eq. 5, with
    learned bases in the place of those of a support set. Deviations from an earlier system: no normalisation of rows
    in the penalty, no projectors, no contrast between class indices taken as feature columns.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> classifier = SubspacePrototypeClassifier(16, num_classes=3, subspace_dim=2)
        >>> x = classifier.basis[1, :1] + 0.01
        >>> classifier(x).argmax(1)
        tensor([1])
        >>> bool(classifier.orthonormality_penalty() < 1e-6)
        True
    """

    threshold: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        subspace_dim: int,
        *,
        temperature: float = 1.0,
        normalize: bool = False,
        orthogonality: Orthogonality = "penalty",
        precise: bool = False,
    ) -> None:
        super().__init__()
        where = "SubspacePrototypeClassifier"
        check_size(where, "in_features", in_features)
        check_size(where, "num_classes", num_classes)
        check_size(where, "subspace_dim", subspace_dim)
        if subspace_dim > in_features:
            raise ValueError(
                f"{where}: expected subspace_dim of at most in_features = {in_features}, got {subspace_dim}"
            )
        check_range(where, "temperature", temperature, 0.0, low_open=True)
        check_option(where, "orthogonality", orthogonality, ("penalty", "exact"))
        self.in_features, self.num_classes, self.subspace_dim = in_features, num_classes, subspace_dim
        self.temperature, self.normalize = temperature, normalize
        self.orthogonality, self.precise = orthogonality, precise
        self.weight = nn.Parameter(torch.empty(num_classes, subspace_dim, in_features))
        self.register_buffer("threshold", torch.tensor(torch.inf))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw orthonormal bases anew, and forget the threshold."""
        nn.init.constant_(self.threshold, torch.inf)
        if self.num_classes * self.subspace_dim <= self.in_features:
            nn.init.orthogonal_(self.weight.flatten(0, 1))
        else:
            for basis in self.weight:
                nn.init.orthogonal_(basis)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return (
            f"{self.in_features}, {self.num_classes}, {self.subspace_dim}, temperature={self.temperature}, "
            f"normalize={self.normalize}, orthogonality={self.orthogonality!r}, precise={self.precise}"
        )

    @property
    def basis(self) -> Tensor:
        """The bases ``(C, K, D)``: the parameter, or its rows orthonormalised."""
        if self.orthogonality == "penalty":
            return self.weight
        with no_autocast(self.weight):
            q: Tensor = torch.linalg.qr(widen(self.weight).mT)[0].mT
        return q

    def residuals(self, x: Tensor) -> Tensor:
        """Return the residuals ``(B, C)`` of ``x (B, D)``, float32 (float64 for float64).

        Raises:
            TypeError: If ``x`` is not floating.
            ValueError: If its shape does not fit.
        """
        check_floating("SubspacePrototypeClassifier", "x", x)
        check_shape("SubspacePrototypeClassifier", "x", x, B=None, D=self.in_features)
        if not self.normalize:
            return subspace_residual(x, self.basis, precise=self.precise)
        with no_autocast(x):
            unit, known = _unit_rows(x.to(wide_dtype(x)) if self.precise else widen(x))
            found = subspace_residual(unit, self.basis, precise=self.precise)
            return torch.where(known, found, 1.0).to(torch.promote_types(widen(x).dtype, widen(self.weight).dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, C)`` of ``x (B, D)``, float32 (float64 for float64).

        Raises:
            TypeError: If ``x`` is not floating.
            ValueError: If its shape does not fit.
        """
        return -self.residuals(x) / self.temperature

    def orthonormality_penalty(self) -> Tensor:
        """Return :func:`~mmrobust.functional.orthonormality_penalty` of the bases, for the loss; 0 for "exact"."""
        if self.orthogonality == "exact":
            return widen(self.weight).new_zeros(())
        return orthonormality_penalty(self.weight)

    def separation(self) -> Tensor:
        """Return :func:`~mmrobust.functional.subspace_separation` of the bases, in [0, 1] for orthonormal ones."""
        return subspace_separation(self.basis)

    @torch.no_grad()
    def fit_threshold(self, x: Tensor, labels: Tensor | None = None, *, accept: float = 0.95) -> Tensor:
        """Choose the residual beyond which :meth:`predict` rejects, from validation rows of known classes.

        Args:
            x: Floating tensor ``(B, D)``, B > 0.
            labels: Integer tensor ``(B,)``: only rows that are classified rightly count, so that 1 - ``accept`` is
                the share of them that is rejected in vain (false rejections). ``None``: all rows count, so that
                ``accept`` is the coverage.
            accept: Share of the counted rows to accept at least, in (0, 1]. Rows with NaN or Inf never count. It holds
                for the module as it is: fit after ``.half()``, which moves residuals.

        Returns:
            The threshold, which is kept (and saved) as the buffer ``threshold``: the residual of a row, rounded up to
            the dtype of the buffer; inf where no row counts.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape is wrong, or ``accept`` out of range.
        """
        where = "SubspacePrototypeClassifier.fit_threshold"
        check_range(where, "accept", accept, 0.0, 1.0, low_open=True)
        residual, nearest = self.residuals(x).min(1)
        if not x.shape[0]:
            raise ValueError(f"{where}: expected x with a row at least, got shape {tuple(x.shape)}")
        if labels is not None:
            check_integers(where, "labels", labels)
            check_shape(where, "labels", labels, B=x.shape[0])
            residual = residual[nearest == labels]
        residual = residual[residual.isfinite()]
        if not len(residual):
            return self.threshold.fill_(torch.inf)
        # Products such as .07 * 100 are a rounding error above the number that is meant.
        place = min(max(math.ceil(accept * len(residual) - 1e-9), 1), len(residual))
        limit = residual.sort().values[place - 1]
        self.threshold.copy_(limit)
        if self.threshold < limit:
            self.threshold.copy_(torch.nextafter(self.threshold, torch.full_like(self.threshold, torch.inf)))
        return self.threshold

    def predict(self, x: Tensor, *, threshold: float | Tensor | None = None) -> SubspacePrediction:
        """Return the nearest class of each row of ``x (B, D)``, or -1 where its residual is above the threshold.

        ``threshold``: a residual; ``None`` = that of :meth:`fit_threshold`, without which nothing is rejected.

        Raises:
            TypeError: If ``x`` is not floating.
            ValueError: If its shape does not fit.
        """
        residual, nearest = self.residuals(x).min(1)
        limit = self.threshold if threshold is None else threshold
        return SubspacePrediction(torch.where(residual <= limit, nearest, -1), residual)


def _unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of length one, zero where there is no direction, and which have one ``(B, 1)``; NaN stays NaN."""
    # By the largest entry first: the squares of 1e30 do not fit into float32. A direction does not depend on it.
    scale = x.detach().abs().amax(1, keepdim=True)
    scaled = x / torch.where(scale > 0, scale, 1.0)
    norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    known = ~(norm * scale <= NO_DIRECTION)
    return torch.where(known, scaled, 0.0) / torch.where(known, norm, 1.0), known
