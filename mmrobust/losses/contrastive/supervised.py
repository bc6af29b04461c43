"""The supervised contrastive loss."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor, nn
from typing_extensions import Unpack

from ..._checks import check_option
from ..._precision import no_autocast
from ..._similarity.implementation import resolve
from ._batch import Batch, Masks, check_together, checked_masks, checked_rows, supervised_values
from ._shared import (
    ContrastiveOutput,
    Gather,
    Impl,
    Reduction,
    TemperatureModule,
    as_temperature,
    check_choices,
    check_weight,
)
from ._supervised import Aggregation, Rule, SupConOptions, WithoutPositives, check_possible, compare
from ._validation import check_gather, check_values, checked


@overload
def sup_con_loss(
    features: Tensor,
    labels: Tensor | None = None,
    *,
    return_anchors: Literal[False] = False,
    **options: Unpack[SupConOptions],
) -> Tensor: ...
@overload
def sup_con_loss(
    features: Tensor, labels: Tensor | None = None, *, return_anchors: Literal[True], **options: Unpack[SupConOptions]
) -> ContrastiveOutput: ...
def sup_con_loss(
    features: Tensor,
    labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    positives: Tensor | None = None,
    excluded: Tensor | None = None,
    present: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    key_present: Tensor | None = None,
    key_excluded: Tensor | None = None,
    aggregation: Aggregation = "out",
    without_positives: WithoutPositives = "skip",
    reduction: Reduction = "mean",
    gather: Gather = False,
    impl: Impl = "auto",
    validate: bool = False,
    return_anchors: bool = False,
) -> Tensor | ContrastiveOutput:
    r"""Compute the supervised contrastive loss: rows of a class should be more similar to each other than to others.

    For unit vectors :math:`z_i`, the positives :math:`P(i)` of row i and all keys :math:`A(i)` it is compared with,
    never itself,

    .. math:: \ell_i = \frac{1}{|P(i)|} \sum_{p \in P(i)}
              -\log \frac{e^{z_i z_p / \tau}}{\sum_{a \in A(i)} e^{z_i z_a / \tau}}

    and the mean over rows that have a positive. Memory grows with the number of rows, not with its square: scores are
    computed in blocks, again in the backward pass, and positives by label come from sums over classes.

    Args:
        features: Floating tensor ``(B, D)``; needs no normalisation. Several views of a sample are several rows. Rows
            shorter than 1e-12 have no direction: their similarities and gradients are 0.
        labels: Integer tensor ``(B,)``, or bool or integer 0/1 ``(B, C)`` for several labels per row: rows with a label
            in common are positives. ``None`` only with ``positives``.
        temperature: :math:`\tau > 0`; a scalar tensor gets its gradient.
        positives: Bool or integer 0/1 ``(B, B + K)`` instead of labels, True = key j (rows, then extra keys) is a
            positive of row i. The row itself never is. Not with ``gather``.
        excluded: Bool or integer 0/1 ``(B, B + K)``, True = the pair does not exist: duplicates, false negatives. Not
            with ``gather``.
        present: Bool or integer 0/1 ``(B,)``, True = the row is real. Other rows are neither anchors nor keys and are
            never read.
        weight: Floating tensor ``(B,)``: the mean becomes a weighted one. With ``gather`` it gets no gradient.
        ignore_index: Rows (and keys) with this label, such as -100, are as good as absent; ``None`` = there are none.
            Not for several labels per row.
        keys: Floating tensor ``(K, D)`` of further keys, such as those of a :class:`~mmrobust.MemoryBank`.
        key_labels: Their labels, in the form of ``labels``.
        key_present: Bool or integer 0/1 ``(K,)``, True = the key is real.
        key_excluded: Bool or integer 0/1 ``(B, K)``, True = the pair with an extra key does not exist: what a bank
            holds of the sample itself (:meth:`~mmrobust.MemoryBank.own_slots`).
        aggregation: ``"out"``: the mean over positives outside of the logarithm, as above; ``"in"``: inside,
            :math:`-\log \frac{1}{|P|} \sum_p e^{\ldots}`.
        without_positives: ``"skip"``: rows without a positive leave the mean; ``"zero"``: they count with loss 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, the losses of all rows ``(B,)``.
        gather: ``True``: rows of all ranks of the default process group are keys too, with exact gradients; the mean is
            over all ranks, times their number, so that gradients averaged by DDP are those of one process.
            ``"ring"``: the same with blocks that travel from rank to rank, so that no rank ever holds all rows; for one
            label per row and ``aggregation="out"``. Extra keys stay on their rank.
        impl: ``"torch"``, ``"triton"`` (raises where it cannot run), or ``"auto"``.
        validate: Check values, which waits for the device: features and keys are finite, weights finite and not
            negative, several labels per row 0 or 1, a temperature that is a tensor positive.
        return_anchors: Return a :class:`ContrastiveOutput` with the number of rows that count.

    Returns:
        A float32 scalar (float64 for float64), or ``(B,)``. Without any anchor 0, attached to the graph.
        NaN or Inf in a real row makes the losses and gradients of all rows NaN (with ``gather`` of all ranks), no more.

    Raises:
        TypeError: If a dtype is wrong, such as float labels.
        ValueError: If a shape, an option or the temperature is wrong, or options exclude each other.
        RuntimeError: If the loss is differentiated twice, or ``impl="triton"`` cannot run.

    Source: Khosla et al., arXiv:2004.11362, eq. 2 (out) and 3 (in). Deviations: rows without positives leave the mean;
    no base temperature (the published code multiplies by ``temperature / base_temperature``).

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
        >>> sup_con_loss(features, torch.tensor([0, 0, 1, 1]), temperature=1.0)
        tensor(0.5514)
        >>> sup_con_loss(features[:1], torch.tensor([0]))
        tensor(0.)
    """
    where = "sup_con_loss"

    def check() -> tuple[Batch, Batch | None, Masks, Rule]:
        check_choices(where, reduction, gather, impl)
        check_option(where, "aggregation", aggregation, ("out", "in"))
        check_option(where, "without_positives", without_positives, ("skip", "zero"))
        extras = {"keys": keys, "key_labels": key_labels, "key_present": key_present, "key_excluded": key_excluded}
        check_together(where, positives, ignore_index, **extras)
        batch = checked_rows(where, features, labels, present, ignore_index, "")
        extra = None if keys is None else checked_rows(where, keys, key_labels, key_present, ignore_index, "key_")
        masks = checked_masks(where, batch, extra, gather, positives, excluded, key_excluded)
        check_weight(where, weight, features.shape[0], gather)
        resolved = resolve(where, impl, features)
        chosen = as_temperature(where, temperature, features)
        rule = Rule(chosen, aggregation, without_positives, weight, reduction, gather, resolved)
        check_possible(where, batch, masks, rule)
        return batch, extra, masks, rule

    batch, extra, masks, rule = checked(check, features, gather)
    if gather or validate:
        values = supervised_values(batch, extra, temperature, weight, labels, key_labels)
        agree = {"aggregation": aggregation, "without_positives": without_positives, "reduction": reduction}
        more = {"labels_per_row": None if labels is None else tuple(labels.shape[1:]), "impl": rule.impl}
        check_gather(where, ("features", batch.x), values, gather, validate=validate, **agree, **more)
        if validate:
            check_values(where, values, gather)
    with no_autocast(features):
        output = compare(batch, extra, masks, rule)
    return output if return_anchors else output.loss


class SupConLoss(nn.Module):
    """Apply :func:`sup_con_loss`, with a fixed or a learned temperature.

    Args:
        temperature: The temperature, or where a learned one starts.
        learnable_temperature: Learn its logarithm (``temperature.log_temperature``).
        temperature_range: What a learned temperature is kept in.
        aggregation: ``"out"`` or ``"in"``.
        without_positives: ``"skip"`` or ``"zero"``.
        ignore_index: Rows with this label are as good as absent.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        gather: False, True or ``"ring"``.
        impl: ``"auto"``, ``"torch"`` or ``"triton"``.
        validate: Check values, which waits for the device.

    Raises:
        TypeError: If the temperature is no number.
        ValueError: If an option is none of the allowed ones.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
        >>> SupConLoss(1.0)(features, torch.tensor([0, 0, 1, 1]))
        tensor(0.5514)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        learnable_temperature: bool = False,
        temperature_range: tuple[float, float] = (0.01, 1.0),
        aggregation: Aggregation = "out",
        without_positives: WithoutPositives = "skip",
        ignore_index: int | None = None,
        reduction: Reduction = "mean",
        gather: Gather = False,
        impl: Impl = "auto",
        validate: bool = False,
    ) -> None:
        super().__init__()
        where = "SupConLoss"
        check_choices(where, reduction, gather, impl)
        check_option(where, "aggregation", aggregation, ("out", "in"))
        check_option(where, "without_positives", without_positives, ("skip", "zero"))
        self.temperature = TemperatureModule(where, temperature, learnable_temperature, temperature_range)
        self.aggregation, self.without_positives, self.ignore_index = aggregation, without_positives, ignore_index
        self.reduction, self.gather, self.impl, self.validate = reduction, gather, impl, validate

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return (
            f"aggregation={self.aggregation!r}, without_positives={self.without_positives!r}, "
            f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, gather={self.gather!r}, "
            f"impl={self.impl!r}, validate={self.validate}"
        )

    def forward(
        self,
        features: Tensor,
        labels: Tensor | None = None,
        *,
        positives: Tensor | None = None,
        excluded: Tensor | None = None,
        present: Tensor | None = None,
        weight: Tensor | None = None,
        keys: Tensor | None = None,
        key_labels: Tensor | None = None,
        key_present: Tensor | None = None,
        key_excluded: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of ``features (B, D)`` with ``labels (B,)``; see :func:`sup_con_loss`."""
        return sup_con_loss(
            features,
            labels,
            temperature=self.temperature(),
            positives=positives,
            excluded=excluded,
            present=present,
            weight=weight,
            ignore_index=self.ignore_index,
            keys=keys,
            key_labels=key_labels,
            key_present=key_present,
            key_excluded=key_excluded,
            aggregation=self.aggregation,
            without_positives=self.without_positives,
            reduction=self.reduction,
            gather=self.gather,
            impl=self.impl,
            validate=self.validate,
        )
