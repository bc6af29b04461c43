"""What all assembled models share: named inputs on the way in, one named tuple on the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .._checks import as_mask, check_floating, check_option, check_shape, check_size
from ..masking import zero_missing

Absence = Literal["exclude", "zero_fill"]
ABSENCES = ("exclude", "zero_fill")


class FusionClassifierOutput(NamedTuple):
    """What a fusion classifier returns; what a model does not have is ``None``.

    ``features (B, H)`` fused vector that the heads read; ``logits (B, C)``; ``values (B, V)``; ``aux_loss`` scalar to
    add to the task's loss, 0 in eval mode; ``weights (B, M)`` or ``(B, M, H)`` of the fusion; ``mu (B, M, H)`` and
    ``std (B, M, H)`` of the modalities, the latter after what quality makes of them; ``present (B, M)`` what the model
    went by, after modality dropout.
    """

    features: Tensor
    logits: Tensor | None
    values: Tensor | None
    aux_loss: Tensor
    weights: Tensor
    mu: Tensor | None
    std: Tensor | None
    present: Tensor


class ModalityInputs(NamedTuple):
    """Inputs in the order of the constructor; step masks are ``None`` for vectors.

    The step masks say nothing about presence: an absent sequence has all of its (zero) steps.
    """

    features: list[Tensor]
    masks: list[Tensor | None]
    present: Tensor


class InputReader:
    """Check named inputs and put them in order.

    A modality that the mapping lacks is absent for the whole batch; a name that the model does not know is an error.
    """

    def __init__(self, where: str, in_features: Mapping[str, int], sequences: Sequence[str]) -> None:
        if not isinstance(in_features, Mapping) or not in_features:
            raise ValueError(f"{where}: expected in_features to map each modality to its size, got {in_features!r}")
        for name, size in in_features.items():
            check_size(where, f"in_features[{name!r}]", size)
        for name in sequences:
            check_option(where, "sequences", name, in_features)
        self.where, self.sizes, self.sequences = where, dict(in_features), frozenset(sequences)

    def read(
        self,
        inputs: Mapping[str, Tensor],
        present: Tensor | None,
        masks: Mapping[str, Tensor] | None,
        *,
        fill: bool,
    ) -> ModalityInputs:
        """Return what is there, in order, with a presence mask that also knows empty sequences.

        With ``fill`` absent entries are zero; without, whoever reads them goes by ``present`` and ``masks``.
        """
        if not isinstance(inputs, Mapping):
            raise TypeError(f"{self.where}: expected inputs to map names to tensors, got {type(inputs).__name__}")
        for given in (inputs, masks or {}):
            for name in given:
                check_option(self.where, f"the keys of {'inputs' if given is inputs else 'masks'}", name, self.sizes)
        if not inputs:
            raise ValueError(f"{self.where}: expected inputs with at least one of {', '.join(self.sizes)}, got none")
        batch = next(iter(inputs.values())).shape[0]
        like = next(iter(inputs.values()))
        present = as_mask(self.where, "present", present, B=batch, M=len(self.sizes))
        features, step_masks, there = [], [], []
        for index, (name, size) in enumerate(self.sizes.items()):
            column = torch.ones(batch, dtype=torch.bool, device=like.device) if present is None else present[:, index]
            if name not in inputs:
                column = torch.zeros_like(column)
            x = inputs.get(name)
            if x is None:
                x = like.new_zeros((batch, 1, size) if name in self.sequences else (batch, size))
            mask, column = self._one(name, x, (masks or {}).get(name), column)
            features.append(zero_missing(x if mask is None else zero_missing(x, mask), column) if fill else x)
            step_masks.append(mask)
            there.append(column)
        return ModalityInputs(features, step_masks, torch.stack(there, dim=1))

    def _one(self, name: str, x: Tensor, mask: Tensor | None, column: Tensor) -> tuple[Tensor | None, Tensor]:
        where, label, batch = self.where, f"inputs[{name!r}]", column.shape[0]
        check_floating(where, label, x)
        if name not in self.sequences:
            check_shape(where, label, x, B=batch, D=self.sizes[name])
            if mask is not None:
                raise ValueError(f"{where}: expected no mask for {name!r}, which is not in sequences")
            return None, column
        check_shape(where, label, x, B=batch, T=None, D=self.sizes[name])
        steps = as_mask(where, f"masks[{name!r}]", mask, B=batch, T=x.shape[1])
        if steps is None:
            steps = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        column = column & steps.any(1)
        steps = steps | ~column.unsqueeze(1)
        return steps, column


class PredictionHeads(nn.Module):
    """Dropout, then linear heads for classes and for values, each optional."""

    def __init__(
        self, where: str, hidden_features: int, num_classes: int | None, num_values: int, dropout: float
    ) -> None:
        super().__init__()
        if num_classes is None and num_values == 0:
            raise ValueError(f"{where}: expected num_classes or num_values, got neither")
        if num_classes is not None:
            check_size(where, "num_classes", num_classes)
        check_size(where, "num_values", num_values, 0)
        self.dropout = nn.Dropout(dropout)
        self.classes = None if num_classes is None else nn.Linear(hidden_features, num_classes)
        self.values = None if num_values == 0 else nn.Linear(hidden_features, num_values)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the features after dropout, logits and values."""
        features = self.dropout(features)
        logits = None if self.classes is None else self.classes(features)
        values = None if self.values is None else self.values(features)
        return features, logits, values
