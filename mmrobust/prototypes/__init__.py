"""Classes as subspaces: residuals of projections, penalties on bases, and a classifier with a rejection option."""

from .classifier import SubspacePrediction, SubspacePrototypeClassifier
from .functional import orthonormality_penalty, subspace_residual, subspace_separation

__all__ = [
    "SubspacePrediction",
    "SubspacePrototypeClassifier",
    "orthonormality_penalty",
    "subspace_residual",
    "subspace_separation",
]
