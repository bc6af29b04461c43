"""What is evaluated: the data, the model as a function, and predictions under a pattern of presence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from benchmarks.robustness.metrics import EMPTY_SCORES, Scores, score_predictions

RESERVED = frozenset('+:@[].,;"\n')


class EvaluationSet(Protocol):
    """A set of N samples with M modalities; `features` has the modalities in the order of `present`'s columns."""

    @property
    def features(self) -> Mapping[str, Tensor]:
        """Name -> (N, D) or padded (N, T, D)."""

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Name -> (N, T) bool, True = real step; only the modalities given as sequences."""

    @property
    def present(self) -> Tensor:
        """(N, M) bool, True = the sample has the modality."""

    @property
    def label(self) -> Tensor:
        """(N,) int64, -1 = none."""

    @property
    def score(self) -> Tensor | None:
        """(N,) floating, NaN = none."""


class Prediction(NamedTuple):
    """A model's answer for N rows; what a model does not have is None.

    Attributes:
        logits: (N, C).
        values: (N,), the predicted score.
        weights: (N, M), the fusion weights.
        std: (N, M), each modality's mean standard deviation.
    """

    logits: Tensor
    values: Tensor | None = None
    weights: Tensor | None = None
    std: Tensor | None = None


# (features, present (N, M), masks) -> Prediction, row by row, in evaluation mode. Absent entries must not be read.
Predict = Callable[[dict[str, Tensor], Tensor, dict[str, Tensor]], Prediction]


def take(prediction: Prediction, rows: Tensor) -> Prediction:
    """Select rows of every part of a prediction (None stays None)."""
    return Prediction(*(None if part is None else part[rows] for part in prediction))


def concatenate(predictions: list[Prediction]) -> Prediction:
    """Join predictions along the rows (None stays None)."""
    return Prediction(*(None if parts[0] is None else torch.cat(parts) for parts in zip(*predictions, strict=True)))


class Evaluator:
    """Run one model over one set, remembering each (row, pattern of presence) it has seen.

    The subset view asks for every pattern of every row, so that the missing-rate view, whose draws are nothing but
    such patterns, costs no further prediction: exact, as a row's prediction does not depend on its batch.

    Args:
        predict: the model as a function; it is called without gradients, in batches of the set's own CPU tensors.
        data: the set to evaluate, on the CPU.
        batch_size: the largest number of rows per call.

    Raises:
        ValueError: if the parts of `data` disagree in shape, or a modality's name has a reserved character.
    """

    def __init__(self, predict: Predict, data: EvaluationSet, *, batch_size: int = 1024) -> None:
        self.predict_batch = predict
        self.data = data
        self.batch_size = batch_size
        self.modalities = tuple(data.features)
        self.present = data.present.bool()
        self._check()
        self._keys = torch.empty(0, dtype=torch.int64)
        self._known: Prediction | None = None

    def _check(self) -> None:
        rows, names = len(self.data.label), self.modalities
        if rows == 0 or not names:
            raise ValueError(f"Evaluator: expected at least one row and one modality, got {rows} and {len(names)}")
        if self.present.shape != (rows, len(names)):
            expected, got = (rows, len(names)), tuple(self.present.shape)
            raise ValueError(f"Evaluator: expected present of shape (N, M) = {expected}, got {got}")
        for name, x in self.data.features.items():
            if len(x) != rows:
                raise ValueError(f"Evaluator: expected features[{name!r}] with N = {rows} rows, got {len(x)}")
            if not name or RESERVED.intersection(name):
                listed = " ".join(sorted(RESERVED - {"\n"}))
                raise ValueError(f"Evaluator: expected a modality name without any of {listed} , got {name!r}")

    def predict(self, rows: Tensor, present: Tensor) -> Prediction:
        """Predict row `rows[k]` of the set as if only the modalities of `present[k]` were there.

        Args:
            rows: (K,) int64, rows of the set, K > 0.
            present: (K, M) bool; what the set itself lacks must be False.

        Returns:
            The prediction of the K rows, on the CPU.
        """
        keys = self._key(rows, present)
        # Sorted by pattern, then row: batches then read nearly contiguous rows.
        new = torch.unique(keys)
        new = new[~torch.isin(new, self._keys)]
        if len(new):
            self._remember(new, self._run(*self._unkey(new)))
        assert self._known is not None
        return take(self._known, torch.searchsorted(self._keys, keys))

    def run(self, features: dict[str, Tensor], present: Tensor, masks: dict[str, Tensor]) -> Prediction:
        """Predict the given inputs in batches, without remembering them; for features that were tampered with."""
        parts = []
        for start in range(0, len(present), self.batch_size):
            batch = slice(start, start + self.batch_size)
            inputs = {name: x[batch] for name, x in features.items()}
            parts.append(self._call(inputs, present[batch], {name: mask[batch] for name, mask in masks.items()}))
        return concatenate(parts)

    def evaluate(self, rows: Tensor, present: Tensor) -> Scores:
        """Score the prediction of `predict`; rows left without a modality are not counted (the score `rows` tells)."""
        some = present.any(dim=1)
        if not some.any():
            return dict(EMPTY_SCORES)
        return self.score(self.predict(rows[some], present[some]), rows[some])

    def score(self, prediction: Prediction, rows: Tensor) -> Scores:
        """Score the prediction of the set's rows `rows` (K,) against their labels and scores."""
        score = self.data.score
        return score_predictions(
            prediction.logits.numpy(),
            self.data.label[rows].cpu().numpy(),
            None if prediction.values is None else prediction.values.numpy(),
            None if score is None else score[rows].cpu().numpy(),
        )

    def _run(self, rows: Tensor, present: Tensor) -> Prediction:
        parts = []
        for chunk, mask in zip(rows.split(self.batch_size), present.split(self.batch_size), strict=True):
            inputs = {name: x[chunk] for name, x in self.data.features.items()}
            parts.append(self._call(inputs, mask, {name: x[chunk] for name, x in self.data.masks.items()}))
        return concatenate(parts)

    def _call(self, features: dict[str, Tensor], present: Tensor, masks: dict[str, Tensor]) -> Prediction:
        with torch.no_grad():
            prediction = self.predict_batch(features, present, masks)
        # numpy has no bfloat16, and scores are compared across precisions: everything is float32 from here.
        parts = (None if part is None else part.detach().float().cpu() for part in prediction)
        prediction = Prediction(*parts)
        _check_prediction(prediction, len(present), len(self.modalities))
        return prediction

    def _key(self, rows: Tensor, present: Tensor) -> Tensor:
        code = (present.long() << torch.arange(len(self.modalities))).sum(dim=1)
        return code * len(self.present) + rows

    def _unkey(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        code = keys // len(self.present)
        present = (code[:, None] >> torch.arange(len(self.modalities))) & 1
        return keys % len(self.present), present.bool()

    def _remember(self, keys: Tensor, prediction: Prediction) -> None:
        if self._known is not None:
            keys, prediction = torch.cat([self._keys, keys]), concatenate([self._known, prediction])
        self._keys, order = keys.sort()
        self._known = take(prediction, order)


def _check_prediction(prediction: Prediction, rows: int, modalities: int) -> None:
    shapes = {"values": (rows,), "weights": (rows, modalities), "std": (rows, modalities)}
    logits = prediction.logits
    if logits.ndim != 2 or len(logits) != rows:
        raise ValueError(f"predict: expected logits of shape (N, C) = ({rows}, C), got {tuple(logits.shape)}")
    for name, shape in shapes.items():
        part = getattr(prediction, name)
        if part is not None and part.shape != shape:
            raise ValueError(f"predict: expected {name} of shape {shape}, got {tuple(part.shape)}")
    for name in ("logits", "values"):
        part = getattr(prediction, name)
        if part is not None and not part.isfinite().all():
            bad = int((~part.reshape(rows, -1).isfinite()).any(dim=1).sum())
            raise ValueError(f"predict: expected finite {name}, got NaN or infinity in {bad} of {rows} rows")
