"""Ways to spoil a modality on purpose, for training against noise and for measuring robustness."""

from .functions import add_noise, drop_frames, scale_rows, shuffle_rows
from .spoiling import ModalityCorruption, SpoiltRows, spoil_rows

__all__ = [
    "ModalityCorruption",
    "SpoiltRows",
    "add_noise",
    "drop_frames",
    "scale_rows",
    "shuffle_rows",
    "spoil_rows",
]
