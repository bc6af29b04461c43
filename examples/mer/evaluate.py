"""The `evaluate` command: all robustness views of trained checkpoints, folds of one seed averaged as an ensemble."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from .ablate import complete
from .arguments import Arguments, add_run_arguments, check_reference, check_score, count, split_overrides
from .checkpoints import check_fits, load_checkpoint
from .cli import MerCLI, store_config
from .data import MultimodalData
from .jobs import Job, Result, comparable, fingerprint
from .normalize import Standardizer, describe_features
from .origin import check_origin, origin_of, write_origin
from .predict import Member, list_tests, predictor, views_on_tests
from .reporting import report, show
from .specialists import add_regret, describe_specialists, specialist_jobs
from .task import FusionTask

# The settings of the data that decide which rows are for training.
SPLITTING = ("fold", "folds", "fold_array", "group", "split", "split_values", "split_seed")
# The arguments that decide what is measured, besides the checkpoints.
MEASURED = ("views", "draws", "no_regret", "specialist_seeds", "specialist_epochs")
ENSEMBLE = -1  # the fold of a row that stands for all folds of a seed


class Trained(NamedTuple):
    """A checkpoint with the task it holds and the data it was trained on."""

    path: Path
    checkpoint: dict[str, Any]
    cli: MerCLI
    words: tuple[str, ...]

    @property
    def task(self) -> FusionTask:
        return self.cli.model

    @property
    def data(self) -> MultimodalData:
        return self.cli.datamodule

    @property
    def key(self) -> tuple[str, int, tuple[str, ...]]:
        """What the members of an ensemble share: configuration, seed and the rows they are tested on."""
        ids = self.data.sets[list_tests(self.data)[0]].ids
        return self.checkpoint["config_name"], self.cli.config.seed_everything, tuple(ids)


def evaluate_command(args: Sequence[str]) -> None:
    """Print the robustness of checkpoints and write CSV, tables and pictures."""
    parser = Arguments(
        "python -m examples.mer evaluate",
        description=__doc__,
        epilog="Other words, such as --data.root PATH, change the stored configuration.",
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, help="best.ckpt of one or more runs")
    parser.add_argument("--specialist-seeds", type=count, default=1, help="specialists per subset (default: 1)")
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
    check_alike(trained)
    check_reference("evaluate", given.reference, [one.checkpoint["config_name"] for one in trained])
    for one in trained:
        check_score("evaluate", given.score, one.data)
    groups: dict[Any, list[Trained]] = {}
    for one in trained:
        groups.setdefault(one.key, []).append(one)
    results = [evaluate_group(members, given) for members in groups.values()]
    notes = {"": describe_features({one.checkpoint["config_name"]: vars(one.cli.config.data) for one in trained})}
    if "subset" in given.views and not given.no_regret:
        notes["regret"] = regret(list(groups.values()), results, given)
    parts = list_tests(trained[0].data)
    write_origin(given.out, origin, pending=True)
    written = report(results, given.out, parts=parts, score=given.score, reference=given.reference, notes=notes)
    write_origin(given.out, origin)
    return written


def check_alike(trained: Sequence[Trained]) -> None:
    """Raise if checkpoints of one configuration's name have other settings: a table would average over both."""
    first: dict[str, tuple[Path, dict[str, Any]]] = {}
    for one in trained:
        name, settings = one.checkpoint["config_name"], comparable(one.cli)
        path, other = first.setdefault(name, (one.path, settings))
        for key in [*settings, *other]:
            if settings.get(key) != other.get(key):
                raise ValueError(
                    f"evaluate: {one.path}: expected the settings of {path}, of the same configuration {name}: "
                    f"{key} is {settings.get(key)!r} here and {other.get(key)!r} there; evaluate them apart"
                )


def open_checkpoint(path: Path, overrides: Sequence[str], out: Path) -> Trained:
    """Rebuild data and task from the configuration that the checkpoint holds."""
    checkpoint = load_checkpoint(path)
    config: str = checkpoint["config"]
    # A file, as specialists are trained from the same words in other processes.
    name = f"{checkpoint['config_name']}-{hashlib.sha256(config.encode()).hexdigest()[:16]}.yaml"
    words = ("--config", str(store_config(config, out / "configs" / name)), *overrides)
    cli = MerCLI(words, keep_last=False, trainer={"enable_progress_bar": False})
    check_split(path, yaml.safe_load(config)["data"], vars(cli.config.data))
    check_fits(path, checkpoint, cli.model)
    cli.model.load_state_dict(checkpoint["state_dict"])
    return Trained(path, checkpoint, cli, words)


def check_split(path: Path, trained: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise if another split is asked for than the checkpoint was trained with: its test rows were training rows."""
    for name in SPLITTING:
        if name in trained and trained[name] != asked.get(name):
            raise ValueError(
                f"evaluate: {path}: was trained with --data.{name} {trained[name]}, so that the test rows of "
                f"{asked.get(name)} may be its training rows; evaluate it as it was trained"
            )


def evaluate_group(members: Sequence[Trained], given: argparse.Namespace) -> Result:
    """Evaluate one run, or the folds of one seed together, on the test rows that they share."""
    first = members[0]
    if len({member.cli.config.data.fold for member in members}) < len(members):
        paths = ", ".join(str(member.path) for member in members)
        raise ValueError(f"evaluate: expected one checkpoint per configuration, seed and fold, got {paths}")
    if len(members) > 1 and first.data.normalize == "train":
        own = [standardizer_of(member) for member in members]
        predict = predictor([Member(one.task, scale) for one, scale in zip(members, own, strict=True)], own[0])
    else:
        predict = predictor([Member(member.task) for member in members])
    views = views_on_tests(predict, first.data, views=given.views, draws=given.draws)
    validation = [member.checkpoint["validation"] for member in members]
    views["val"] = {"": {name: sum(one[name] for one in validation) / len(members) for name in validation[0]}}
    return {
        "config": first.checkpoint["config_name"],
        "data": Path(first.data.root).stem,
        "seed": first.cli.config.seed_everything,
        "fold": first.cli.config.data.fold if len(members) == 1 else ENSEMBLE,
        "best_epoch": first.checkpoint["epoch"] if len(members) == 1 else None,
        "views": views,
    }


def standardizer_of(member: Trained) -> Standardizer:
    """Measure the training rows of a member as its data module did."""
    raw = MerCLI([*member.words, "--data.normalize", "none"], trainer={"enable_progress_bar": False}).datamodule
    return Standardizer.fit(raw.sets["train"])


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
    name, settings = member.checkpoint["config_name"], member.cli.config
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
    return specialist_jobs(run, config, tuple(member.data.modalities), folder, epochs=given.specialist_epochs)
