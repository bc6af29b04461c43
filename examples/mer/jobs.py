"""The runs of this pipeline as jobs: a training with its robustness, or a specialist with its answers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.robustness import VIEWS
from examples.pipeline import jobs as shared
from examples.pipeline.callbacks import EpochLines
from examples.pipeline.jobs import Outcome, Result

from .cli import EPOCH_SCORES, MerCLI
from .detectors import add_detectors
from .predict import Member, list_tests, predictor, views_on_tests


@dataclass(frozen=True)
class Job(shared.Job):
    """One training with its evaluation.

    Attributes:
        subset: modalities of a specialist, which is trained and selected on them alone; () = all, a normal run.
        views: the robustness views of a normal run.
        draws: draws per missing rate.
        epoch_lines: print a line every so many epochs; 0 = none, many runs at once would drown in them.
    """

    subset: tuple[str, ...] = ()
    views: tuple[str, ...] = VIEWS
    draws: int = 10
    epoch_lines: int = 0

    @property
    def label(self) -> str:
        only = f" only {'+'.join(self.subset)}" if self.subset else ""
        return f"{super().label}{only}"


def execute(job: Job) -> Result:
    """Train, select on validation, evaluate on test, write the result."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        words = [*job.words, "--trainer.default_root_dir", folder]
        lines = [EpochLines(EPOCH_SCORES, job.epoch_lines, job.label)] if job.epoch_lines else []
        cli = MerCLI(words, keep_last=False, trainer={"enable_progress_bar": False}, callbacks=lines)
        best = cli.train()
    clean = list_tests(cli.datamodule)[0]
    found = {"best_epoch": best["epoch"], "epochs": cli.trainer.current_epoch, "clean": clean}
    predict = predictor([Member(cli.model)])
    if job.subset:
        return job.store(started, **found, answer=_answer(predict, cli.datamodule.sets[clean]))
    views = views_on_tests(predict, cli.datamodule, views=job.views, draws=job.draws)
    views["val"] = {"": best["validation"]}
    add_detectors(views, cli.model, cli.datamodule)
    return job.store(started, **found, views=views)


def _answer(predict: Any, part: Any) -> dict[str, Any]:
    """Keep what a specialist says about every row that has any of its modalities, and the truth."""
    rows = part.present.any(1).nonzero().squeeze(1)
    some = part.subset(rows)
    with torch.inference_mode():
        prediction = predict(some.features, some.present, some.masks)
    values = prediction.values
    return {
        "logits": prediction.logits.tolist(),
        "values": None if values is None else values.tolist(),
        "label": some.label.tolist(),
        "score": None if some.score is None else some.score.tolist(),
    }


def complete(jobs: Sequence[Job], *, workers: int, threads: int, score: str) -> tuple[dict[str, Result], list[Outcome]]:
    """Run all jobs with a line for each; return the results by path, and the failures."""
    return shared.complete(jobs, execute, partial(_summary, score=score), workers=workers, threads=threads)


def _summary(result: Result, *, score: str) -> str:
    text = f"epoch {result['best_epoch'] + 1} of {result['epochs']}, {result['seconds']:.0f} s"
    if "views" not in result:
        return text
    return f"{score} {result['views'][result['clean']][''].get(score, float('nan')):.3f}, {text}"
