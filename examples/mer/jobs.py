"""Runs as independent jobs: one JSON file each, written when the run has finished, skipped when it is there."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

import mmrobust
from benchmarks.robustness import VIEWS

from .callbacks import EpochLines
from .cli import MerCLI, quiet
from .detectors import add_detectors
from .files import atomic_file
from .predict import Member, list_tests, predictor, views_on_tests

Result = dict[str, Any]
READ_WHOLE = 64 * 2**20  # larger files are told apart by name and size


class Job(NamedTuple):
    """One training with its evaluation.

    Attributes:
        config: name of the configuration.
        data: name of the data.
        seed: seed of weights, data order and dropout.
        fold: fold of the data.
        args: words for `MerCLI`, without seed and fold.
        path: the JSON file of the result.
        fingerprint: hash of all that the result depends on, besides seed and fold.
        subset: modalities of a specialist, which is trained and selected on them alone; () = all, a normal run.
        views: the robustness views of a normal run.
        draws: draws per missing rate.
        epoch_lines: print a line every so many epochs; 0 = none, many runs at once would drown in them.
    """

    config: str
    data: str
    seed: int
    fold: int
    args: tuple[str, ...]
    path: str
    fingerprint: str
    subset: tuple[str, ...] = ()
    views: tuple[str, ...] = VIEWS
    draws: int = 10
    epoch_lines: int = 0

    @property
    def label(self) -> str:
        only = f" only {'+'.join(self.subset)}" if self.subset else ""
        return f"{self.config} seed {self.seed} fold {self.fold}{only}"

    def finished(self) -> Result | None:
        """Read the result if the job has one of the same settings, data and version; edits of the code are not seen."""
        try:
            result: Result = json.loads(Path(self.path).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return result if result.get("fingerprint") == self.fingerprint else None


def execute(job: Job) -> Result:
    """Train, select on validation, evaluate on test, write the result."""
    started = time.perf_counter()
    words = [*job.args, "--seed_everything", str(job.seed), "--data.fold", str(job.fold)]
    with tempfile.TemporaryDirectory() as folder:
        words += ["--trainer.default_root_dir", folder]
        lines = [EpochLines(job.epoch_lines, job.label)] if job.epoch_lines else []
        cli = MerCLI(words, keep_last=False, trainer={"enable_progress_bar": False}, callbacks=lines)
        best = cli.train()
    result: Result = {
        "config": job.config,
        "data": job.data,
        "seed": job.seed,
        "fold": job.fold,
        "fingerprint": job.fingerprint,
        "best_epoch": best["epoch"],
        "epochs": cli.trainer.current_epoch,
        "clean": list_tests(cli.datamodule)[0],
    }
    predict = predictor([Member(cli.model)])
    if job.subset:
        result["answer"] = _answer(predict, cli.datamodule.sets[result["clean"]])
    else:
        result["views"] = views_on_tests(predict, cli.datamodule, views=job.views, draws=job.draws)
        result["views"]["val"] = {"": best["validation"]}
        add_detectors(result["views"], cli.model, cli.datamodule)
    result["seconds"] = round(time.perf_counter() - started, 2)
    with atomic_file(Path(job.path)) as path:
        path.write_text(json.dumps(result), encoding="utf-8")
    return result


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


class Outcome(NamedTuple):
    """What became of a job: its result, or the error that ended it."""

    job: Job
    result: Result | None
    error: str = ""


def run_jobs(jobs: Sequence[Job], *, workers: int = 2, threads: int = 1) -> Iterator[Outcome]:
    """Run jobs in parallel processes and yield what became of each, finished ones first.

    Results are on disk before they are yielded, so an interruption loses only the runs that were going on.
    """
    waiting = []
    for job in jobs:
        result = job.finished()
        if result is None:
            waiting.append(job)
        else:
            yield Outcome(job, result)
    if workers <= 1 or len(waiting) <= 1:
        torch.set_num_threads(threads)  # as in the processes: the number of threads changes the last digits
        yield from map(_attempt, waiting)
    else:
        yield from _in_processes(waiting, min(workers, len(waiting)), threads)


def _attempt(job: Job) -> Outcome:
    try:
        return Outcome(job, execute(job))
    except Exception as error:
        if os.environ.get("MER_DEBUG"):
            raise
        return Outcome(job, None, " ".join(str(error).split()) or type(error).__name__)


def _in_processes(jobs: Sequence[Job], workers: int, threads: int) -> Iterator[Outcome]:
    # Not forked: a fork of a process that has used OpenMP or CUDA can hang.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(threads,))
    futures: dict[Future[Outcome], Job] = {}
    try:
        futures = {pool.submit(_attempt, job): job for job in jobs}
        for future in as_completed(futures):
            failure = future.exception()
            yield Outcome(futures[future], None, f"its process ended ({failure})") if failure else future.result()
        pool.shutdown()
    finally:
        # After an interruption: whoever waits for a run of minutes does not want to wait for it to end.
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.kill()


def _start_worker(threads: int) -> None:
    # Ctrl-C reaches all processes of a terminal; the parent alone decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    quiet()


def fingerprint(cli: MerCLI, *parts: Any) -> str:
    """Hash what the result of a run depends on: settings, data and evaluation; not seed, fold and paths."""
    content = [mmrobust.__version__, _settings(cli), data_fingerprint(cli.config.data.root), parts]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def comparable(cli: MerCLI) -> dict[str, Any]:
    """List the settings of a run by dotted name, without seed, fold and paths."""
    found, waiting = dict[str, Any](), list(_settings(cli).items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{name}.{key}", one) for key, one in value.items()]
        else:
            found[name] = value
    return found


def _settings(cli: MerCLI) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(cli.stored)
    for section, key in ((config, "seed_everything"), (config["data"], "fold"), (config["data"], "root")):
        section.pop(key, None)
    return config


def data_fingerprint(root: str) -> str:
    """Hash a file, or a folder: the files directly in it by content, those below by name and size."""
    path, found = Path(root), hashlib.sha256()
    files: Iterable[Path] = [path] if path.is_file() else sorted(path.rglob("*"))
    for file in files:
        if file.is_file():
            size = file.stat().st_size
            found.update(f"{file.relative_to(path.parent if path.is_file() else path)}:{size}\n".encode())
            if size <= READ_WHOLE and file.parent in (path, path.parent):
                found.update(file.read_bytes())
    return found.hexdigest()
