"""Assembled models, one file per family."""

from ._inputs import FusionClassifierOutput
from .attention_fusion import AttentionFusionClassifier
from .text import DualContrastiveTextClassifier, TextClassifierOutput, TextLossOutput
from .two_branch import PrototypeClassifierOutput, PrototypeLossOutput, TwoBranchPrototypeClassifier
from .variational_fusion import VariationalFusionClassifier

__all__ = [
    "AttentionFusionClassifier",
    "DualContrastiveTextClassifier",
    "FusionClassifierOutput",
    "PrototypeClassifierOutput",
    "PrototypeLossOutput",
    "TextClassifierOutput",
    "TextLossOutput",
    "TwoBranchPrototypeClassifier",
    "VariationalFusionClassifier",
]
