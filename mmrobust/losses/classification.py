"""Cross-entropy with a focal factor, label smoothing, or both: one formula, three names.

With ``p = softmax(logits)``, class weights ``w`` and a smoothed target distribution ``q`` an item costs

    sum_k  w_k q_k (1 - p_k)^gamma (-log p_k)

``gamma = 0`` and ``smoothing = 0`` make it ``torch.nn.functional.cross_entropy``. Everything is computed from
``log p`` in float32 (float64 for float64), with ``1 - p = -expm1(log p)``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ._cross_entropy import Convention, FocalFactor, Reduction, check_options, class_weights, cross_entropy


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    validate: bool = False,
) -> Tensor:
    r"""Compute the multi-class focal loss, cross-entropy that cares less about what is already right.

    .. math:: \ell_i = w_{y_i} (1 - p_{y_i})^\gamma (-\log p_{y_i}), \qquad
              L = \frac{\sum_i \ell_i}{\sum_i w_{y_i}}

    Gradients are finite for every :math:`\gamma \ge 0`, also for :math:`0 < \gamma < 1` at :math:`p = 1`.

    Args:
        logits: Floating tensor ``(B, C)`` or ``(B, C, d1, ...)``.
        target: Integer tensor ``(B,)`` or ``(B, d1, ...)`` with classes in ``[0, C)``, or ``ignore_index``.
        gamma: Focusing exponent, at least 0; 0 is cross-entropy.
        weight: Class weights ``(C,)``, floating, not negative.
        ignore_index: Label of items that do not count. Their logits are never read and get a zero gradient.
        reduction: ``"mean"`` divides by the summed class weights of the valid items, as ``F.cross_entropy`` does;
            ``"sum"``; or ``"none"`` for one value per item (0 where ignored).
        validate: Check the labels. This reads values, so it waits for the device and cannot be compiled.

    Returns:
        A float32 scalar (float64 for float64), or the shape of ``target`` for ``"none"``. Without any valid item it
        is 0 and attached to the graph, where ``F.cross_entropy`` gives NaN.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape, an option or (with ``validate``) a label is wrong.

    Source: Lin et al., arXiv:1708.02002, eq. 4 and 5, for softmax instead of sigmoid. Deviation: the weighted mean
    is normalised by the weights.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> focal_loss(logits, torch.tensor([0, 0]))
        tensor(0.8259)
        >>> focal_loss(logits, torch.tensor([0, -100]), gamma=0.0)
        tensor(0.1269)
    """
    return cross_entropy(
        "focal_loss", logits, target, weight, ignore_index, reduction, validate, gamma=gamma, smoothing=0.0
    )


def label_smoothing_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    smoothing: float = 0.1,
    convention: Convention = "uniform",
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    validate: bool = False,
) -> Tensor:
    r"""Compute cross-entropy against a smoothed target distribution.

    .. math:: \ell_i = \sum_k w_k q_{ik} (-\log p_{ik})

    ``"uniform"`` (as ``F.cross_entropy``): :math:`q_k = (1 - \epsilon) [k = y] + \epsilon / K`. ``"off_target"``:
    :math:`q_y = 1 - \epsilon` and :math:`q_k = \epsilon / (K - 1)` elsewhere. Off-target smoothing :math:`\epsilon`
    equals uniform smoothing :math:`\epsilon K / (K - 1)`. A single class leaves nothing to smooth: the loss is 0.

    Args:
        logits: Floating tensor ``(B, C)`` or ``(B, C, d1, ...)``.
        target: Integer tensor ``(B,)`` or ``(B, d1, ...)`` with classes in ``[0, C)``, or ``ignore_index``.
        smoothing: :math:`\epsilon` in [0, 1]; 0 is cross-entropy.
        convention: Where the smoothed mass goes.
        weight: Class weights ``(C,)``, floating, not negative.
        ignore_index: Label of items that do not count; their logits are never read.
        reduction: As for :func:`focal_loss`.
        validate: Check the labels (reads values).

    Returns:
        As :func:`focal_loss`; 0 and attached to the graph without any valid item.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape, an option or (with ``validate``) a label is wrong.

    Source: Szegedy et al., arXiv:1512.00567, section 7.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 0.0]])
        >>> label_smoothing_cross_entropy(logits, torch.tensor([0]), smoothing=0.15)
        tensor(0.4395)
        >>> label_smoothing_cross_entropy(logits, torch.tensor([0]), smoothing=0.1, convention="off_target")
        tensor(0.4395)
    """
    return cross_entropy(
        "label_smoothing_cross_entropy", logits, target, weight, ignore_index, reduction, validate,
        gamma=0.0, smoothing=smoothing, convention=convention,
    )  # fmt: skip


def focal_label_smoothing_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    smoothing: float = 0.1,
    convention: Convention = "uniform",
    focal_factor: FocalFactor = "per_class",
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    validate: bool = False,
) -> Tensor:
    r"""Compute the focal loss against a smoothed target distribution.

    .. math:: \ell_i = \sum_k w_k q_{ik} (1 - p_{ik})^\gamma (-\log p_{ik})

    Every class term has a factor of its own, so that an over-confident prediction (:math:`p_y \to 1`) is still
    pulled back by the other classes. ``focal_factor="target"`` is the published form
    :math:`(1 - p_y)^\gamma \sum_k w_k q_k (-\log p_k)`; its factor vanishes exactly where smoothing should act.

    Args:
        logits: Floating tensor ``(B, C)`` or ``(B, C, d1, ...)``.
        target: Integer tensor ``(B,)`` or ``(B, d1, ...)`` with classes in ``[0, C)``, or ``ignore_index``.
        gamma: Focusing exponent, at least 0.
        smoothing: :math:`\epsilon` in [0, 1].
        convention: Where the smoothed mass goes, as in :func:`label_smoothing_cross_entropy`.
        focal_factor: ``"per_class"``, or ``"target"`` for the published form.
        weight: Class weights ``(C,)``, floating, not negative.
        ignore_index: Label of items that do not count; their logits are never read.
        reduction: As for :func:`focal_loss`.
        validate: Check the labels (reads values).

    Returns:
        As :func:`focal_loss`; 0 and attached to the graph without any valid item.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape, an option or (with ``validate``) a label is wrong.

    Example:
        >>> logits = torch.tensor([[20.0, 0.0]])
        >>> focal_label_smoothing_loss(logits, torch.tensor([0]))
        tensor(1.)
        >>> focal_label_smoothing_loss(logits, torch.tensor([0]), focal_factor="target")
        tensor(0.)
    """
    return cross_entropy(
        "focal_label_smoothing_loss", logits, target, weight, ignore_index, reduction, validate,
        gamma=gamma, smoothing=smoothing, convention=convention, focal_factor=focal_factor,
    )  # fmt: skip


class FocalLoss(nn.Module):
    """Apply :func:`focal_loss` with the same arguments; class weights (also a list) are a buffer.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> FocalLoss(gamma=2.0, weight=[1.0, 3.0])(torch.zeros(4, 2), torch.tensor([0, 1, 1, -100]))
        tensor(0.1733)
    """

    weight: Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        *,
        weight: Sequence[float] | Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        validate: bool = False,
    ) -> None:
        super().__init__()
        check_options("FocalLoss", gamma, 0.0, "uniform", "per_class", reduction)
        self.gamma, self.ignore_index, self.reduction, self.validate = gamma, ignore_index, reduction, validate
        self.register_buffer("weight", class_weights("FocalLoss", weight))

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"gamma={self.gamma}, reduction={self.reduction!r}"

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of ``logits (B, C, ...)`` against ``target (B, ...)``."""
        return focal_loss(
            logits, target, gamma=self.gamma, weight=self.weight, ignore_index=self.ignore_index,
            reduction=self.reduction, validate=self.validate,
        )  # fmt: skip


