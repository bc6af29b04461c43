"""Every public function in one place: ``import mmrobust.functional as MF``."""

from .calibration import fit_temperature
from .corruption import add_noise, drop_frames, scale_rows, shuffle_rows, spoil_rows
from .encoders import reparameterize
from .fusion import fused_std, uncertainty_weights, weighted_sum
from .gradient_cache import cached_encode
from .losses import (
    cross_modal_kl,
    focal_label_smoothing_loss,
    focal_loss,
    gaussian_kl,
    info_nce_loss,
    label_smoothing_cross_entropy,
    modality_contrastive_loss,
    nt_xent_loss,
    reconstruction_loss,
    sup_con_loss,
)
from .masking import lengths_to_mask, masked_mean, masked_softmax, zero_missing
from .presence import all_presence_patterns, presence_from_zeros, presence_views, random_presence
from .prototypes import orthonormality_penalty, subspace_residual, subspace_separation
from .quality import fit_reference, novelty_statistics, quality_loss

__all__ = [
    "add_noise",
    "all_presence_patterns",
    "cached_encode",
    "cross_modal_kl",
    "drop_frames",
    "fit_reference",
    "fit_temperature",
    "focal_label_smoothing_loss",
    "focal_loss",
    "fused_std",
    "gaussian_kl",
    "info_nce_loss",
    "label_smoothing_cross_entropy",
    "lengths_to_mask",
    "masked_mean",
    "masked_softmax",
    "modality_contrastive_loss",
    "novelty_statistics",
    "nt_xent_loss",
    "orthonormality_penalty",
    "presence_from_zeros",
    "presence_views",
    "quality_loss",
    "random_presence",
    "reconstruction_loss",
    "reparameterize",
    "scale_rows",
    "shuffle_rows",
    "spoil_rows",
    "subspace_residual",
    "subspace_separation",
    "sup_con_loss",
    "uncertainty_weights",
    "weighted_sum",
    "zero_missing",
]
