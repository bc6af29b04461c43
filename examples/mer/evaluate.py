"""The `evaluate` command: all robustness views of trained checkpoints; folds of one seed, or all, as an ensemble."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from examples.pipeline.arguments import Arguments, check_reference, count, split_overrides
from examples.pipeline.jobs import Result, comparable, fingerprint

from .arguments import add_run_arguments, check_score
from .detectors import add_detectors
from .jobs import Job, complete
from .normalize import describe_features
from .origin import check_origin, origin_of, write_origin
from .predict import list_tests, views_on_tests
from .reporting import report, show
from .specialists import add_regret, describe_specialists, specialist_jobs
from .trained import Trained, check_ensemble, combine, describe_ensemble, open_checkpoint

# The arguments that decide what is measured, besides the checkpoints.
MEASURED = ("views", "draws", "no_regret", "ensemble", "specialist_seeds", "specialist_epochs")
ENSEMBLE = "ensemble"  # the configuration of a row that stands for all checkpoints
SEVERAL = -1  # the seed or fold of a row that stands for more than one


def evaluate_command(args: Sequence[str]) -> None:
    """Print the robustness of checkpoints and write CSV, tables and pictures."""
    parser = Arguments(
        "python -m examples.mer evaluate",
        description=__doc__,
        epilog="Other words, such as --data.root PATH, change the stored configuration.",
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, help="best.ckpt of one or more runs")
    parser.add_argument("--specialist-seeds", type=count, default=1, help="specialists per subset (default: 1)")
    parser.add_argument(
        "--ensemble",
        action="store_true",
        help="all checkpoints together are one model, the mean of their class probabilities; without regret",
    )
    parser.add_argument("--no-regret", action="store_true", help="train no specialists")
    parser.add_argument("--reference", help="configuration to compare with")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of other checkpoints in --out")
    add_run_arguments(parser)
    own, overrides = split_overrides(args)
    given = parser.parse_args(own)
    csv, files = evaluate(given, overrides)
    show(files[0])
    print(*(str(path) for path in (csv, *files)), sep="\n")


def evaluate(given: argparse.Namespace, overrides: Sequence[str]) -> tuple[Path, list[Path]]:
    """Measure the checkpoints of the parsed arguments and report."""
    origin = origin_of(given.checkpoints, overrides, {name: getattr(given, name) for name in MEASURED})
    if not given.overwrite:
        check_origin(given.out, origin)
    torch.set_num_threads(given.threads)
    trained = [open_checkpoint(path, overrides, given.out) for path in given.checkpoints]
    groups = gather(trained, given)
    for one in trained:
        check_score("evaluate", given.score, one.data)
    results = [evaluate_group(members, given) for members in groups]
    notes = {"": describe_features({one.name: vars(one.cli.config.data) for one in trained})}
    if given.ensemble:
        notes[""] += f" {describe_ensemble(trained)}"
    elif "subset" in given.views and not given.no_regret:
        notes["regret"] = regret(groups, results, given)
    parts = list_tests(trained[0].data)
    write_origin(given.out, origin, pending=True)
    written = report(results, given.out, parts=parts, score=given.score, reference=given.reference, notes=notes)
    write_origin(given.out, origin)
    return written


def gather(trained: Sequence[Trained], given: argparse.Namespace) -> list[list[Trained]]:
    """Check which checkpoints are one model, a row of the table, and put them together."""
    if given.ensemble:
        check_ensemble(trained)
        check_reference("evaluate", given.reference, [ENSEMBLE])
        return [list(trained)]
    check_alike(trained)
    check_reference("evaluate", given.reference, [one.name for one in trained])
    groups: dict[Any, list[Trained]] = {}
    for one in trained:
        groups.setdefault(one.key, []).append(one)
    for members in groups.values():
        if len({member.cli.config.data.fold for member in members}) < len(members):
            paths = ", ".join(str(member.path) for member in members)
            raise ValueError(f"evaluate: expected one checkpoint per configuration, seed and fold, got {paths}")
    return list(groups.values())


def check_alike(trained: Sequence[Trained]) -> None:
    """Raise if checkpoints of one configuration's name have other settings: a table would average over both."""
    first: dict[str, tuple[Path, dict[str, Any]]] = {}
    for one in trained:
        name, settings = one.name, comparable(one.cli)
        path, other = first.setdefault(name, (one.path, settings))
        for key in [*settings, *other]:
            if settings.get(key) != other.get(key):
                raise ValueError(
                    f"evaluate: {one.path}: expected the settings of {path}, of the same configuration {name}: "
                    f"{key} is {settings.get(key)!r} here and {other.get(key)!r} there; evaluate them apart"
                )


