"""Losses: classification, variational and contrastive. Each averages over valid items and returns float32."""

from .classification import (
    FocalLabelSmoothingLoss,
    FocalLoss,
    LabelSmoothingCrossEntropy,
    focal_label_smoothing_loss,
    focal_loss,
    label_smoothing_cross_entropy,
)
from .contrastive import (
    ContrastiveOutput,
    InfoNCELoss,
    ModalityContrastiveLoss,
    NTXentLoss,
    SupConLoss,
    info_nce_loss,
    modality_contrastive_loss,
    nt_xent_loss,
    sup_con_loss,
)
from .variational import VariationalLoss, VariationalLossOutput, cross_modal_kl, gaussian_kl, reconstruction_loss

__all__ = [
    "ContrastiveOutput",
    "FocalLabelSmoothingLoss",
    "FocalLoss",
    "InfoNCELoss",
    "LabelSmoothingCrossEntropy",
    "ModalityContrastiveLoss",
    "NTXentLoss",
    "SupConLoss",
    "VariationalLoss",
    "VariationalLossOutput",
    "cross_modal_kl",
    "focal_label_smoothing_loss",
    "focal_loss",
    "gaussian_kl",
    "info_nce_loss",
    "label_smoothing_cross_entropy",
    "modality_contrastive_loss",
    "nt_xent_loss",
    "reconstruction_loss",
    "sup_con_loss",
]
