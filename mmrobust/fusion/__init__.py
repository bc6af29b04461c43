"""Fuse M modality vectors into one: by their uncertainty, by a gate, or by attention.

All take ``(B, M, H)``, or a sequence of ``(B, H)``, and ``present (B, M)``. An absent modality is never read, its
weight is exactly 0, and the others share the whole: setting its std to something large, as earlier systems do, would
leave it 15 % of a ``softmax(1 / std)``.
"""

from .attention import AttentionFusion
from .gated import GatedUncertaintyFusion
from .uncertainty import FusionOutput, UncertaintyWeightedFusion, fused_std, uncertainty_weights, weighted_sum

__all__ = [
    "AttentionFusion",
    "FusionOutput",
    "GatedUncertaintyFusion",
    "UncertaintyWeightedFusion",
    "fused_std",
    "uncertainty_weights",
    "weighted_sum",
]
