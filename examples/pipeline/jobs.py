"""Runs as independent jobs: one JSON file each, written when the run has finished, skipped when it is there."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

import mmrobust

from .cli import PipelineCLI, quiet, store_config
from .errors import DEBUG
from .files import atomic_file

Result = dict[str, Any]
READ_WHOLE = 64 * 2**20  # larger files are told apart by name and size


@dataclass(frozen=True)
class Job:
    """One training with its evaluation.

    Attributes:
        config: name of the configuration.
        data: name of the data.
        seed: seed of weights, data order and dropout.
        fold: fold of the data.
        args: words for the command line of the pipeline, without seed and fold.
        path: the JSON file of the result.
        fingerprint: hash of all that the result depends on, besides seed and fold.
        keep: whether its checkpoint stays, in `folder` beside the result.
    """

    config: str
    data: str
    seed: int
    fold: int
    args: tuple[str, ...]
    path: str
    fingerprint: str
    keep: bool = False

    @property
    def folder(self) -> Path:
        return Path(self.path.removesuffix(".json"))

    @property
    def label(self) -> str:
        return f"{self.config} seed {self.seed} fold {self.fold}"

    @property
    def words(self) -> list[str]:
        return [*self.args, "--seed_everything", str(self.seed), "--data.fold", str(self.fold)]

    def finished(self) -> Result | None:
        """Read the result if the job has one of the same settings, data and version; edits of the code are not seen."""
        try:
            result: Result = json.loads(Path(self.path).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        there = not self.keep or (self.folder / "best.ckpt").is_file()
        return result if there and result.get("fingerprint") == self.fingerprint else None

    def store(self, started: float, **found: Any) -> Result:
        """Write the result of a run that began at `started`, by `time.perf_counter`."""
        facts = {name: getattr(self, name) for name in ("config", "data", "seed", "fold", "fingerprint")}
        result: Result = {**facts, **found, "seconds": round(time.perf_counter() - started, 2)}
        with atomic_file(Path(self.path)) as path:
            path.write_text(json.dumps(result), encoding="utf-8")
        return result


Execute = Callable[[Any], Result]


class Outcome(NamedTuple):
    """What became of a job: its result, or the error that ended it."""

    job: Job
    result: Result | None
    error: str = ""


def plan_jobs(
    cli: PipelineCLI,
    name: str,
    data: str,
    identity: str,
    out: Path,
    *,
    seeds: Iterable[int],
    folds: Sequence[int],
    by_seed: bool = False,
    call: Sequence[str] = (),
    keep: bool = False,
) -> list[Job]:
    """Make the jobs of a configuration that has been checked.

    Args:
        cli: The parsed configuration; what is run is what was checked, even if somebody edits a file meanwhile.
        name: Its name.
        data: Name of the data.
        identity: Its fingerprint.
        out: Folder of the results.
        seeds: Seeds of the runs.
        folds: Folds of the data.
        by_seed: Whether each seed runs on one fold only, in turn.
        call: More words, which do not change the result.
        keep: Whether checkpoints stay.
    """
    words = ("--config", str(store_config(cli.stored, out / "configs" / f"{name}-{identity}.yaml")), *call)
    in_turn = [(seed, folds[index % len(folds)]) for index, seed in enumerate(seeds)]
    wanted = in_turn if by_seed else product([seed for seed, _ in in_turn], folds)
    return [
        Job(name, data, seed, fold, words, str(out / "runs" / f"{name}-seed{seed}-fold{fold}.json"), identity, keep)
        for seed, fold in wanted
    ]


def complete(
    jobs: Sequence[Job], execute: Execute, summary: Callable[[Result], str], *, workers: int = 2, threads: int = 1
) -> tuple[dict[str, Result], list[Outcome]]:
    """Run all jobs with a line for each, `summary` says what is in it; return results by path, and the failures."""
    done: dict[str, Result] = {}
    failures: list[Outcome] = []
    try:
        with closing(run_jobs(jobs, execute, workers=workers, threads=threads)) as outcomes:
            for number, (job, result, error) in enumerate(outcomes, start=1):
                if result is None:
                    failures.append(Outcome(job, None, error))
                else:
                    done[job.path] = result
                text = f"FAILED: {error}" if result is None else summary(result)
                print(f"[{number}/{len(jobs)}] {job.label}: {text}", flush=True)
    except KeyboardInterrupt:
        kept = f"{len(done)} of {len(jobs)} runs are kept"
        raise KeyboardInterrupt(f"interrupted; {kept}, the same command goes on with the others") from None
    return done, failures


def check_complete(failures: Sequence[Outcome], total: int, out: Path) -> None:
    """Raise if there are failures: after the other runs have been reported."""
    if failures:
        first = f"first: {failures[0].job.label}: {failures[0].error}"
        raise ValueError(f"ablate: {len(failures)} of {total} runs failed; the others are in {out}; {first}")


def run_jobs(jobs: Sequence[Job], execute: Execute, *, workers: int = 2, threads: int = 1) -> Iterator[Outcome]:
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
        yield from map(partial(_attempt, execute), waiting)
    else:
        yield from _in_processes(waiting, execute, min(workers, len(waiting)), threads)


def _attempt(execute: Execute, job: Job) -> Outcome:
    try:
        return Outcome(job, execute(job))
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        return Outcome(job, None, " ".join(str(error).split()) or type(error).__name__)


def _in_processes(jobs: Sequence[Job], execute: Execute, workers: int, threads: int) -> Iterator[Outcome]:
    # Not forked: a fork of a process that has used OpenMP or CUDA can hang.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(threads,))
    futures: dict[Future[Outcome], Job] = {}
    try:
        futures = {pool.submit(_attempt, execute, job): job for job in jobs}
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


def fingerprint(cli: PipelineCLI, *parts: Any, files: Iterable[Path] = ()) -> str:
    """Hash what the result of a run depends on: settings, data and evaluation; not seed, fold and paths.

    Args:
        cli: The parsed configuration.
        *parts: More that the result depends on.
        files: Files of the data that may lie elsewhere than in its root.
    """
    content = [mmrobust.__version__, _settings(cli), data_fingerprint(cli.config.data.root, files), parts]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def comparable(cli: PipelineCLI) -> dict[str, Any]:
    """List the settings of a run by dotted name, without seed, fold and paths."""
    found, waiting = dict[str, Any](), list(_settings(cli).items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{name}.{key}", one) for key, one in value.items()]
        else:
            found[name] = value
    return found


def _settings(cli: PipelineCLI) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(cli.stored)
    for section, key in ((config, "seed_everything"), (config["data"], "fold"), (config["data"], "root")):
        section.pop(key, None)
    return config


def data_fingerprint(root: str, files: Iterable[Path] = ()) -> str:
    """Hash a file, or a folder: the files directly in it by content, those below by name and size.

    Of `files` those are hashed by content, too, that are not already.
    """
    path, found = Path(root), hashlib.sha256()
    home = path.parent if path.is_file() else path
    own: Iterable[Path] = [path] if path.is_file() else sorted(path.rglob("*"))
    more = [file for file in sorted(set(files)) if file != path and (path.is_file() or file.parent != path)]
    for file in (*own, *more):
        if file.is_file():
            size = file.stat().st_size
            found.update(f"{os.path.relpath(file, home)}:{size}\n".encode())
            if size <= READ_WHOLE and (file in more or file.parent == home):
                found.update(file.read_bytes())
    return found.hexdigest()
