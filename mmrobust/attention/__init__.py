"""Attention between a fused vector and the modalities, and between the tokens of different modalities."""

from .feature_tokens import FeatureTokenFusion
from .proxy import ProxyCrossModalAttention

__all__ = ["FeatureTokenFusion", "ProxyCrossModalAttention"]
