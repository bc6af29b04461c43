"""Deterministic encoders and attention over modalities: the benchmark baseline and its descendants V1 to V3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from .._checks import check_option, check_range, check_size
from ..encoders import LSTMEncoder, MLPEncoder
from ..fusion import AttentionFusion
from ..masking import zero_missing
from ..presence import ModalityDropout
from ._inputs import ABSENCES, Absence, FusionClassifierOutput, InputReader, PredictionHeads


class AttentionFusionClassifier(nn.Module):
    r"""Encode every modality to a vector, weigh the vectors by attention, classify or regress.

    Vectors go through dropout and three Linear-ReLU layers, sequences through an LSTM; :class:`AttentionFusion` makes
    the weights. ``normalize="none", absence="zero_fill"`` is the ``attention`` model of MERBench; ``"softmax"`` with
    modality dropout and ``fusion_dropout`` gives its robust descendants V1 to V3.

    Args:
        in_features: Features of every modality; the order here is the order of M everywhere.
        hidden_features: Width H.
        num_classes: Number of classes C; ``None`` = no class head.
        num_values: Number of regression targets V; 0 = no value head.
        sequences: Names of the modalities given as ``(B, T, D)``.
        dropout: Dropout probability in encoders and attention.
        fusion_dropout: Dropout probability on the fused vector.
        normalize: ``"softmax"`` or ``"none"``, as in :class:`AttentionFusion`.
        modality_dropout: Probability that a training sample loses modalities: :class:`ModalityDropout`.
        modality_dropout_warmup: Epochs without modality dropout.
        modality_dropout_ramp: Epochs over which it then rises.
        absence: ``"exclude"``: absent modalities get weight 0, and modality dropout acts before the encoders.
            ``"zero_fill"``, as published: absent inputs are zeros that are encoded and fused as if present, and
            modality dropout zeroes hidden vectors after encoding.

    Raises:
        ValueError: If a size or an option does not fit.

    Source: MERBench, Lian et al., arXiv 2401.03429.

    Example:
        >>> model = AttentionFusionClassifier({"audio": 10, "text": 20}, 8, num_classes=3)
        >>> out = model({"audio": torch.randn(2, 10), "text": torch.randn(2, 20)})
        >>> out.logits.shape, out.weights.shape
        (torch.Size([2, 3]), torch.Size([2, 2]))
        >>> model({"text": torch.randn(2, 20)}).weights.detach()  # audio is missing
        tensor([[0., 1.],
                [0., 1.]])
    """

    def __init__(
        self,
        in_features: Mapping[str, int],
        hidden_features: int,
        *,
        num_classes: int | None = None,
        num_values: int = 0,
        sequences: Sequence[str] = (),
        dropout: float = 0.0,
        fusion_dropout: float = 0.0,
        normalize: Literal["softmax", "none"] = "softmax",
        modality_dropout: float = 0.0,
        modality_dropout_warmup: int = 0,
        modality_dropout_ramp: int = 0,
        absence: Absence = "exclude",
    ) -> None:
        super().__init__()
        where = "AttentionFusionClassifier"
        check_size(where, "hidden_features", hidden_features)
        check_option(where, "absence", absence, ABSENCES)
        check_range(where, "fusion_dropout", fusion_dropout, 0.0, 1.0, high_open=True)
        self.reader = InputReader(where, in_features, sequences)
        self.modalities = tuple(in_features)
        self.absence = absence
        self.encoders = nn.ModuleList(
            LSTMEncoder(size, hidden_features, dropout)
            if name in self.reader.sequences
            else MLPEncoder(size, [hidden_features] * 3, input_dropout=dropout)
            for name, size in in_features.items()
        )
        self.modality_dropout = ModalityDropout(
            modality_dropout, warmup_epochs=modality_dropout_warmup, ramp_epochs=modality_dropout_ramp
        )
        self.fusion = AttentionFusion(hidden_features, len(self.modalities), normalize=normalize, dropout=dropout)
        self.heads = PredictionHeads(where, hidden_features, num_classes, num_values, fusion_dropout)

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch (0-based), which the schedule of the modality dropout follows."""
        self.modality_dropout.set_epoch(epoch)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        present: Tensor | None = None,
        masks: Mapping[str, Tensor] | None = None,
        targets: Mapping[str, Tensor] | None = None,
    ) -> FusionClassifierOutput:
        """Classify a batch.

        Args:
            inputs: By name, floating features ``(B, D)`` or, for ``sequences``, ``(B, T, D)``. A modality that is
                left out is absent for the whole batch, whatever ``present`` says.
            present: Bool or integer 0/1 mask ``(B, M)``, True = present.
            masks: By name, for sequences, bool or integer 0/1 masks ``(B, T)``, True = real step.
            targets: Not used; there so that all fusion classifiers are called alike.

        Raises:
            TypeError: If an input is not floating or a mask neither bool nor integer.
            ValueError: If a name or a shape does not fit.
        """
        exclude = self.absence == "exclude"
        x = self.reader.read(inputs, present, masks, fill=not exclude)
        if exclude:
            kept = self.modality_dropout(x.present)
            fused, weights = self.fusion(self._encode(x.features, x.masks, kept), kept)
        else:
            kept = self.modality_dropout(torch.ones_like(x.present))
            fused, weights = self.fusion(zero_missing(self._encode(x.features, x.masks, None), kept))
            kept = kept & x.present
        features, logits, values = self.heads(fused)
        aux_loss = features.new_zeros((), dtype=torch.float64 if features.dtype == torch.float64 else torch.float32)
        return FusionClassifierOutput(features, logits, values, aux_loss, weights, None, None, kept)

    def _encode(self, features: list[Tensor], masks: list[Tensor | None], kept: Tensor | None) -> Tensor:
        vectors = []
        for index, (encoder, x, mask) in enumerate(zip(self.encoders, features, masks, strict=True)):
            column = None if kept is None else kept[:, index]
            if mask is not None and column is not None:
                mask = mask & column.unsqueeze(1)
            vectors.append(encoder(x, mask if isinstance(encoder, LSTMEncoder) else column))
        return torch.stack(vectors, dim=1)
