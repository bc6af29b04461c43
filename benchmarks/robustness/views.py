"""The robustness views of one model: subsets of modalities, missing rates, unmarked corruption; and all together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from benchmarks.robustness.calibration import calibration_view
from benchmarks.robustness.corruption import (
    CORRUPTIONS,
    Corruption,
    corrupted_predictions,
    detection_scores,
    mean_over_present,
)
from benchmarks.robustness.metrics import average_scores
from benchmarks.robustness.protocol import EvaluationSet, Evaluator, Predict
from benchmarks.robustness.rows import View
from benchmarks.robustness.subsets import subset_patterns
from mmrobust.presence import random_presence

VIEWS = ("subset", "missing", "corrupt", "calibration")
RATES = tuple(step / 10 for step in range(10))


def clean_view(evaluator: Evaluator) -> View:
    """Score the model on what each sample naturally has."""
    present = evaluator.present
    return {"": evaluator.evaluate(torch.arange(len(present)), present)}


def subset_view(evaluator: Evaluator, subsets: Iterable[Sequence[str]] | None = None) -> View:
    """Score the model on subsets of the modalities.

    A sample is seen with those modalities of the subset that it has; samples left with none are not scored, and
    `rows` tells how many remain.

    Args:
        evaluator: the model and the set.
        subsets: names of modalities; None = every non-empty subset, allowed up to 8 modalities.

    Returns:
        Scores by subset, the names joined by "+" in the order of the set.

    Raises:
        ValueError: if all subsets of more than 8 modalities are asked for, or a subset is empty or unknown.
    """
    rows = torch.arange(len(evaluator.present))
    patterns = subset_patterns(evaluator.modalities, subsets)
    return {label: evaluator.evaluate(rows, evaluator.present & pattern) for label, pattern in patterns.items()}


def missing_view(evaluator: Evaluator, rates: Sequence[float] = RATES, *, draws: int = 10, seed: int = 0) -> View:
    """Score the model with modalities missing at random, at several rates.

    Each modality a sample has is lost with probability `rate`, independently; a sample that would lose its last one
    keeps one of its own, drawn uniformly. Scores are averaged over the draws, and "mean" averages over the rates, as
    in the P-RMF (ACL 2025) and LNLN (NeurIPS 2024) protocol; there single steps of sequences are lost, here whole
    modalities. All models see the same draws for one seed.

    Args:
        evaluator: the model and the set.
        rates: missing rates in [0, 1].
        draws: number of draws per rate.
        seed: seed of the draws.

    Returns:
        Scores by rate ("0.3") and their "mean".
    """
    view = {}
    for index, rate in enumerate(rates):
        generator = torch.Generator().manual_seed(seed * 1000 + index)
        scores = [
            evaluator.evaluate(torch.arange(len(evaluator.present)), lose(evaluator.present, rate, generator))
            for _ in range(draws if 0 < rate < 1 else 1)
        ]
        view[f"{rate:g}" if rate % 1 else f"{rate:.1f}"] = average_scores(scores)
    return {**view, "mean": average_scores(list(view.values()))}


def lose(present: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Lose each modality of `present (N, M)` with probability `rate`; what had one keeps at least one.

    Example:
        >>> lose(torch.tensor([[True, False], [False, False]]), 0.9, torch.Generator().manual_seed(0)).tolist()
        [[True, False], [False, False]]
    """
    kept = present & random_presence(len(present), present.shape[1], rate, generator=generator)
    # The last one of a naturally incomplete sample: uniform among its own, as random_presence does among all.
    order = torch.rand(present.shape, generator=generator).masked_fill(~present, -1.0)
    rescued = present & (order == order.amax(dim=1, keepdim=True))
    return torch.where(kept.any(dim=1, keepdim=True), kept, rescued)


def corruption_view(
    evaluator: Evaluator, corruptions: Sequence[Corruption] = CORRUPTIONS, *, seed: int = 0
) -> dict[str, View]:
    """Score the model with one modality spoilt and `present` unchanged, for each modality in turn.

    Only samples that have the modality are scored, so that "clean", the same samples unspoilt, is what the others
    compare with. A modality's weight and std are averaged over the samples that have it.

    Args:
        evaluator: the model and the set.
        corruptions: what to do to each modality.
        seed: seed of the noise.

    Returns:
        The views `corrupt` (scores by "audio:noise@0dB") and, as far as the model tells them, `weight` and `std`
        (a value per modality, the spoilt one among them) and `auroc` (`detection_scores`; not of "clean").
    """
    views: dict[str, View] = {"corrupt": {}, "weight": {}, "std": {}, "auroc": {}}
    for answer in corrupted_predictions(evaluator, corruptions, seed=seed):
        modality, corruption, rows, prediction = answer
        label = f"{evaluator.modalities[modality]}:{'clean' if corruption is None else corruption.label}"
        views["corrupt"][label] = evaluator.score(prediction, rows)
        present = evaluator.present[rows]
        for name, part in (("weight", prediction.weights), ("std", prediction.std)):
            if part is not None:
                views[name][label] = {
                    other: mean_over_present(part, present, index) for index, other in enumerate(evaluator.modalities)
                }
        if corruption is None:
            clean = prediction
        elif found := detection_scores(answer, clean):
            views["auroc"][label] = found
    return {name: view for name, view in views.items() if view}


def evaluate_views(
    predict: Predict,
    data: EvaluationSet,
    *,
    clean: str = "test",
    views: Sequence[str] = VIEWS,
    subsets: Iterable[Sequence[str]] | None = None,
    corruptions: Sequence[Corruption] = CORRUPTIONS,
    draws: int = 10,
    seed: int = 0,
    batch_size: int = 1024,
) -> dict[str, View]:
    """Evaluate one model on one set in every view; `run_row` makes a row of the result.

    Args:
        predict: the model as a function, in evaluation mode.
        data: the set.
        clean: name of the clean view, such as the name of the split.
        views: the robustness views wanted, among "subset", "missing", "corrupt" and "calibration".
        subsets: as in `subset_view`.
        corruptions: as in `corruption_view`.
        draws: draws per missing rate.
        seed: seed of draws and noise, not of the training: the same in all runs, so that runs are comparable.
        batch_size: the largest number of rows per call of `predict`.

    Returns:
        The views by name.

    Raises:
        ValueError: if a view is unknown.
    """
    if not set(views) <= set(VIEWS):
        raise ValueError(f"evaluate_views: expected views among {', '.join(VIEWS)}, got {', '.join(views)}")
    subsets = None if subsets is None else list(subsets)
    evaluator = Evaluator(predict, data, batch_size=batch_size)
    result = {clean: clean_view(evaluator)}
    if "subset" in views:
        result["subset"] = subset_view(evaluator, subsets)
    if "missing" in views:
        result["missing"] = missing_view(evaluator, draws=draws, seed=seed)
    if "corrupt" in views:
        result |= corruption_view(evaluator, corruptions, seed=seed)
    if "calibration" in views:
        result |= calibration_view(evaluator, subsets)
    return result
