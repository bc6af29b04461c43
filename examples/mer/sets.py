"""What every reader returns: rows of several modalities with presence, labels, scores and groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

NO_LABEL = -1


@dataclass(frozen=True)
class MultimodalSet:
    """Rows of several modalities.

    Attributes:
        ids: One name per row.
        features: Modality name -> float32 ``(N, D)``, or ``(N, T, D)`` padded at the end. Absent rows are zero.
        masks: Bool ``(N, T)`` of the modalities with frames, True = the frame is real.
        present: Bool ``(N, M)``, True = the row has the modality; columns in the order of ``features``.
        label: Class index ``(N,)``, -1 = none.
        score: float32 ``(N,)``, NaN = none; ``None`` if the set has no scores.
        group: Group index ``(N,)`` (subject, speaker, ...); ``None`` if there are none.
    """

    ids: list[str]
    features: dict[str, Tensor]
    masks: dict[str, Tensor]
    present: Tensor
    label: Tensor
    score: Tensor | None = None
    group: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.features)

    @property
    def sequences(self) -> list[str]:
        """Names of the modalities given as frames, in order."""
        return [name for name in self.features if name in self.masks]

    def subset(self, index: Sequence[int] | np.ndarray | Tensor) -> MultimodalSet:
        """Take the rows at ``index``, in that order."""
        rows = torch.as_tensor(index, dtype=torch.long)
        return MultimodalSet(
            ids=[self.ids[i] for i in rows.tolist()],
            features={name: x[rows] for name, x in self.features.items()},
            masks={name: mask[rows] for name, mask in self.masks.items()},
            present=self.present[rows],
            label=self.label[rows],
            score=None if self.score is None else self.score[rows],
            group=None if self.group is None else self.group[rows],
        )

    def batch(self, index: Sequence[int] | np.ndarray | Tensor | slice) -> dict[str, Any]:
        """Index all tensors at once: ``inputs``, ``masks``, ``present``, ``label`` and ``score``.

        Without scores ``score`` is all NaN. A slice gives views, not copies.
        """
        rows = index if isinstance(index, slice) else torch.as_tensor(index, dtype=torch.long)
        label = self.label[rows]
        score = torch.full(label.shape, torch.nan) if self.score is None else self.score[rows]
        return {
            "inputs": {name: x[rows] for name, x in self.features.items()},
            "masks": {name: mask[rows] for name, mask in self.masks.items()},
            "present": self.present[rows],
            "label": label,
            "score": score,
        }

    def keep_only(self, names: Sequence[str]) -> MultimodalSet:
        """Leave out every modality outside ``names``: what a specialist for a subset sees."""
        keep = [name in names for name in self.features]
        return replace(
            self,
            features={name: x for name, x in self.features.items() if name in names},
            masks={name: mask for name, mask in self.masks.items() if name in names},
            present=self.present[:, torch.tensor(keep)],
        )


class Source(NamedTuple):
    """All rows of a data set, and what it says about its own split."""

    rows: MultimodalSet
    class_names: list[str]
    part: np.ndarray | None  # name of the part of each row: train, val, test...
    fold: np.ndarray | None  # fold number of each row
