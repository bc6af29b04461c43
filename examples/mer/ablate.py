"""The `ablate` command: configurations x seeds x folds in parallel processes, resumable, compared run by run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from examples.pipeline.arguments import Arguments, check_reference, find_config, split_overrides
from examples.pipeline.jobs import Outcome, Result, fingerprint, plan_jobs

from .arguments import CONFIGS, add_run_arguments, check_score, find_variant, label_of
from .build import FROM_DATA
from .cli import MerCLI
from .data import MultimodalData
from .jobs import Job, complete
from .normalize import describe_features
from .origin import check_free
from .predict import list_tests
from .reporting import report, show
from .specialists import add_regret, describe_specialists, specialist_jobs
from .task import FusionTask

ALL = (
    "baseline",
    "robust_v1",
    "robust_v2",
    "robust_v3",
    "v4_full",
    "v4_no_contrastive",
    "v4_no_gate",
    "v4_pure_vae",
    "p_rmf",
    "mean",
    "robust",
)
REFERENCE = "baseline"


def ablate_command(args: Sequence[str]) -> None:
    """Train and evaluate all runs that are not there yet, then write CSV, tables and pictures of all."""
    parser = Arguments(
        "python -m examples.mer ablate",
        description=__doc__,
        epilog="All other words, such as --data.root PATH or --trainer.max_epochs 5, change every configuration.",
    )
    parser.add_argument(
        "--configs",
        nargs="+",
        default=list(ALL),
        help="names or YAML files, each also with a variant of variants.yaml, as robust:no_views (default: all eleven)",
    )
    parser.add_argument("--data-config", help="name in configs/data or YAML file; put after each configuration")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="default: 0 1 2 3 4")
    parser.add_argument("--folds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument(
        "--reference", type=label_of, help=f"compare with this one (default: {REFERENCE}, if it is among them)"
    )
    parser.add_argument("--by-seed", action="store_true", help="run each seed on one fold only, in turn")
    parser.add_argument(
        "--regret",
        nargs="*",
        type=label_of,
        metavar="CONFIG",
        help="also train specialists for every subset, of these configurations (default: of all)",
    )
    parser.add_argument("--regret-seeds", type=int, nargs="+", help="only for the runs of these seeds (default: all)")
    add_run_arguments(parser)
    parser.set_defaults(epoch_lines=0)
    own, overrides = split_overrides(args)
    given = parser.parse_args(own)
    csv, files = ablate(given, overrides)
    show(files[0])
    print(*(str(path) for path in (csv, *files)), sep="\n")


def ablate(given: argparse.Namespace, overrides: Sequence[str]) -> tuple[Path, list[Path]]:
    """Run the jobs of the parsed arguments and report what has finished."""
    if given.regret is not None and "subset" not in given.views:
        raise ValueError("ablate: --regret needs the view 'subset'")
    check_free(given.out)
    planned, data = plan(given, overrides)
    runs = [job for job, _ in planned]
    folder, epochs = given.out / "specialists", given.specialist_epochs
    specialists = {
        job.path: specialist_jobs(job, config, tuple(data.in_features), folder, epochs=epochs)
        if wants_regret(job, given)
        else {}
        for job, config in planned
    }
    jobs = [*runs, *(one for group in specialists.values() for one in group.values())]
    done, failures = complete(jobs, workers=given.workers, threads=given.threads, score=given.score)
    results = [done[job.path] for job in runs if job.path in done]
    for job, result in [(job, done[job.path]) for job in runs if job.path in done]:
        answers = {name: [[done[one.path]]] for name, one in specialists[job.path].items() if one.path in done}
        if answers and len(answers) == len(specialists[job.path]):
            add_regret(result["views"], answers)
    notes = {"": describe_features({job.config: config["data"] for job, config in planned})}
    trained = [done[one.path] for group in specialists.values() for one in group.values() if one.path in done]
    if trained:
        notes["regret"] = describe_specialists(trained, epochs=given.specialist_epochs)
    return finish(results, failures, len(jobs), given, list_tests(data), notes)


def check_regret(given: argparse.Namespace, configs: Sequence[str]) -> None:
    """Raise if specialists are asked for beside runs that there are not."""
    for name in given.regret or ():
        check_reference("ablate", name, configs, "--regret")
    if given.regret_seeds and given.regret is None:
        raise ValueError("ablate: --regret-seeds needs --regret")
    for seed in given.regret_seeds or ():
        check_reference("ablate", seed, given.seeds, "--regret-seeds")


def wants_regret(job: Job, given: argparse.Namespace) -> bool:
    """Tell whether specialists are asked for beside this run."""
    if given.regret is None or (given.regret and job.config not in given.regret):
        return False
    return not given.regret_seeds or job.seed in given.regret_seeds


Planned = tuple[Job, dict[str, Any]]


def plan(given: argparse.Namespace, overrides: Sequence[str]) -> tuple[list[Planned], MultimodalData]:
    """Check every configuration before the first run starts; make the jobs, each with its resolved configuration."""
    files = {label_of(name): find_variant(name) for name in given.configs}
    if len(files) < len(given.configs):
        raise ValueError(f"ablate: --configs: expected different names, got {', '.join(map(label_of, given.configs))}")
    check_regret(given, list(files))
    shared = [find_config(given.data_config, CONFIGS / "data")] if given.data_config else []
    check_reference("ablate", given.reference, list(files))
    data: MultimodalData | None = None
    jobs: list[Planned] = []
    for name, (file, changes) in files.items():
        words = tuple(word for path in (file, *shared) for word in ("--config", str(path)))
        words = (*words, *changes, *overrides)
        # The data is read once here: its errors are the same for all.
        cli = MerCLI(words, build=data is None, trainer={"enable_progress_bar": False})
        data = cli.datamodule if data is None else data
        check_score("ablate", given.score, data)
        _check(file, cli, data, given.folds)
        label = shared[0].stem if shared else Path(data.root).stem
        jobs += _jobs(name, label, cli, given)
    assert data is not None
    return jobs, data


def _check(file: Path, cli: MerCLI, data: MultimodalData, folds: Sequence[int]) -> None:
    try:
        FusionTask(**{**vars(cli.config.model), **{name: getattr(data, name) for name in FROM_DATA}})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None
    for fold in folds:
        if not 0 <= fold < cli.config.data.folds:
            raise ValueError(f"ablate: --folds: expected 0 to {cli.config.data.folds - 1}, got {fold}")


def _jobs(name: str, label: str, cli: MerCLI, given: argparse.Namespace) -> list[Planned]:
    identity, config = fingerprint(cli, given.views, given.draws), yaml.safe_load(cli.stored)
    seeds = {"seeds": given.seeds, "folds": given.folds, "by_seed": given.by_seed}
    more = {"views": tuple(given.views), "draws": given.draws, "epoch_lines": given.epoch_lines}
    return [(Job(**vars(job), **more), config) for job in plan_jobs(cli, name, label, identity, given.out, **seeds)]


def finish(
    results: Sequence[Result],
    failures: Sequence[Outcome],
    total: int,
    given: argparse.Namespace,
    parts: Sequence[str],
    notes: Mapping[str, str],
) -> tuple[Path, list[Path]]:
    """Report the finished runs; a failed one is an error, but only after the others have been reported."""
    written = None
    if results:
        reference = given.reference or REFERENCE
        written = report(results, given.out, parts=parts, score=given.score, reference=reference, notes=notes)
    if failures or written is None:
        first = f"; first: {failures[0].job.label}: {failures[0].error}" if failures else ""
        raise ValueError(f"ablate: {len(failures)} of {total} runs failed; the others are in {given.out}{first}")
    return written