class LabelSmoothingCrossEntropy(nn.Module):
    """Apply :func:`label_smoothing_cross_entropy` with the same arguments; class weights (also a list) are a buffer.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> LabelSmoothingCrossEntropy(0.1)(torch.tensor([[3.0, 0.0]]), torch.tensor([0]))
        tensor(0.1986)
    """

    weight: Tensor | None

    def __init__(
        self,
        smoothing: float = 0.1,
        *,
        convention: Convention = "uniform",
        weight: Sequence[float] | Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        validate: bool = False,
    ) -> None:
        super().__init__()
        check_options("LabelSmoothingCrossEntropy", 0.0, smoothing, convention, "per_class", reduction)
        self.smoothing, self.convention = smoothing, convention
        self.ignore_index, self.reduction, self.validate = ignore_index, reduction, validate
        self.register_buffer("weight", class_weights("LabelSmoothingCrossEntropy", weight))

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"smoothing={self.smoothing}, convention={self.convention!r}, reduction={self.reduction!r}"

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of ``logits (B, C, ...)`` against ``target (B, ...)``."""
        return label_smoothing_cross_entropy(
            logits, target, smoothing=self.smoothing, convention=self.convention, weight=self.weight,
            ignore_index=self.ignore_index, reduction=self.reduction, validate=self.validate,
        )  # fmt: skip


class FocalLabelSmoothingLoss(nn.Module):
    """Apply :func:`focal_label_smoothing_loss` with the same arguments; class weights (also a list) are a buffer.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> FocalLabelSmoothingLoss(2.0, 0.1)(torch.tensor([[3.0, 0.0]]), torch.tensor([0]))
        tensor(0.1384)
    """

    weight: Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        smoothing: float = 0.1,
        *,
        convention: Convention = "uniform",
        focal_factor: FocalFactor = "per_class",
        weight: Sequence[float] | Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        validate: bool = False,
    ) -> None:
        super().__init__()
        check_options("FocalLabelSmoothingLoss", gamma, smoothing, convention, focal_factor, reduction)
        self.gamma, self.smoothing, self.convention, self.focal_factor = gamma, smoothing, convention, focal_factor
        self.ignore_index, self.reduction, self.validate = ignore_index, reduction, validate
        self.register_buffer("weight", class_weights("FocalLabelSmoothingLoss", weight))

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        names = ("gamma", "smoothing", "convention", "focal_factor", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of ``logits (B, C, ...)`` against ``target (B, ...)``."""
        return focal_label_smoothing_loss(
            logits, target, gamma=self.gamma, smoothing=self.smoothing, convention=self.convention,
            focal_factor=self.focal_factor, weight=self.weight, ignore_index=self.ignore_index,
            reduction=self.reduction, validate=self.validate,
        )  # fmt: skip
