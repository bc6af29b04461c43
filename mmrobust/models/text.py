"""Texts: any token encoder, calibrated tokens, and contrastive learning in two ways."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .._checks import as_mask, check_integers, check_option, check_range, check_shape, check_size, check_tensor
from .._precision import widen
from ..asrm import ContrastiveASRM
from ..encoders import ProjectionHead
from ..losses import FocalLabelSmoothingLoss, nt_xent_loss, sup_con_loss
from ..masking import masked_mean, zero_missing

Pooling = Literal["mean", "cls"]
Encoder = Callable[..., Any]


class TextClassifierOutput(NamedTuple):
    """What the model returns.

    ``logits (B, C)``; ``pooled (B, H)``; calibrated ``tokens (B, T, H)``; their ``gate`` where asked for; ``states``,
    the tokens before the calibration.
    """

    logits: Tensor
    pooled: Tensor
    tokens: Tensor
    gate: Tensor | None
    states: Tensor


class TextLossOutput(NamedTuple):
    """The weighted sum ``loss``, its parts before their weights (scalars, 0 for what is off), and ``logits (B, C)``."""

    loss: Tensor
    classification: Tensor
    supervised: Tensor
    self_supervised: Tensor
    class_separation: Tensor
    logits: Tensor


class DualContrastiveTextClassifier(nn.Module):
    r"""Classify texts from the tokens of any encoder, and train with two contrastive losses beside a focal one.

    .. math:: L = \lambda_f L_\mathrm{focal} + \lambda_s L_\mathrm{SupCon} + \lambda_u L_\mathrm{NT\text{-}Xent}
              + \lambda_c L_\mathrm{centres}

    Tokens go through dropout and the calibration, are pooled, and classified by a linear layer. The contrastive losses
    see the pooled vectors of two passes with different dropout through a projection head each: SupCon takes rows of a
    class as positives, NT-Xent the two views of a text. All weights and temperatures are fixed: a weight that is
    learned while the loss is minimised only shrinks.

    Args:
        encoder: A callable ``(inputs, mask) -> (B, T, H)``, or a model of Hugging Face's transformers, called as
            ``encoder(input_ids=inputs, attention_mask=mask).last_hidden_state``; ``None``: inputs are such states.
        hidden_features: Width H.
        num_classes: Number of classes C.
        asrm: A module called as :class:`~mmrobust.SpanAwareASRM` is; ``None`` = tokens stay as they are.
        pooling: ``"mean"`` over real tokens or ``"cls"``, the first real token.
        projection_features: Width of the space of the contrastive losses.
        dropout: Dropout probability on the tokens of the encoder and on the pooled vector.
        classification_weight: :math:`\lambda_f`.
        supervised_weight: :math:`\lambda_s`; 0 = off.
        self_supervised_weight: :math:`\lambda_u`; 0 = off. With both off a batch passes once.
        class_separation_weight: :math:`\lambda_c` of :meth:`ContrastiveASRM.class_loss
            <mmrobust.ContrastiveASRM.class_loss>`; without such a module it has no effect.
        supervised_temperature: Temperature of SupCon.
        self_supervised_temperature: Temperature of NT-Xent.
        gamma: Focusing of the focal loss; 0 = cross entropy.
        class_weight: Weights of the classes ``(C,)`` in the focal loss.
        smoothing: Label smoothing in the focal loss.

    Raises:
        TypeError: If the encoder cannot be called.
        ValueError: If a size or an option does not fit.

    Source: in the manner of dual contrastive learning, Lu et al., arXiv:2307.05578, which gives no weights and no
    code: its numbers are not claimed.

    Example:
        >>> embed = nn.Embedding(100, 8)
        >>> model = DualContrastiveTextClassifier(lambda ids, mask: embed(ids), 8, num_classes=3)
        >>> ids, mask = torch.randint(100, (4, 6)), torch.ones(4, 6, dtype=torch.bool)
        >>> model(ids, mask).logits.shape
        torch.Size([4, 3])
        >>> parts = model.loss(ids, mask, torch.tensor([0, 1, 0, 2]))
        >>> parts.loss.backward()
    """

    def __init__(
        self,
        encoder: Encoder | None,
        hidden_features: int,
        num_classes: int,
        *,
        asrm: nn.Module | None = None,
        pooling: Pooling = "mean",
        projection_features: int = 128,
        dropout: float = 0.1,
        classification_weight: float = 1.0,
        supervised_weight: float = 0.1,
        self_supervised_weight: float = 0.1,
        class_separation_weight: float = 0.1,
        supervised_temperature: float = 0.1,
        self_supervised_temperature: float = 0.1,
        gamma: float = 2.0,
        class_weight: Sequence[float] | Tensor | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        where = "DualContrastiveTextClassifier"
        if encoder is not None and not callable(encoder):
            raise TypeError(f"{where}: expected encoder to be callable or None, got {type(encoder).__name__}")
        check_size(where, "hidden_features", hidden_features)
        check_size(where, "num_classes", num_classes)
        check_option(where, "pooling", pooling, ("mean", "cls"))
        check_range(where, "dropout", dropout, 0.0, 1.0, high_open=True)
        self.classification_weight, self.supervised_weight = classification_weight, supervised_weight
        self.self_supervised_weight, self.class_separation_weight = self_supervised_weight, class_separation_weight
        self.supervised_temperature = supervised_temperature
        self.self_supervised_temperature = self_supervised_temperature
        _check_classes(where, num_classes, asrm, class_weight)
        for name in _WEIGHTS:
            check_range(where, name, getattr(self, name), 0.0)
        for name in _TEMPERATURES:
            check_range(where, name, getattr(self, name), 0.0, low_open=True)
        self.hidden_features, self.num_classes, self.pooling = hidden_features, num_classes, pooling
        self.encoder, self.asrm = encoder, asrm
        self.by_name = encoder is not None and _is_transformer(encoder)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_features, num_classes)
        self.supervised_head = ProjectionHead(hidden_features, projection_features)
        self.self_supervised_head = ProjectionHead(hidden_features, projection_features)
        # A head that no loss reads wants no gradient, or DistributedDataParallel would wait for it.
        self.supervised_head.requires_grad_(supervised_weight > 0)
        self.self_supervised_head.requires_grad_(self_supervised_weight > 0)
        self.focal = FocalLabelSmoothingLoss(gamma, smoothing, weight=class_weight)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        weights = ", ".join(f"{name}={getattr(self, name)}" for name in _WEIGHTS)
        return f"{self.hidden_features}, {self.num_classes}, pooling={self.pooling!r}, {weights}"

    def forward(self, inputs: Tensor, mask: Tensor | None = None, *, return_gate: bool = False) -> TextClassifierOutput:
        """Classify ``inputs``, token ids ``(B, T)`` or states ``(B, T, H)``, with ``mask (B, T)``, True = real.

        ``return_gate`` returns the gate of the calibration ``(B, T, H)``, None without one. A text without a real token
        has a zero vector, and the logits of the bias.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape is wrong, also of what the encoder returns.
        """
        where = "DualContrastiveTextClassifier"
        keep = _checked_mask(where, inputs, mask)
        tokens = self._encode(inputs, keep)
        check_shape(where, "the encoder's output", tokens, B=inputs.shape[0], T=inputs.shape[1], H=self.hidden_features)
        states = tokens = self.dropout(zero_missing(tokens, keep))
        gate: Tensor | None = None
        if self.asrm is not None and return_gate:
            tokens, gate = self.asrm(tokens, keep, return_gate=True)
        elif self.asrm is not None:
            tokens = self.asrm(tokens, keep)
        pooled = masked_mean(tokens, keep) if self.pooling == "mean" else _first(tokens, keep)
        return TextClassifierOutput(self.head(self.dropout(pooled)), pooled, tokens, gate, states)

    def loss(self, inputs: Tensor, mask: Tensor | None, labels: Tensor) -> TextLossOutput:
        """Return the training loss of a batch with ``labels (B,)`` in [0, C); -100 = no label.

        With a contrastive weight the batch passes twice, as one batch of 2B texts whose dropout differs; a text
        without a label still is its own positive in NT-Xent. ``logits`` are those of the first pass.

        Raises:
            TypeError: If a dtype is wrong.
            ValueError: If a shape is wrong.
        """
        where = "DualContrastiveTextClassifier.loss"
        keep = _checked_mask(where, inputs, mask)
        check_integers(where, "labels", labels)
        check_shape(where, "labels", labels, B=inputs.shape[0])
        size, views = inputs.shape[0], 2 if self.supervised_weight or self.self_supervised_weight else 1
        keep = None if keep is None else keep.repeat(views, 1)
        both, output = labels.repeat(views), self(torch.cat([inputs] * views), keep)
        real = None if keep is None else keep.any(1)
        nothing = widen(output.logits.new_zeros(()))
        supervised = self_supervised = separation = nothing
        if self.supervised_weight:
            rows = self.supervised_head(output.pooled)
            supervised = sup_con_loss(
                rows, both, present=real, ignore_index=-100, temperature=self.supervised_temperature
            )
        if self.self_supervised_weight:
            rows, there = self.self_supervised_head(output.pooled), None if real is None else real[:size]
            self_supervised = nt_xent_loss(
                rows[:size], rows[size:], present=there, temperature=self.self_supervised_temperature
            )
        if self.class_separation_weight and isinstance(self.asrm, ContrastiveASRM):
            separation = self.asrm.class_loss(output.tokens, both, keep)
        classification = self.focal(output.logits, both)
        parts = (classification, supervised, self_supervised, separation)
        total = sum((getattr(self, name) * part for name, part in zip(_WEIGHTS, parts, strict=True)), nothing)
        return TextLossOutput(total, *parts, output.logits[:size])

    def _encode(self, inputs: Tensor, keep: Tensor | None) -> Tensor:
        """Return the states of all tokens; a text without a real token shows its first one, or attention is NaN."""
        if self.encoder is None:
            return inputs
        if not torch.compiler.is_compiling() and not inputs.numel():  # which encoders refuse
            return self.head.weight.new_zeros(*inputs.shape[:2], self.hidden_features)
        seen = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device) if keep is None else keep
        empty = ~seen.any(1, keepdim=True) & (torch.arange(seen.shape[1], device=seen.device) == 0)
        output: Any
        if self.by_name:
            output = self.encoder(input_ids=inputs, attention_mask=(seen | empty).long())
        else:
            output = self.encoder(inputs, seen | empty)
        states: Tensor = getattr(output, "last_hidden_state", output)
        return states


_WEIGHTS = ("classification_weight", "supervised_weight", "self_supervised_weight", "class_separation_weight")
_TEMPERATURES = ("supervised_temperature", "self_supervised_temperature")


def _check_classes(
    where: str, num_classes: int, asrm: nn.Module | None, class_weight: Sequence[float] | Tensor | None
) -> None:
    """Raise unless what knows of classes knows of as many."""
    if isinstance(asrm, ContrastiveASRM) and asrm.num_classes != num_classes:
        raise ValueError(f"{where}: expected an asrm of num_classes = {num_classes} classes, got {asrm.num_classes}")
    if class_weight is not None and len(class_weight) != num_classes:
        raise ValueError(f"{where}: expected class_weight of shape (C,) = ({num_classes},), got {len(class_weight)}")


def _is_transformer(encoder: Encoder) -> bool:
    """Return whether an encoder names its arguments as those of Hugging Face do."""
    called = encoder.forward if isinstance(encoder, nn.Module) else encoder
    try:
        names = inspect.signature(called).parameters.keys()
    except ValueError:  # some built-in functions have none
        return False
    return {"input_ids", "attention_mask"} <= names


def _checked_mask(where: str, inputs: Tensor, mask: Tensor | None) -> Tensor | None:
    check_tensor(where, "inputs", inputs)
    if inputs.dim() < 2:
        raise ValueError(f"{where}: expected inputs of shape (B, T) or (B, T, H), got {tuple(inputs.shape)}")
    return as_mask(where, "mask", mask, B=inputs.shape[0], T=inputs.shape[1])


def _first(tokens: Tensor, keep: Tensor | None) -> Tensor:
    """Return the first real token of each text ``(B, H)``, zeros without one."""
    if keep is None:
        return tokens[:, :1].sum(1)
    return zero_missing(tokens, keep & (keep.cumsum(1) == 1)).sum(1)
