"""Regret to specialists: one model per non-empty subset of the modalities, trained and selected for it alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.robustness import View, gap_view, regret_view, score_predictions
from benchmarks.robustness.metrics import EMPTY_SCORES, average_scores
from examples.pipeline.jobs import Result

from .jobs import Job


def subsets_of(modalities: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """List the non-empty subsets, the names in the order of the data, single ones first."""
    for size in range(1, len(modalities) + 1):
        yield from combinations(modalities, size)


def specialist_jobs(
    run: Job, config: Mapping[str, Any], modalities: Sequence[str], folder: Path, *, epochs: int | None = None
) -> dict[str, Job]:
    """Make the jobs of a run's specialists.

    A specialist has the family, settings, seed, fold and (unless `epochs` says less) the budget of the run. Only its
    modality dropout and its views of fewer modalities are off, and it is selected by clean rows: what it will be tested
    on is all it ever sees. Corruption in training, averaging, teaching and calibration stay as in the run.

    Args:
        run: the job whose regret is wanted.
        config: its resolved configuration.
        modalities: all modalities, in the order of the data.
        folder: where the results go.
        epochs: another largest number of epochs.

    Returns:
        The jobs by subset, names joined by "+".
    """
    changes = ["--model.selection", "[clean]"] if config["model"].get("selection") else []
    if (config["model"]["options"] or {}).get("modality_dropout"):
        changes += ["--model.options.modality_dropout", "0.0"]
    if config["model"].get("views"):
        changes += ["--model.views", "0"]
    if epochs is not None:
        changes += ["--trainer.max_epochs", str(epochs)]
    jobs = {}
    for subset in subsets_of(modalities):
        name = "+".join(subset)
        path = folder / f"{run.config}-seed{run.seed}-fold{run.fold}-{name}.json"
        only = ["--data.only", json.dumps(subset)]
        jobs[name] = replace(
            run,
            args=(*run.args, *changes, *only),
            path=str(path),
            fingerprint=f"{run.fingerprint}-{epochs or 'full'}",
            subset=subset,
        )
    return jobs


def describe_specialists(results: Iterable[Result], *, seeds: int = 1, epochs: int | None = None) -> str:
    """Say in one line how the specialists were trained.

    Args:
        results: the specialists, all of them.
        seeds: number of specialists per subset and run (and fold).
        epochs: the largest number of epochs if it is not that of the run.
    """
    trained = [result["epochs"] for result in results]
    span = " to ".join(map(str, dict.fromkeys((min(trained), max(trained)))))
    limit = "as many epochs as the run" if epochs is None else f"{epochs} epochs (`--specialist-epochs`)"
    return (
        f"Specialists: {seeds} seed{'s' if seeds > 1 else ''} per subset, family and settings as the run "
        f"(corruption in training, averaging, teaching and calibration too), without modality dropout and views of "
        f"fewer modalities, selected by that subset's validation rows; at most {limit}, {span} were trained."
    )


def add_regret(views: dict[str, View], specialists: Mapping[str, Sequence[Sequence[Result]]]) -> None:
    """Add the views `specialist`, `regret` and, for unmarked corruption, `gap` to the views of a run.

    Args:
        views: the views of the run, with the subset view.
        specialists: for each subset and seed the results of its specialists: one, or those of the folds of an
            ensemble, whose logits are averaged. Scores are averaged over the seeds.
    """
    views["specialist"] = {
        name: average_scores([_score([result["answer"] for result in ensemble]) for ensemble in seeds])
        for name, seeds in specialists.items()
    }
    views["regret"] = regret_view(views["subset"], views["specialist"])
    if "corrupt" in views:
        views["gap"] = gap_view(views["corrupt"], views["specialist"])


def _score(answers: Sequence[dict[str, Any]]) -> dict[str, float]:
    logits = np.mean([answer["logits"] for answer in answers], axis=0)
    if not len(logits):
        return dict(EMPTY_SCORES)
    values, score = answers[0]["values"], answers[0]["score"]
    return score_predictions(
        logits,
        np.asarray(answers[0]["label"]),
        None if values is None else np.mean([answer["values"] for answer in answers], axis=0),
        None if score is None else np.asarray(score),
    )
