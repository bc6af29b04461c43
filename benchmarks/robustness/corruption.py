"""Unmarked corruption: one modality of every sample is spoilt and the model is not told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.robustness.metrics import Scores, auroc
from benchmarks.robustness.protocol import Evaluator, Prediction
from mmrobust.corruption import add_noise, shuffle_rows

KINDS = ("noise", "replace", "zeros", "shuffle")


class Corruption(NamedTuple):
    """A way to spoil a modality.

    Attributes:
        kind: "noise" adds white Gaussian noise at `snr_db`; "replace" puts standard normal noise in the modality's
            place (features are expected standardised); "zeros" puts zeros there; "shuffle" another sample's row.
        snr_db: signal-to-noise ratio in dB; only for "noise".
    """

    kind: str
    snr_db: float | None = None

    @property
    def label(self) -> str:
        """The name used in columns, such as `noise@-5dB` or `zeros`."""
        return self.kind if self.snr_db is None else f"{self.kind}@{self.snr_db:g}dB"


CORRUPTIONS = (
    *(Corruption("noise", level) for level in (10.0, 5.0, 0.0, -5.0)),
    *(Corruption(kind) for kind in ("replace", "zeros", "shuffle")),
)


class CorruptedPrediction(NamedTuple):
    """What the model said about the rows that have `modality`, once that modality was spoilt.

    Attributes:
        modality: index of the spoilt modality.
        corruption: what was done; None = nothing, the clean answer on the same rows.
        rows: (K,) int64, the rows of the set that have the modality.
        prediction: the answer for these K rows.
    """

    modality: int
    corruption: Corruption | None
    rows: Tensor
    prediction: Prediction


def corrupt(
    x: Tensor, mask: Tensor | None, corruption: Corruption, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Spoil every row of one modality.

    Args:
        x: (K, D) or (K, T, D) floating; every row has the modality.
        mask: (K, T) bool, True = real step, or None.
        corruption: what to do.
        generator: source of the noise.

    Returns:
        The spoilt features and their mask (another sample's row brings its own mask along).

    Raises:
        ValueError: if the kind is unknown, or "noise" comes without a level, or another kind with one.

    Example:
        >>> spoilt, _ = corrupt(torch.ones(2, 3), None, Corruption("zeros"), torch.Generator())
        >>> spoilt.sum().item()
        0.0
    """
    kind, snr_db = corruption
    if kind not in KINDS:
        raise ValueError(f"corrupt: expected kind one of {', '.join(KINDS)}, got {kind!r}")
    if (kind == "noise") != (snr_db is not None):
        raise ValueError(f"corrupt: expected snr_db with kind 'noise' and only there, got {snr_db} with {kind!r}")
    if snr_db is not None:
        return add_noise(x, snr_db, mask, generator=generator), mask
    if kind == "replace":
        return torch.randn(x.shape, generator=generator, dtype=x.dtype), mask
    if kind == "zeros":
        return torch.zeros_like(x), mask
    partner = shuffle_rows(torch.arange(len(x)), generator=generator)
    return x[partner], None if mask is None else mask[partner]


def corrupted_predictions(
    evaluator: Evaluator, corruptions: Sequence[Corruption] = CORRUPTIONS, *, seed: int = 0
) -> Iterator[CorruptedPrediction]:
    """Spoil each modality in turn, in every way, and predict: the raw material of the corruption view.

    For each modality the clean prediction comes first. The noise depends on `seed` and the modality only: all models
    see the same, and the levels of one modality share one draw.

    Args:
        evaluator: the model and the set.
        corruptions: what to do to each modality.
        seed: seed of the noise.

    Yields:
        One prediction per modality and corruption; a modality that no row has is skipped.
    """
    data, present = evaluator.data, evaluator.present
    for index, name in enumerate(evaluator.modalities):
        rows = present[:, index].nonzero().squeeze(1)
        if not len(rows):
            continue
        yield CorruptedPrediction(index, None, rows, evaluator.predict(rows, present[rows]))
        features = {other: x[rows] for other, x in data.features.items()}
        masks = {other: mask[rows] for other, mask in data.masks.items()}
        for corruption in corruptions:
            generator = torch.Generator().manual_seed(seed * 1000 + index)
            spoilt, mask = corrupt(features[name], masks.get(name), corruption, generator)
            changed = masks if mask is None else {**masks, name: mask}
            prediction = evaluator.run({**features, name: spoilt}, present[rows], changed)
            yield CorruptedPrediction(index, corruption, rows, prediction)


def detection_scores(spoilt: CorruptedPrediction, clean: Prediction) -> Scores:
    """Measure how well the model's own std or fusion weight of a modality tells spoilt rows from the same rows clean.

    Args:
        spoilt: the answer for the K rows, the modality spoilt.
        clean: the answer for the same rows, unspoilt.

    Returns:
        `std` and `weight`, as far as the model tells them: the area under the ROC curve, a higher std and a lower
        weight meaning "spoilt".
    """
    parts = {"std": (spoilt.prediction.std, clean.std, 1), "weight": (spoilt.prediction.weights, clean.weights, -1)}
    return {
        name: auroc(*(sign * part[:, spoilt.modality].numpy() for part in (after, before)))
        for name, (after, before, sign) in parts.items()
        if after is not None and before is not None
    }


def mean_over_present(part: Tensor, present: Tensor, index: int) -> float:
    """Average one modality's column of (K, M) weights or stds over the rows that have it; NaN without such rows."""
    column = part[present[:, index], index]
    return float(column.double().mean()) if len(column) else float("nan")
