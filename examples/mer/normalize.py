"""Standardisation that reads only what is present and leaves absent rows and frames at zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmrobust.masking import zero_missing

from .sets import MultimodalSet

DESCRIPTIONS = {
    "train": "standardised by the training rows (`normalize: train`)",
    "group": "standardised within each group, by all of its own rows and without labels (`normalize: group`, {group})",
    "none": "not standardised (`normalize: none`)",
}


@dataclass(frozen=True)
class Standardizer:
    """Mean and scale of every column of every modality, in float64: an offset may be much larger than the spread."""

    mean: dict[str, Tensor]
    scale: dict[str, Tensor]

    @classmethod
    def fit(cls, rows: MultimodalSet) -> Standardizer:
        """Measure the present rows (real frames). A column without spread gets scale 1, one without rows mean 0."""
        moments = {name: _moments(rows.features[name][real]) for name, real in _real(rows).items()}
        return cls({name: m[0] for name, m in moments.items()}, {name: m[1] for name, m in moments.items()})

    def apply(self, rows: MultimodalSet) -> MultimodalSet:
        """Return the rows with features standardised."""
        features = {
            name: zero_missing(((rows.features[name] - self.mean[name]) / self.scale[name]).float(), real)
            for name, real in _real(rows).items()
        }
        return replace(rows, features=features)


def standardize_within_groups(rows: MultimodalSet) -> MultimodalSet:
    """Standardise each group by its own moments (no labels are read)."""
    assert rows.group is not None
    features = {name: torch.zeros_like(x) for name, x in rows.features.items()}
    for number in torch.unique(rows.group):
        index = (rows.group == number).nonzero().squeeze(1)
        own = rows.subset(index)
        for name, x in Standardizer.fit(own).apply(own).features.items():
            features[name][index] = x
    return replace(rows, features=features)


def describe_features(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Say in one line how the features were standardised.

    Args:
        settings: the `data` section of every configuration, by its name.
    """
    configs: dict[str, list[str]] = {}
    for config, data in settings.items():
        configs.setdefault(DESCRIPTIONS[data["normalize"]].format(group=data.get("group")), []).append(config)
    texts = [f"{text} in {', '.join(names)}" if len(configs) > 1 else text for text, names in configs.items()]
    return f"Features: {'; '.join(texts)}."


def _real(rows: MultimodalSet) -> dict[str, Tensor]:
    """Mask of what counts, ``(N,)`` or ``(N, T)`` for each modality."""
    return {name: rows.masks.get(name, rows.present[:, m]) for m, name in enumerate(rows.features)}


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of ``(n, D)`` in float64, made safe to subtract and divide by."""
    wide = x.double()
    mean = wide.sum(0) / max(len(x), 1)
    scale = ((wide - mean).square().sum(0) / max(len(x), 1)).sqrt()
    # Rounding of the mean alone gives a constant column this much spread.
    flat = scale <= 1e-6 * mean.abs()
    return mean, torch.where(flat | (scale == 0), 1.0, scale)
