"""The loss that teaches a log-variance what is spoilt."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import as_mask, check_floating, check_shape, check_tensor
from .._precision import no_autocast, widen
from ..masking import zero_missing

_SURELY_CLEAN = 1e-30  # its logarithm is finite


def quality_loss(logvar: Tensor, spoilt: Tensor, present: Tensor | None = None) -> Tensor:
    r"""Compare log-variances with how much is spoilt: binary cross-entropy of :math:`1 - e^{-\ell}` with a share.

    An unspoilt modality costs :math:`\ell`, a spoilt one :math:`-\log(1 - e^{-\ell})`, one whose power is noise by a
    share s the mixture of both, which is least where the precision :math:`e^{-\ell}` is 1 - s. Negative log-variances
    count as 0.

    Args:
        logvar: Floating ``(B, M)``, as :class:`ModalityQuality` gives it.
        spoilt: Bool or integer 0/1 ``(B, M)``, True = the modality of this row was spoilt; or floating, the share in
            [0, 1] that is no signal, as :func:`spoil_rows` tells it. No gradient passes to it.
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
    check_shape(where, "spoilt", spoilt, B=batch, M=count)
    if not spoilt.is_floating_point():
        flags = as_mask(where, "spoilt", spoilt, B=batch, M=count)
        assert flags is not None
        spoilt = flags
    keep = as_mask(where, "present", present, B=batch, M=count)
    with no_autocast(logvar):
        x = widen(zero_missing(logvar, keep))
        x = x.clamp(min=_SURELY_CLEAN)
        bad = zero_missing(spoilt.detach(), keep).to(x.dtype)
        # What is wholly spoilt costs nothing at an infinite log-variance, and zero times infinity is NaN.
        loss = bad * -torch.log(-torch.expm1(-x)) + torch.where(bad < 1.0, (1.0 - bad) * x, 0.0)
        if keep is None:
            return loss.sum() / max(loss.numel(), 1)
        return zero_missing(loss, keep).sum() / keep.sum().clamp(min=1)
