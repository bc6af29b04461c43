"""NT-Xent between two views of the same samples."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..._precision import no_autocast
from ..._similarity.dense import dense_rows
from ..._similarity.pairs import self_logsumexp
from ..._similarity.positives import partner_energy
from ._pairs import Options, PairOptions, Pairs, checked_pairs
from ._shared import ContrastiveOutput, Gather, Impl, Reduction, TemperatureModule, check_choices


@overload
def nt_xent_loss(
    z1: Tensor, z2: Tensor, *, return_anchors: Literal[False] = False, **options: Unpack[PairOptions]
) -> Tensor: ...
@overload
def nt_xent_loss(
    z1: Tensor, z2: Tensor, *, return_anchors: Literal[True], **options: Unpack[PairOptions]
) -> ContrastiveOutput: ...
def nt_xent_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    present: Tensor | None = None,
    weight: Tensor | None = None,
    negatives: Tensor | None = None,
    negatives_present: Tensor | None = None,
    negatives_excluded: Tensor | None = None,
    reduction: Reduction = "mean",
    gather: Gather = False,
    impl: Impl = "auto",
    validate: bool = False,
    return_anchors: bool = False,
) -> Tensor | ContrastiveOutput:
    r"""Compute NT-Xent: each view should be more similar to the other view of its sample than to all other rows.

    For the 2B rows z of both views, with :math:`p(i)` the other view of row i,

    .. math:: \ell_i = -\log \frac{e^{z_i z_{p(i)} / \tau}}{\sum_{j \ne i} e^{z_i z_j / \tau}}

    and the mean over all rows. Memory grows with B, not with its square.

    Args:
        z1: Floating tensor ``(B, D)``, one view of each sample; needs no normalisation. Vectors shorter than 1e-12 have
            no direction: their similarities and gradients are 0.
        z2: Floating tensor ``(B, D)``, the other view.
        temperature: :math:`\tau > 0`; a scalar tensor gets its gradient.
        present: Bool or integer 0/1 ``(B,)``, True = the sample exists. Other rows are never read.
        weight: Floating tensor ``(B,)`` of samples: the mean becomes a weighted one. With ``gather`` it gets no
            gradient.
        negatives: Floating tensor ``(N, D)`` of extra keys that are nobody's positive.
        negatives_present: Bool or integer 0/1 ``(N,)``, True = the negative exists.
        negatives_excluded: Bool or integer 0/1 ``(B, N)``, True = the pair does not exist: what a bank holds of the
            sample itself, false negatives.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, the losses of the rows of ``z1`` and ``z2`` ``(2, B)``.
        gather: False, True or ``"ring"``, as in :func:`info_nce_loss`.
        impl: ``"torch"``, ``"triton"`` (raises where it cannot run), or ``"auto"``.
        validate: Check values, which waits for the device: vectors are finite, weights finite and not negative, a
            temperature that is a tensor positive.
        return_anchors: Return a :class:`ContrastiveOutput` with the number of rows that count.

    Returns:
        A float32 scalar (float64 for float64), or ``(2, B)``; 0 and attached to the graph without a sample.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape, an option or the temperature is wrong.
        RuntimeError: If the loss is differentiated twice, or ``impl="triton"`` cannot run.

    Source: Chen et al., SimCLR, arXiv:2002.05709, eq. 1.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
        >>> nt_xent_loss(z, z, temperature=1.0)
        tensor(0.5514)
    """
    options = Options(
        temperature,
        present,
        weight,
        negatives,
        negatives_present,
        negatives_excluded,
        reduction,
        gather,
        impl,
        validate,
    )
    pairs = checked_pairs("nt_xent_loss", ("z1", z1), ("z2", z2), options)
    with no_autocast(z1):
        output = (
            _small(pairs, options)
            if pairs.is_small(2 * pairs.size)
            else pairs.reduce(_row_losses(pairs).view(2, -1), options)
        )
    return output if return_anchors else output.loss


def _small(pairs: Pairs, options: Options) -> ContrastiveOutput:
    """Return the loss of a batch whose pairs fit into one matrix."""
    weight, anchors = pairs.weights((2, pairs.size), options)
    left_out = None if pairs.valid is None else (~pairs.valid).repeat(2).expand(2 * pairs.size, -1)
    x, value = torch.cat(pairs.parts), pairs.temperature.value
    return ContrastiveOutput(dense_rows(x, value, None, None, weight.flatten(), left_out), anchors)


def _row_losses(pairs: Pairs) -> Tensor:
    """Return the loss of every row of both views ``(2B,)``."""
    value, least = pairs.temperature
    valid = None if pairs.valid is None else pairs.valid.repeat(2)
    both, extra = pairs.units()
    if pairs.gather:
        rows = pairs.over_ranks(both, both, valid, own_pair=True)
    else:
        rows = self_logsumexp(both, value, valid=valid, least=least, impl=pairs.impl)
    return pairs.with_negatives(rows, both, extra) - partner_energy(both, both, pairs.size) / value


class NTXentLoss(nn.Module):
    """Apply :func:`nt_xent_loss`, with a fixed or a learned temperature.

    Args:
        temperature: The temperature, or where a learned one starts.
        learnable_temperature: Learn its logarithm (``temperature.log_temperature``).
        temperature_range: What a learned temperature is kept in.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        gather: False, True or ``"ring"``.
        impl: ``"auto"``, ``"torch"`` or ``"triton"``.
        validate: Check values, which waits for the device.

    Raises:
        TypeError: If the temperature is no number.
        ValueError: If it is not positive, or an option is none of the allowed ones.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
        >>> NTXentLoss(1.0)(z, z)
        tensor(0.5514)
    """

    def __init__(
        self,
        temperature: float = 0.5,
        *,
        learnable_temperature: bool = False,
        temperature_range: tuple[float, float] = (0.01, 1.0),
        reduction: Reduction = "mean",
        gather: Gather = False,
        impl: Impl = "auto",
        validate: bool = False,
    ) -> None:
        super().__init__()
        check_choices("NTXentLoss", reduction, gather, impl)
        self.temperature = TemperatureModule("NTXentLoss", temperature, learnable_temperature, temperature_range)
        self.reduction, self.gather, self.impl, self.validate = reduction, gather, impl, validate

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"reduction={self.reduction!r}, gather={self.gather!r}, impl={self.impl!r}, validate={self.validate}"

    def forward(
        self,
        z1: Tensor,
        z2: Tensor,
        *,
        present: Tensor | None = None,
        weight: Tensor | None = None,
        negatives: Tensor | None = None,
        negatives_present: Tensor | None = None,
        negatives_excluded: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of the views ``z1 (B, D)`` and ``z2 (B, D)``; see :func:`nt_xent_loss`."""
        return nt_xent_loss(
            z1,
            z2,
            temperature=self.temperature(),
            present=present,
            weight=weight,
            negatives=negatives,
            negatives_present=negatives_present,
            negatives_excluded=negatives_excluded,
            reduction=self.reduction,
            gather=self.gather,
            impl=self.impl,
            validate=self.validate,
        )
