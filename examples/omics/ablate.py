"""The `ablate` command: configurations x seeds x folds in parallel processes, resumable, compared run by run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from examples.pipeline.arguments import Arguments, check_reference, count, find_parts, label_of, split_overrides
from examples.pipeline.jobs import Result, check_complete, complete, fingerprint, plan_jobs
from examples.pipeline.reports import column_name, show

from .classical import CLASSICAL
from .cli import CONFIGS, OmicsCLI, data_name
from .data import OmicsData
from .jobs import QUIET, OmicsJob, execute, summary
from .readers import list_files
from .report import report
from .task import FROM_DATA, OmicsTask

BASE = "asymmetric"
VARIANTS = (
    *("no_supcon", "no_bank", "unbalanced", "linear_head", "no_attention", "exact"),
    *(f"dim{dim}" for dim in (1, 2, 8, 16)),
)
ALL = ("plain", BASE, *(f"{BASE}+{name}" for name in VARIANTS))
REFERENCE = "plain"


def ablate_command(args: Sequence[str]) -> None:
    """Train and evaluate all runs that are not there yet, then write CSV, tables and pictures of all."""
    parser = Arguments(
        "python -m examples.omics ablate",
        description=__doc__,
        epilog="All other words, such as --data.root PATH or --trainer.max_epochs 5, change every configuration.",
    )
    parser.add_argument(
        "--data", required=True, help="the data: a name in configs/data, such as rosmap, or a YAML file"
    )
    parser.add_argument(
        "--configs",
        nargs="+",
        help="names or YAML files; NAME+OTHER puts one after the other, as asymmetric+dim2 (default: all twelve, but "
        "those whose subspaces do not fit the classes of the data)",
    )
    parser.add_argument(
        "--baselines", nargs="*", choices=list(CLASSICAL), default=list(CLASSICAL), help="default: all three"
    )
    parser.add_argument("--seeds", type=count, default=10, help="number of seeds, from 0 on (default: %(default)s)")
    parser.add_argument("--folds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--by-seed", action="store_true", help="run each seed on one fold only, in turn")
    parser.add_argument(
        "--leave-out", nargs="+", default=[], metavar="CLASS", help="open-set test: train without a class; or: all"
    )
    parser.add_argument("--reference", help=f"compare with this one (default: {REFERENCE}, if it is among them)")
    parser.add_argument("--out", type=Path, required=True, help="folder for CSV, tables, pictures and finished runs")
    parser.add_argument("--workers", type=count, default=2, help="parallel processes (default: %(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="threads of each process (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoint of every run, for evaluate and plot")
    own, overrides = split_overrides(args)
    given = parser.parse_args(own)
    show(ablate(given, overrides))


def ablate(given: argparse.Namespace, overrides: Sequence[str]) -> list[Path]:
    """Run the jobs of the parsed arguments and report what has finished."""
    jobs, skipped = plan(given, overrides)
    print(*skipped, sep="\n", end="\n" if skipped else "", flush=True)
    done, failures = complete(jobs, execute, summary, workers=given.workers, threads=given.threads)
    results = merge(jobs, done)
    written: list[Path] = []
    if results:
        written = report(results, given.out, reference=given.reference or REFERENCE, notes=skipped)
    check_complete(failures, len(jobs), given.out)
    return written


def plan(given: argparse.Namespace, overrides: Sequence[str]) -> tuple[list[OmicsJob], list[str]]:
    """Check every configuration before the first run starts, and make the jobs; also say what was skipped."""
    wanted = given.configs or ALL
    files = {label_of(name): find_parts(name, CONFIGS) for name in wanted}
    if len(files) < len(wanted):
        raise ValueError(f"ablate: --configs: expected different names, got {', '.join(map(label_of, wanted))}")
    check_reference("ablate", given.reference, [*files, *given.baselines])
    shared = ["--config", given.data]
    first = [word for path in next(iter(files.values())) for word in ("--config", str(path))]
    data = OmicsCLI([*first, *shared, *overrides], trainer=QUIET).datamodule
    check_folds(data, given.folds)
    left_out, skipped = find_left_out(data, given.leave_out)
    jobs: list[OmicsJob] = []
    for name, paths in files.items():
        words = [word for path in paths for word in ("--config", str(path))]
        cli = OmicsCLI([*words, *shared, *overrides], build=False, trainer=QUIET)
        if not fits(name, paths, cli, data, skipped if given.configs is None else None):
            continue
        jobs += jobs_of(name, cli, given)
        jobs += [_without(job, place, one) for place, one in left_out for job in jobs_of(name, cli, given)]
    for name in given.baselines:
        cli = OmicsCLI([*first, *shared, *overrides], build=False, trainer=QUIET)
        jobs += jobs_of(name, cli, given, classical=name)
    return jobs, skipped


def check_folds(data: OmicsData, folds: Sequence[int]) -> None:
    for fold in folds:
        if not 0 <= fold < data.folds:
            raise ValueError(f"ablate: --folds: expected 0 to {data.folds - 1}, got {fold}")


def fits(name: str, files: Sequence[Path], cli: OmicsCLI, data: OmicsData, skipped: list[str] | None) -> bool:
    """Build the network once, for the errors of its options; too many subspaces are a note in `skipped`, if given."""
    try:
        OmicsTask(**{**vars(cli.config.model), **{name: getattr(data, name) for name in FROM_DATA}})
        return True
    except (TypeError, ValueError) as error:
        if skipped is not None and str(error).startswith("model.subspace_dim"):
            skipped.append(f"{name} skipped: {error}")
            return False
        raise ValueError(f"{'+'.join(map(str, files))}: {error}") from None


def find_left_out(data: OmicsData, wanted: Sequence[str]) -> tuple[list[tuple[int, str]], list[str]]:
    """Number the classes to leave out; of two classes none can be, which is said and not an error."""
    if not wanted:
        return [], []
    if len(data.classes) < 3:
        what = f"{data_name(data.root)} has two classes, {' and '.join(data.classes)}; without one, one is left"
        return [], [f"open-set test skipped: {what}"]
    names = data.classes if list(wanted) == ["all"] else list(wanted)
    for name in names:
        if name not in data.classes:
            raise ValueError(f"ablate: --leave-out: expected all, or some of {', '.join(data.classes)}, got {name!r}")
    return [(data.classes.index(name), name) for name in dict.fromkeys(names)], []


def jobs_of(name: str, cli: OmicsCLI, given: argparse.Namespace, *, classical: str = "") -> list[OmicsJob]:
    identity = fingerprint(cli, classical, files=data_files(cli))
    options = {"seeds": range(given.seeds), "folds": given.folds, "by_seed": given.by_seed}
    options["keep"] = given.keep and not classical  # a baseline has no checkpoint
    planned = plan_jobs(cli, name, data_name(cli.config.data.root), identity, given.out, **options)
    return [OmicsJob(**vars(job), classical=classical) for job in planned]


def data_files(cli: OmicsCLI) -> list[Path]:
    """List the files of the data, some of which may lie beside the root."""
    data = cli.config.data
    return list_files(data.root, [*data.branches.values(), *filter(None, (data.label, data.split, data.fold_array))])


def _without(job: OmicsJob, place: int, name: str) -> OmicsJob:
    path = Path(job.path)
    return replace(job, leave_out=name, path=str(path.parent.parent / "open" / f"{path.stem}-class{place}.json"))


def merge(jobs: Sequence[OmicsJob], done: dict[str, Result]) -> list[Result]:
    """Put the open-set tests of a run into its result: one view with a line per class, and their mean."""
    results = {job.path: dict(done[job.path]) for job in jobs if job.path in done and not job.leave_out}
    whole = {(job.config, job.seed, job.fold): job.path for job in jobs if not job.leave_out}
    for job in jobs:
        path = whole[job.config, job.seed, job.fold]
        if job.leave_out and job.path in done and path in results:
            views = results[path]["views"]
            found = done[job.path]["views"].get("open", {}).get("unknown")
            if found is not None:
                rejected = done[job.path]["views"].get("rejection", {}).get("", {}).get("rejected_unknown")
                found = found if rejected is None else {**found, "rejected": rejected}
                views["open"] = {**views.get("open", {}), column_name(job.leave_out): found}
    for result in results.values():
        found = result["views"].get("open")
        if found:
            names = list(next(iter(found.values())))
            found["mean"] = {name: float(np.nanmean([one[name] for one in found.values()])) for name in names}
    return list(results.values())