def evaluate_group(members: Sequence[Trained], given: argparse.Namespace) -> Result:
    """Evaluate one run, the folds of one seed together or an ensemble, on the test rows that they share."""
    first = members[0]
    predict = combine(members, probabilities=given.ensemble)
    views = views_on_tests(predict, first.data, views=given.views, draws=given.draws)
    validation = [member.checkpoint["validation"] for member in members]
    shared = [name for name in validation[0] if all(name in one for one in validation)]
    views["val"] = {"": {name: sum(one[name] for one in validation) / len(members) for name in shared}}
    if len(members) == 1:
        add_detectors(views, first.task, first.data)
    return {
        "config": ENSEMBLE if given.ensemble else first.name,
        "data": Path(first.data.root).stem,
        "seed": _shared([member.cli.config.seed_everything for member in members]),
        "fold": _shared([member.cli.config.data.fold for member in members]),
        "best_epoch": first.checkpoint["epoch"] if len(members) == 1 else None,
        "views": views,
    }


def _shared(numbers: Sequence[int]) -> int:
    return numbers[0] if len(set(numbers)) == 1 else SEVERAL


def regret(groups: Sequence[Sequence[Trained]], results: Sequence[Result], given: argparse.Namespace) -> str:
    """Train the specialists that are not there yet, add regret to the results, and say how they were trained."""
    wanted = [_specialists(members, given) for members in groups]
    jobs = {job.path: job for subsets in wanted for seeds in subsets.values() for folds in seeds for job in folds}
    print(f"specialists for the regret: {len(jobs)} short trainings", flush=True)
    done, failures = complete(list(jobs.values()), workers=given.workers, threads=given.threads, score=given.score)
    if failures:
        raise ValueError(f"evaluate: {len(failures)} specialists failed; first: {failures[0].error}")
    for result, subsets in zip(results, wanted, strict=True):
        answers = {name: [[done[job.path] for job in folds] for folds in seeds] for name, seeds in subsets.items()}
        add_regret(result["views"], answers)
    return describe_specialists(done.values(), seeds=given.specialist_seeds, epochs=given.specialist_epochs)


def _specialists(members: Sequence[Trained], given: argparse.Namespace) -> dict[str, list[list[Job]]]:
    """List the jobs by subset, then seed, then fold."""
    subsets: dict[str, list[list[Job]]] = {}
    for offset in range(given.specialist_seeds):
        folds = [_specialists_of(member, 1000 * offset, given) for member in members]
        for subset in folds[0]:
            subsets.setdefault(subset, []).append([jobs[subset] for jobs in folds])
    return subsets


def _specialists_of(member: Trained, offset: int, given: argparse.Namespace) -> dict[str, Job]:
    name, settings = member.name, member.cli.config
    run = Job(
        config=name,
        data=Path(member.data.root).stem,
        seed=settings.seed_everything + offset,
        fold=settings.data.fold,
        args=member.words,
        path="",
        fingerprint=fingerprint(member.cli),
    )
    config, folder = yaml.safe_load(member.cli.stored), given.out / "specialists"
    return specialist_jobs(run, config, tuple(member.data.in_features), folder, epochs=given.specialist_epochs)
