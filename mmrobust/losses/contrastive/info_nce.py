"""InfoNCE between two sets of vectors whose rows are pairs."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from ..._precision import no_autocast
from ..._similarity.dense import dense_pairs
from ..._similarity.pairs import both_logsumexp, row_logsumexp
from ..._similarity.positives import partner_energy
from ..._similarity.units import Units
from ._pairs import Options, PairOptions, Pairs, checked_pairs
from ._shared import ContrastiveOutput, Gather, Impl, Reduction, TemperatureModule, check_choices


@overload
def info_nce_loss(
    query: Tensor,
    key: Tensor,
    *,
    return_anchors: Literal[False] = False,
    symmetric: bool = True,
    **options: Unpack[PairOptions],
) -> Tensor: ...
@overload
def info_nce_loss(
    query: Tensor, key: Tensor, *, return_anchors: Literal[True], symmetric: bool = True, **options: Unpack[PairOptions]
) -> ContrastiveOutput: ...
def info_nce_loss(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    symmetric: bool = True,
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
    r"""Compute InfoNCE: each query should be more similar to its own key than to the other keys of the batch.

    With unit vectors :math:`q_i, k_i`, extra negatives :math:`n_j` and temperature :math:`\tau`

    .. math:: \ell_i = -\log \frac{e^{q_i k_i / \tau}}{\sum_j e^{q_i k_j / \tau} + \sum_j e^{q_i n_j / \tau}}

    and the mean over the pairs that are present. ``symmetric`` averages it with the direction from keys to queries,
    which has no extra negatives (they are keys). Memory grows with B, not with its square.

    Args:
        query: Floating tensor ``(B, D)``; needs no normalisation. Vectors shorter than 1e-12 have no direction: their
            similarities and gradients are 0.
        key: Floating tensor ``(B, D)``; row ``i`` is the positive of query ``i``.
        temperature: :math:`\tau > 0`; a scalar tensor gets its gradient.
        symmetric: Average both directions.
        present: Bool or integer 0/1 ``(B,)``, True = the pair exists. Other rows are neither queries nor keys and are
            never read.
        weight: Floating tensor ``(B,)``: the mean becomes a weighted one. With ``gather`` it gets no gradient.
        negatives: Floating tensor ``(N, D)`` of extra keys that are nobody's positive, such as a memory bank's.
        negatives_present: Bool or integer 0/1 ``(N,)``, True = the negative exists.
        negatives_excluded: Bool or integer 0/1 ``(B, N)``, True = the pair does not exist: what a bank holds of the
            sample itself, false negatives.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, the losses of all pairs ``(B,)``.
        gather: ``True``: pairs of all ranks of the default process group are compared, with exact gradients; the mean
            is over all ranks, times their number, so that gradients averaged by DDP are those of one process.
            ``"ring"``: the same with blocks that travel from rank to rank, so that no rank ever holds all of them.
        impl: ``"torch"``, ``"triton"`` (raises where it cannot run), or ``"auto"``.
        validate: Check values, which waits for the device: vectors are finite, weights finite and not negative, a
            temperature that is a tensor positive.
        return_anchors: Return a :class:`ContrastiveOutput` with the number of pairs that count.

    Returns:
        A float32 scalar (float64 for float64), or ``(B,)``. Without a pair it is 0 and attached to the graph. A single
        pair without extra negatives has nothing to be told from: its loss is 0 up to rounding.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape, an option or the temperature is wrong.
        RuntimeError: If the loss is differentiated twice, or ``impl="triton"`` cannot run.

    Source: van den Oord et al., arXiv:1807.03748, eq. 4; symmetric as Radford et al., arXiv:2103.00020, figure 3.

    Example:
        >>> query = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
        >>> info_nce_loss(query, query, temperature=1.0)
        tensor(0.3133)
        >>> info_nce_loss(query[:1], query[:1], negatives=query[1:], temperature=1.0, symmetric=False)
        tensor(0.3133)
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
    pairs = checked_pairs("info_nce_loss", ("query", query), ("key", key), options, symmetric)
    with no_autocast(query):
        if pairs.is_small(pairs.size):
            output = _small(pairs, symmetric, options)
        else:
            output = pairs.reduce(_row_losses(pairs, symmetric), options)
    return output if return_anchors else output.loss


def _small(pairs: Pairs, symmetric: bool, options: Options) -> ContrastiveOutput:
    """Return the loss of a batch whose pairs fit into one matrix."""
    weight, anchors = pairs.weights((pairs.size,), options)
    sets, value = torch.stack(pairs.parts), pairs.temperature.value
    return ContrastiveOutput(dense_pairs(sets, 0, 1, value, pairs.valid, weight, symmetric), anchors)


def _row_losses(pairs: Pairs, symmetric: bool) -> Tensor:
    """Return the loss of every pair ``(B,)``."""
    value = pairs.temperature.value
    both, extra = pairs.units()
    queries, keys = both.split(pairs.size)
    rows, columns = _over_pairs(pairs, queries, keys, symmetric)
    rows = pairs.with_negatives(rows, queries, extra)
    return ((rows + columns) / 2 if symmetric else rows) - partner_energy(queries, keys) / value


def _over_pairs(pairs: Pairs, queries: Units, keys: Units, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return the logsumexp of each query over all keys and, if ``symmetric``, of each key over all queries."""
    value, least = pairs.temperature
    valid = pairs.valid
    if pairs.gather:
        rows = pairs.over_ranks(queries, keys, valid)
        return rows, pairs.over_ranks(keys, queries, valid) if symmetric else rows
    if symmetric:
        return both_logsumexp(queries, keys, value, query_valid=valid, key_valid=valid, least=least, impl=pairs.impl)
    rows = row_logsumexp(queries, keys, value, key_valid=valid, least=least, impl=pairs.impl)
    return rows, rows


class InfoNCELoss(nn.Module):
    """Apply :func:`info_nce_loss`, with a fixed or a learned temperature.

    Args:
        temperature: The temperature, or where a learned one starts.
        symmetric: Average both directions.
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
        >>> query = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
        >>> InfoNCELoss(1.0)(query, query)
        tensor(0.3133)
    """

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        symmetric: bool = True,
        learnable_temperature: bool = False,
        temperature_range: tuple[float, float] = (0.01, 1.0),
        reduction: Reduction = "mean",
        gather: Gather = False,
        impl: Impl = "auto",
        validate: bool = False,
    ) -> None:
        super().__init__()
        check_choices("InfoNCELoss", reduction, gather, impl)
        self.temperature = TemperatureModule("InfoNCELoss", temperature, learnable_temperature, temperature_range)
        self.symmetric, self.reduction, self.gather = symmetric, reduction, gather
        self.impl, self.validate = impl, validate

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return (
            f"symmetric={self.symmetric}, reduction={self.reduction!r}, gather={self.gather!r}, impl={self.impl!r}, "
            f"validate={self.validate}"
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        *,
        present: Tensor | None = None,
        weight: Tensor | None = None,
        negatives: Tensor | None = None,
        negatives_present: Tensor | None = None,
        negatives_excluded: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of ``query (B, D)`` against ``key (B, D)``; see :func:`info_nce_loss`."""
        return info_nce_loss(
            query,
            key,
            temperature=self.temperature(),
            symmetric=self.symmetric,
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
