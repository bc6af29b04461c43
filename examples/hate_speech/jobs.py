"""The runs of this pipeline as jobs: a training or a baseline, each with its evaluation."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from examples.pipeline import jobs as shared
from examples.pipeline.jobs import Job, Outcome, Result

from .classical import fit_classical
from .cli import HateCLI
from .measure import Wanted, classification_views, measure


@dataclass(frozen=True)
class HateJob(Job):
    """A training, or the fit of a baseline.

    Attributes:
        classical: name of a baseline of scikit-learn; "" = what the configuration says.
    """

    classical: str = ""


def execute(job: HateJob, wanted: Wanted) -> Result:
    """Train, select on validation, evaluate on test, write the result."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        words = [*job.words, "--trainer.default_root_dir", str(job.folder) if job.keep else folder]
        cli = HateCLI(words, keep_last=False, trainer={"enable_progress_bar": False}, name=job.config)
        if job.classical:
            logits, chosen = fit_classical(job.classical, cli.datamodule, job.seed)
            return job.store(started, chosen=chosen, views=classification_views(logits, cli.datamodule))
        best = cli.train()
    views = measure(cli.model, cli.datamodule, wanted)
    return job.store(started, best_epoch=best["epoch"], epochs=cli.trainer.current_epoch, views=views)


def complete(
    jobs: Sequence[HateJob], wanted: Wanted, *, workers: int, threads: int
) -> tuple[dict[str, Result], list[Outcome]]:
    """Run all jobs with a line for each; return the results by path, and the failures."""
    return shared.complete(jobs, partial(execute, wanted=wanted), _summary, workers=workers, threads=threads)


def _summary(result: Result) -> str:
    """Say how a run went without its test scores, which are for the end."""
    score = result["views"]["val"][""]["macro_f1"]
    how = result.get("chosen") or f"epoch {result['best_epoch'] + 1} of {result['epochs']}"
    return f"validation macro F1 {score:.3f}, {how}, {result['seconds']:.0f} s"
