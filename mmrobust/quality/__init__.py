"""Input quality: how strange an input looks, as a log-variance per modality."""

from .heads import ModalityQuality
from .loss import quality_loss
from .reference import Reference, fit_reference, novelty_statistics

__all__ = ["ModalityQuality", "Reference", "fit_reference", "novelty_statistics", "quality_loss"]
