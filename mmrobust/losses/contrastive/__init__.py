"""Contrastive losses that never hold a matrix of all pairs: SupCon, InfoNCE, NT-Xent, and all pairs of modalities.

Vectors are normalised inside, in float32 (float64 for float64). A vector shorter than ``1e-12`` has no direction: its
similarities are 0 and its gradient is exactly 0, so that an all-zero vector does no harm.
"""

from ._shared import ContrastiveOutput
from .info_nce import InfoNCELoss, info_nce_loss
from .modalities import ModalityContrastiveLoss, modality_contrastive_loss
from .nt_xent import NTXentLoss, nt_xent_loss
from .supervised import SupConLoss, sup_con_loss

__all__ = [
    "ContrastiveOutput",
    "InfoNCELoss",
    "ModalityContrastiveLoss",
    "NTXentLoss",
    "SupConLoss",
    "info_nce_loss",
    "modality_contrastive_loss",
    "nt_xent_loss",
    "sup_con_loss",
]
