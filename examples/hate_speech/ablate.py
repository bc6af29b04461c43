"""The `ablate` command: configurations x seeds x folds in parallel processes, resumable, compared run by run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from itertools import product
from pathlib import Path

from examples.mer.arguments import Arguments, check_reference, count, find_config, split_overrides
from examples.mer.cli import store_config
from examples.mer.jobs import Job, Outcome, Result, data_fingerprint, fingerprint

from .cli import HateCLI, corpus_of
from .data import TextData
from .evaluate import add_wanted, show, wanted_of
from .jobs import HateJob, run_jobs
from .measure import span_sets
from .readers import read_corpus
from .report import DCL, pairs_of, report
from .task import FROM_DATA, HateTask

CONFIGS = Path(__file__).parent / "configs"
PLAIN = ("encoder_only", "asrm", "token_level", "span_aware", "position_aware", "contrastive")
ALL = (*PLAIN, *(f"{name}+{DCL}" for name in PLAIN))
REFERENCE = "encoder_only"


def ablate_command(args: Sequence[str]) -> None:
    """Train and evaluate all runs that are not there yet, then write CSV, tables and pictures of all."""
    parser = Arguments(
        "python -m examples.hate_speech ablate",
        description=__doc__,
        epilog="All other words, such as --data.root PATH or --trainer.max_epochs 5, change every configuration.",
    )
    parser.add_argument(
        "--configs",
        nargs="+",
        default=list(ALL),
        help="names or YAML files; NAME+OTHER puts one after the other, as span_aware+dcl (default: all twelve)",
    )
    parser.add_argument("--seeds", type=count, default=5, help="number of seeds, from 0 on (default: %(default)s)")
    parser.add_argument("--folds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--by-seed", action="store_true", help="run each seed on one fold only, in turn")
    parser.add_argument("--reference", help=f"compare with this one (default: {REFERENCE}, if it is among them)")
    parser.add_argument("--out", type=Path, required=True, help="folder for CSV, tables, pictures and finished runs")
    parser.add_argument("--workers", type=count, default=2, help="parallel processes (default: %(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="threads of each process (default: %(default)s)")
    parser.add_argument(
        "--keep", action="store_true", help="keep the checkpoint of every run, for evaluate and explain"
    )
    add_wanted(parser, faithfulness=False)
    own, overrides = split_overrides(args)
    given = parser.parse_args(own)
    show(ablate(given, overrides))


def ablate(given: argparse.Namespace, overrides: Sequence[str]) -> list[Path]:
    """Run the jobs of the parsed arguments and report what has finished."""
    jobs, data = plan(given, overrides)
    done, failures = complete(jobs, workers=given.workers, threads=given.threads)
    results = [done[job.run.path] for job in jobs if job.run.path in done]
    written: list[Path] = []
    if results:
        names = list(dict.fromkeys(job.run.config for job in jobs))
        reference = given.reference or REFERENCE
        written = report(results, given.out, reference=reference, pairs=pairs_of(names), notes=data.notes)
    if failures:
        first = f"{failures[0].job.label}: {failures[0].error}"
        raise ValueError(f"ablate: {len(failures)} of {len(jobs)} runs failed; the others are in {given.out}; {first}")
    return written


def plan(given: argparse.Namespace, overrides: Sequence[str]) -> tuple[list[HateJob], TextData]:
    """Check every configuration before the first run starts, and make the jobs."""
    files = {label_of(name): [find_config(part, CONFIGS) for part in name.split("+")] for name in given.configs}
    if len(files) < len(given.configs):
        raise ValueError(f"ablate: --configs: expected different names, got {', '.join(map(label_of, given.configs))}")
    check_reference("ablate", given.reference, list(files))
    wanted, kept, data = wanted_of(given), dict[str, TextData](), None
    spans = _check_spans(wanted.spans)
    jobs: list[HateJob] = []
    for name, paths in files.items():
        words = [word for path in paths for word in ("--config", str(path))]
        cli = HateCLI([*words, *overrides], build=False, trainer={"enable_progress_bar": False})
        # The data is read once for all that read it alike: its errors are the same, and states are there for the runs.
        key = str(sorted(vars(cli.config.data).items(), key=str))
        if key not in kept:
            kept[key] = HateCLI([*words, *overrides], trainer={"enable_progress_bar": False}).datamodule
            span_sets(kept[key], wanted.spans)
        data = data or kept[key]
        _check(paths[0], cli, kept[key])
        identity = fingerprint(cli, wanted.faithfulness, wanted.attention, spans)
        jobs += _jobs(name, identity, cli, given)
    assert data is not None
    return jobs, data


def _check_spans(root: str) -> str:
    """Read the corpus with character spans once, for its errors, and return its fingerprint."""
    if not root:
        return ""
    read_corpus(root)
    return data_fingerprint(root)


def label_of(name: str) -> str:
    """Name a configuration given as names or files: `x/span_aware.yaml+dcl` is `span_aware+dcl`."""
    return "+".join(Path(part).stem for part in name.split("+"))


def _check(file: Path, cli: HateCLI, data: TextData) -> None:
    sizes = {"hidden_features": data.hidden_features, "classes": list(data.classes), "weights": None, "encoder": None}
    try:
        HateTask(**{**vars(cli.config.model), **{name: sizes[name] for name in FROM_DATA}})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None


def _jobs(name: str, identity: str, cli: HateCLI, given: argparse.Namespace) -> list[HateJob]:
    # What is run is what was checked, even if somebody edits a configuration meanwhile.
    words = ("--config", str(store_config(cli.stored, given.out / "configs" / f"{name}-{identity}.yaml")))
    cache = cli.config.data.cache
    call = ("--data.cache", "null" if cache is None else str(cache))
    seeds, folds = range(given.seeds), given.folds
    in_turn = [(seed, folds[index % len(folds)]) for index, seed in enumerate(seeds)]
    jobs = []
    for seed, fold in in_turn if given.by_seed else product(seeds, folds):
        path = given.out / "runs" / f"{name}-seed{seed}-fold{fold}.json"
        run = Job(name, corpus_of(cli.config.data.root), seed, fold, words, str(path), identity)
        jobs.append(HateJob(run, wanted_of(given), call, given.keep))
    return jobs


def complete(jobs: Sequence[HateJob], *, workers: int, threads: int) -> tuple[dict[str, Result], list[Outcome]]:
    """Run all jobs with a line for each; return the results by path, and the failures."""
    done: dict[str, Result] = {}
    failures: list[Outcome] = []
    try:
        with closing(run_jobs(jobs, workers=workers, threads=threads)) as outcomes:
            for number, outcome in enumerate(outcomes, start=1):
                if outcome.result is None:
                    failures.append(outcome)
                else:
                    done[outcome.job.path] = outcome.result
                print(f"[{number}/{len(jobs)}] {outcome.job.label}: {_summary(outcome)}", flush=True)
    except KeyboardInterrupt:
        kept = f"{len(done)} of {len(jobs)} runs are kept"
        raise KeyboardInterrupt(f"interrupted; {kept}, the same command goes on with the others") from None
    return done, failures


def _summary(outcome: Outcome) -> str:
    """Say how a run went without its test scores, which are for the end."""
    result = outcome.result
    if result is None:
        return f"FAILED: {outcome.error}"
    score = result["views"]["val"][""]["macro_f1"]
    epochs = f"epoch {result['best_epoch'] + 1} of {result['epochs']}, {result['seconds']:.0f} s"
    return f"validation macro F1 {score:.3f}, {epochs}"
