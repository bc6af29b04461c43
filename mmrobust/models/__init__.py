"""Assembled models, one file per family."""

from ._inputs import FusionClassifierOutput
from .attention_fusion import AttentionFusionClassifier
from .text import DualContrastiveTextClassifier, TextClassifierOutput, TextLossOutput
from .variational_fusion import VariationalFusionClassifier

__all__ = [
    "AttentionFusionClassifier",
    "DualContrastiveTextClassifier",
    "FusionClassifierOutput",
    "TextClassifierOutput",
    "TextLossOutput",
    "VariationalFusionClassifier",
]
