"""Encoders from one modality to one vector, decoders back, and heads.

What is absent comes out as nothing known: deterministic encoders give 0, variational ones the prior N(0, I).
"""

from ._gaussian import VariationalOutput, reparameterize
from .heads import FeatureTokenizer, ModalityDecoder, ProjectionHead
from .lstm import LSTMEncoder, VariationalLSTMEncoder
from .mlp import MLPEncoder, VariationalMLPEncoder

__all__ = [
    "FeatureTokenizer",
    "LSTMEncoder",
    "MLPEncoder",
    "ModalityDecoder",
    "ProjectionHead",
    "VariationalLSTMEncoder",
    "VariationalMLPEncoder",
    "VariationalOutput",
    "reparameterize",
]
