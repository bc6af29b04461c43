"""Model components that keep working when a modality is noisy or missing."""

from . import functional
from .attention import ProxyCrossModalAttention
from .corruption import add_noise, drop_frames, scale_rows, shuffle_rows
from .encoders import (
    FeatureTokenizer,
    LSTMEncoder,
    MLPEncoder,
    ModalityDecoder,
    ProjectionHead,
    VariationalLSTMEncoder,
    VariationalMLPEncoder,
    VariationalOutput,
    reparameterize,
)
from .fusion import (
    AttentionFusion,
    FusionOutput,
    GatedUncertaintyFusion,
    UncertaintyWeightedFusion,
    fused_std,
    uncertainty_weights,
    weighted_sum,
)
from .losses import (
    FocalLabelSmoothingLoss,
    FocalLoss,
    InfoNCELoss,
    LabelSmoothingCrossEntropy,
    ModalityContrastiveLoss,
    VariationalLoss,
    VariationalLossOutput,
    cross_modal_kl,
    focal_label_smoothing_loss,
    focal_loss,
    gaussian_kl,
    info_nce_loss,
    label_smoothing_cross_entropy,
    modality_contrastive_loss,
    reconstruction_loss,
)
from .masking import lengths_to_mask, masked_mean, masked_softmax, zero_missing
from .models import AttentionFusionClassifier, FusionClassifierOutput, VariationalFusionClassifier
from .presence import ModalityDropout, all_presence_patterns, presence_from_zeros, random_presence

__version__ = "0.1.0"

__all__ = [
    "AttentionFusion",
    "AttentionFusionClassifier",
    "FeatureTokenizer",
    "FocalLabelSmoothingLoss",
    "FocalLoss",
    "FusionClassifierOutput",
    "FusionOutput",
    "GatedUncertaintyFusion",
    "InfoNCELoss",
    "LSTMEncoder",
    "LabelSmoothingCrossEntropy",
    "MLPEncoder",
    "ModalityContrastiveLoss",
    "ModalityDecoder",
    "ModalityDropout",
    "ProjectionHead",
    "ProxyCrossModalAttention",
    "UncertaintyWeightedFusion",
    "VariationalFusionClassifier",
    "VariationalLSTMEncoder",
    "VariationalLoss",
    "VariationalLossOutput",
    "VariationalMLPEncoder",
    "VariationalOutput",
    "__version__",
    "add_noise",
    "all_presence_patterns",
    "cross_modal_kl",
    "drop_frames",
    "focal_label_smoothing_loss",
    "focal_loss",
    "functional",
    "fused_std",
    "gaussian_kl",
    "info_nce_loss",
    "label_smoothing_cross_entropy",
    "lengths_to_mask",
    "masked_mean",
    "masked_softmax",
    "modality_contrastive_loss",
    "presence_from_zeros",
    "random_presence",
    "reconstruction_loss",
    "reparameterize",
    "scale_rows",
    "shuffle_rows",
    "uncertainty_weights",
    "weighted_sum",
    "zero_missing",
]
