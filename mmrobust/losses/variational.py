"""Losses of a variational encoder: KL to the prior, KL between modalities, reconstruction, and their sum.

Variances enter as their logarithm. Exponentials continue along their tangent above an exponent of 25: bounded encoders
stay below it (a log-variance in [-10, 10] differs by at most 20), and an unbounded one gets a large finite value and a
finite gradient that brings it back, instead of Inf. Squares of numbers above 1e19 do not fit into float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn

from .._checks import as_mask, check_option, check_range, check_shape
from .._precision import no_autocast, widen
from .._schedules import EpochSchedule
from ..masking import zero_missing
from ._variational import check_gaussians, mean_errors, pair_kl, prior_kl, squared_error

FeatureReduction = Literal["sum", "mean"]


def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    present: Tensor | None = None,
    *,
    latent_reduction: FeatureReduction = "sum",
    free_bits: float = 0.0,
) -> Tensor:
    r"""Compute the KL divergence of diagonal Gaussians to the standard normal, averaged over valid rows.

    .. math:: \mathrm{KL}_h = \tfrac12 (\mu_h^2 + e^{\ell_h} - 1 - \ell_h), \qquad
              L = \operatorname*{mean}_{\text{rows}} \sum_h \max(\lambda, \mathrm{KL}_h)

    Args:
        mu: Floating tensor ``(B, H)``, ``(B, M, H)`` or with more leading dimensions.
        logvar: Log-variance :math:`\ell`, of the shape of ``mu``.
        present: Bool or integer 0/1 of the shape of ``mu`` without the last dimension; True = the row counts. Other
            rows are never read.
        latent_reduction: ``"sum"`` over H (the KL itself) or ``"mean"`` (divided by H). Choose the same kind for the
            reconstruction: a summed KL beside an averaged error drives every variance to 1.
        free_bits: :math:`\lambda \ge 0` in nats per row and dimension: what is below costs as much as
            :math:`\lambda` and gets no gradient.

    Returns:
        A float32 scalar (float64 for float64); 0 and attached to the graph without valid rows.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape or an option is wrong.

    Source: Kingma and Welling, arXiv:1312.6114, appendix B; free bits after Kingma et al., arXiv:1606.04934,
    eq. 15. Deviation: the floor applies to every row instead of the batch mean, so that rows stay independent.

    Example:
        >>> gaussian_kl(torch.ones(2, 4), torch.zeros(2, 4))
        tensor(2.)
        >>> gaussian_kl(torch.ones(2, 4), torch.zeros(2, 4), latent_reduction="mean")
        tensor(0.5000)
    """
    keep = check_gaussians("gaussian_kl", mu, logvar, present, latent_reduction)
    check_range("gaussian_kl", "free_bits", free_bits, 0.0)
    with no_autocast(mu):
        mu, logvar = (widen(zero_missing(x, keep)) for x in (mu, logvar))
        return prior_kl(mu, logvar, keep, latent_reduction, free_bits)


def cross_modal_kl(
    mu: Tensor,
    logvar: Tensor,
    present: Tensor | None = None,
    *,
    latent_reduction: FeatureReduction = "sum",
    symmetric: bool = True,
) -> Tensor:
    r"""Compute the KL divergence between the Gaussians of every two modalities, averaged over valid pairs.

    .. math:: \mathrm{KL}(a \| b) = \tfrac12 \sum_h \Big( e^{\ell_a - \ell_b} - 1 - (\ell_a - \ell_b)
              + (\mu_a - \mu_b)^2 e^{-\ell_b} \Big)

    Args:
        mu: Floating tensor ``(B, M, H)``.
        logvar: Log-variance, of the shape of ``mu``.
        present: Bool or integer 0/1 ``(B, M)``, True = present. A pair counts where both sides are present; what is
            absent is never read.
        latent_reduction: ``"sum"`` over H or ``"mean"``.
        symmetric: Average both directions. ``False`` is the published form: the earlier modality against the later
            one, which depends on their order.

    Returns:
        A float32 scalar (float64 for float64); 0 and attached to the graph without a valid pair (also for M = 1).

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape or an option is wrong.

    Source: P-RMF (ACL 2025), which adds the three pairs of its modalities. Deviations: mean over any number of pairs,
    symmetric by default.

    Example:
        >>> mu, logvar = torch.tensor([[[0.0], [2.0]]]), torch.log(torch.tensor([[[1.0], [4.0]]]))
        >>> cross_modal_kl(mu, logvar, symmetric=False)
        tensor(0.8181)
        >>> cross_modal_kl(mu, logvar)
        tensor(1.8125)
    """
    check_shape("cross_modal_kl", "mu", mu, B=None, M=None, H=None)
    keep = check_gaussians("cross_modal_kl", mu, logvar, present, latent_reduction)
    with no_autocast(mu):
        mu, logvar = (widen(zero_missing(x, keep)) for x in (mu, logvar))
        return pair_kl(mu, logvar, keep, latent_reduction, symmetric)


def reconstruction_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    feature_reduction: FeatureReduction = "sum",
) -> Tensor:
    r"""Compute the squared error of a reconstruction, averaged over what counts.

    With ``"sum"`` the squared errors of the counted features are added and divided by the number of rows (or steps)
    that have any; with ``"mean"`` they are divided by the number of counted features. The target is detached.

    Args:
        prediction: Floating tensor ``(B, D)`` or ``(B, T, D)``.
        target: Floating tensor of exactly the shape of ``prediction``: a vector never meets a sequence by broadcast.
        mask: Bool or integer 0/1 with a shape that begins that of ``prediction``: ``(B,)``, ``(B, T)``, or all of it
            (denoising: only the entries that were hidden). True = counts; the rest is never read.
        feature_reduction: ``"sum"`` or ``"mean"`` over D.

    Returns:
        A float32 scalar (float64 for float64); 0 and attached to the graph when nothing counts.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape or the option is wrong.

    Source: the error of a Gaussian decoder of fixed variance, without its factor 1/2, as published systems use it.

    Example:
        >>> target = torch.tensor([[1.0, 2.0], [float("nan"), 0.0]])
        >>> reconstruction_loss(torch.zeros(2, 2), target, torch.tensor([True, False]))
        tensor(5.)
    """
    names = ("prediction", "target", "mask")
    total, counted = squared_error("reconstruction_loss", names, prediction, target, mask, feature_reduction)
    return total / counted.clamp(min=1)


class VariationalLossOutput(NamedTuple):
    """The weighted sum and its parts (before the weights), float32 scalars."""

    total: Tensor
    kl: Tensor
    reconstruction: Tensor
    cross_kl: Tensor


class VariationalLoss(nn.Module):
    r"""Add KL to the prior, reconstruction and KL between modalities with weights.

    .. math:: L = \beta_e (w_{kl} L_{kl} + w_{cross} L_{cross}) + w_{rec} L_{rec}

    :math:`L_{kl}` is :func:`gaussian_kl` over all present rows of all modalities, :math:`L_{cross}` is
    :func:`cross_modal_kl`, and :math:`L_{rec}` the mean of :func:`reconstruction_loss` over the modalities of which
    something counts. :math:`\beta_e` warms the KL terms up by epoch: 0 before ``warmup_epochs``, then linear over
    ``ramp_epochs`` (0 = at once). The epoch is a buffer; set it with ``set_epoch``.

    Args:
        kl_weight: :math:`w_{kl} \ge 0`.
        reconstruction_weight: :math:`w_{rec} \ge 0`.
        cross_kl_weight: :math:`w_{cross} \ge 0`.
        latent_reduction: ``"mean"`` or ``"sum"`` over H in both KL terms.
        feature_reduction: ``"mean"`` or ``"sum"`` over D in the reconstruction.
        cross_reduction: ``"mean"`` or ``"sum"`` in the KL between modalities alone; ``None`` = ``latent_reduction``.
        symmetric: As in :func:`cross_modal_kl`.
        free_bits: As in :func:`gaussian_kl`.
        warmup_epochs: Epochs without KL terms.
        ramp_epochs: Epochs over which they then rise.

    Raises:
        ValueError: If an argument is out of range.

    Source: P-RMF (ACL 2025) averages throughout, with ``symmetric=False``. Systems derived from it sum the prior KL
    over H beside averages (``latent_reduction="sum", cross_reduction="mean", symmetric=False``); with their weights
    that drives every variance to 1, so all reductions agree by default.

    Example:
        >>> loss = VariationalLoss(1.0, 1.0, 1.0)
        >>> mu, logvar = torch.ones(2, 2, 4), torch.zeros(2, 2, 4)
        >>> loss(mu, logvar, [torch.zeros(2, 3), None], [torch.ones(2, 3), None])
        VariationalLossOutput(total=tensor(1.5000), kl=tensor(0.5000), reconstruction=tensor(1.), cross_kl=tensor(0.))
    """

    def __init__(
        self,
        kl_weight: float = 0.01,
        reconstruction_weight: float = 0.1,
        cross_kl_weight: float = 0.01,
        *,
        latent_reduction: FeatureReduction = "mean",
        feature_reduction: FeatureReduction = "mean",
        cross_reduction: FeatureReduction | None = None,
        symmetric: bool = True,
        free_bits: float = 0.0,
        warmup_epochs: int = 0,
        ramp_epochs: int = 0,
    ) -> None:
        super().__init__()
        self.schedule = EpochSchedule("VariationalLoss", warmup_epochs, ramp_epochs)
        self.kl_weight, self.cross_kl_weight = kl_weight, cross_kl_weight
        self.reconstruction_weight, self.free_bits = reconstruction_weight, free_bits
        for name in ("kl_weight", "reconstruction_weight", "cross_kl_weight", "free_bits"):
            check_range("VariationalLoss", name, getattr(self, name), 0.0)
        self.latent_reduction, self.feature_reduction = latent_reduction, feature_reduction
        self.cross_reduction = latent_reduction if cross_reduction is None else cross_reduction
        for name in ("latent_reduction", "feature_reduction", "cross_reduction"):
            check_option("VariationalLoss", name, getattr(self, name), ("sum", "mean"))
        self.symmetric = symmetric

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        names: tuple[str, ...] = ("kl_weight", "reconstruction_weight", "cross_kl_weight", "latent_reduction")
        names += ("feature_reduction", "cross_reduction", "symmetric", "free_bits")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch (0-based); call it at the start of every epoch."""
        self.schedule.set_epoch(epoch)

    def forward(
        self,
        mu: Tensor,
        logvar: Tensor,
        reconstructions: Sequence[Tensor | None],
        targets: Sequence[Tensor | None],
        present: Tensor | None = None,
        *,
        target_present: Tensor | None = None,
        masks: Sequence[Tensor | None] | None = None,
    ) -> VariationalLossOutput:
        """Return the loss and its parts.

        Args:
            mu: Floating tensor ``(B, M, H)``.
            logvar: Log-variance, of the shape of ``mu``.
            reconstructions: For each modality ``(B, D_m)``, ``(B, T_m, D_m)`` or ``None`` = not reconstructed.
            targets: For each modality a tensor of the same shape, detached inside, or ``None`` = unknown.
            present: Bool or integer 0/1 ``(B, M)``: rows whose ``mu`` and ``logvar`` count. True = present.
            target_present: ``(B, M)``: rows whose reconstruction counts. ``None`` = ``present``.
            masks: For each modality the steps ``(B, T_m)`` or entries that count, or ``None`` = all.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape or a length is wrong.
        """
        where = "VariationalLoss"
        check_shape(where, "mu", mu, B=None, M=None, H=None)
        keep = check_gaussians(where, mu, logvar, present, self.latent_reduction)
        batch, count = mu.shape[:2]
        rows = as_mask(where, "target_present", target_present, B=batch, M=count)
        with no_autocast(mu):
            mu, logvar = (widen(zero_missing(x, keep)) for x in (mu, logvar))
            kl = prior_kl(mu, logvar, keep, self.latent_reduction, self.free_bits)
            cross_kl = pair_kl(mu, logvar, keep, self.cross_reduction, self.symmetric)
        masks = [None] * count if masks is None else masks
        for name, values in (("reconstructions", reconstructions), ("targets", targets), ("masks", masks)):
            if len(values) != count:
                raise ValueError(f"{where}: expected {name} of length M = {count}, got {len(values)}")
        rows = keep if rows is None else rows
        reconstruction = mean_errors(where, reconstructions, targets, masks, batch, rows, self.feature_reduction)
        reconstruction = kl.new_zeros(()) if reconstruction is None else reconstruction
        prior = self.schedule.factor() * (self.kl_weight * kl + self.cross_kl_weight * cross_kl)
        return VariationalLossOutput(prior + self.reconstruction_weight * reconstruction, kl, reconstruction, cross_kl)
