"""The runs of this pipeline as jobs: a training or a baseline, each with its evaluation."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass

from examples.pipeline.jobs import Job, Result

from .classical import measure_classical
from .cli import OmicsCLI
from .measure import fit_facts, measure
from .task import OmicsTask

QUIET = {"enable_progress_bar": False}


@dataclass(frozen=True)
class OmicsJob(Job):
    """A training, or the fit of a baseline.

    Attributes:
        classical: name of a baseline of scikit-learn; "" = what the configuration says.
        leave_out: class without training rows; "" = none.
    """

    classical: str = ""
    leave_out: str = ""

    @property
    def label(self) -> str:
        return super().label + (f" without class {self.leave_out}" if self.leave_out else "")


def execute(job: OmicsJob) -> Result:
    """Train, select on validation, evaluate on test, write the result."""
    started = time.perf_counter()
    more = ["--data.leave_out", job.leave_out] if job.leave_out else []
    with tempfile.TemporaryDirectory() as folder:
        words = [*job.words, *more, "--trainer.default_root_dir", str(job.folder) if job.keep else folder]
        cli = OmicsCLI(words, keep_last=False, trainer=QUIET, name=job.config)
        if job.classical:
            views, chosen = measure_classical(job.classical, cli.datamodule, job.seed)
            return job.store(started, chosen=chosen, views=views)
        best = cli.train()
    kind, figures = fit_facts(cli.history.lines)
    views = {**measure(cli.model, cli.datamodule), "fit": figures, "size": {"": sizes(cli.model)}}
    return job.store(started, best_epoch=best["epoch"], epochs=cli.trainer.current_epoch, fit=kind, views=views)


def sizes(task: OmicsTask) -> dict[str, float]:
    """Give the number of weights, and of basis vectors per class, 0 for a linear head."""
    dim = 0 if task.prototypes is None else task.prototypes.subspace_dim
    return {"weights": float(sum(x.numel() for x in task.model.parameters())), "subspace_dim": float(dim)}


def summary(result: Result) -> str:
    """Say how a run went without its test scores, which are for the end."""
    score, seconds = result["views"]["val"][""]["balanced_accuracy"], f"{result['seconds']:.0f} s"
    how = result.get("chosen") or f"epoch {result['best_epoch'] + 1} of {result['epochs']}, {result['fit']}"
    return f"validation balanced accuracy {score:.3f}, {how}, {seconds}"
