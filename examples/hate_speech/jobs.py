"""Runs as independent jobs: one JSON file each, written when the run has finished, skipped when it is there."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import NamedTuple

import torch

from examples.mer.files import atomic_file
from examples.mer.jobs import Job, Outcome, Result, _start_worker

from .cli import HateCLI
from .measure import Wanted, measure


class HateJob(NamedTuple):
    """A training with its evaluation.

    Attributes:
        run: Which one.
        wanted: What to measure.
        call: More words for `HateCLI`, which do not change the result.
        keep: Whether its checkpoint stays, in a folder beside the result.
    """

    run: Job
    wanted: Wanted
    call: tuple[str, ...] = ()
    keep: bool = False


def execute(job: HateJob) -> Result:
    """Train, select on validation, evaluate on test, write the result."""
    started, run = time.perf_counter(), job.run
    words = [*run.args, *job.call, "--seed_everything", str(run.seed), "--data.fold", str(run.fold)]
    with tempfile.TemporaryDirectory() as folder:
        words += ["--trainer.default_root_dir", run.path.removesuffix(".json") if job.keep else folder]
        cli = HateCLI(words, keep_last=False, trainer={"enable_progress_bar": False}, name=run.config)
        best = cli.train()
    result: Result = {
        "config": run.config,
        "data": run.data,
        "seed": run.seed,
        "fold": run.fold,
        "fingerprint": run.fingerprint,
        "best_epoch": best["epoch"],
        "epochs": cli.trainer.current_epoch,
        "views": measure(cli.model, cli.datamodule, job.wanted),
    }
    result["seconds"] = round(time.perf_counter() - started, 2)
    with atomic_file(Path(run.path)) as path:
        path.write_text(json.dumps(result), encoding="utf-8")
    return result


def run_jobs(jobs: Sequence[HateJob], *, workers: int = 2, threads: int = 1) -> Iterator[Outcome]:
    """Run jobs in parallel processes and yield what became of each, finished ones first."""
    waiting = []
    for job in jobs:
        result = job.run.finished()
        if result is None:
            waiting.append(job)
        else:
            yield Outcome(job.run, result)
    if workers <= 1 or len(waiting) <= 1:
        torch.set_num_threads(threads)  # as in the processes: the number of threads changes the last digits
        yield from map(_attempt, waiting)
    else:
        yield from _in_processes(waiting, min(workers, len(waiting)), threads)


def _attempt(job: HateJob) -> Outcome:
    try:
        return Outcome(job.run, execute(job))
    except Exception as error:
        if os.environ.get("MER_DEBUG"):
            raise
        return Outcome(job.run, None, " ".join(str(error).split()) or type(error).__name__)


def _in_processes(jobs: Sequence[HateJob], workers: int, threads: int) -> Iterator[Outcome]:
    # Not forked: a fork of a process that has used OpenMP or CUDA can hang.
    others = set(active_children())
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(threads,))
    try:
        futures = {pool.submit(_attempt, job): job for job in jobs}
        for future in as_completed(futures):
            failure = future.exception()
            lost = Outcome(futures[future].run, None, f"its process ended ({failure})")
            yield lost if failure else future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(active_children()) - others:
            process.kill()
