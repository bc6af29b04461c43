"""The `ablate` command: configurations x seeds x folds in parallel processes, resumable, compared run by run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import yaml

from .cli import MerCLI
from .data import MultimodalData
from .jobs import Job, Outcome, Result, fingerprint, run_jobs
from .predict import VIEWS, list_tests
from .reporting import report
from .specialists import add_regret, specialist_jobs
from .task import build_model

CONFIGS = Path(__file__).parent / "configs"
ALL = (
    "baseline",
    "robust_v1",
    "robust_v2",
    "robust_v3",
    "v4_full",
    "v4_no_contrastive",
    "v4_no_gate",
    "v4_pure_vae",
    "robust",
)


class Arguments(argparse.ArgumentParser):
    """A parser whose errors are exceptions: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog.rpartition(' ')[2]}: {message}")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `ablate` and `evaluate` share."""
    parser.add_argument("--out", type=Path, required=True, help="folder for CSV, tables, pictures and finished runs")
    parser.add_argument("--workers", type=int, default=2, help="parallel processes (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process (default: %(default)s)")
    parser.add_argument("--score", default="weighted_f1", help="metric of tables and pictures (default: %(default)s)")
    parser.add_argument("--views", nargs="*", default=list(VIEWS), choices=VIEWS, help="default: all")
    parser.add_argument("--draws", type=int, default=10, help="draws per missing rate (default: %(default)s)")
    parser.add_argument("--specialist-epochs", type=int, help="epochs of a specialist (default: as the run)")


def ablate_command(args: Sequence[str]) -> None:
    """Train and evaluate all runs that are not there yet, then write CSV, tables and pictures of all."""
    parser = Arguments(
        "python -m examples.mer ablate",
        description=__doc__,
        epilog="All other words, such as --data.root PATH or --trainer.max_epochs 5, change every configuration.",
    )
    parser.add_argument("--configs", nargs="+", default=list(ALL), help="names or YAML files (default: all nine)")
    parser.add_argument("--data-config", help="name in configs/data or YAML file; put after each configuration")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)), help="default: 0 1 2 3 4")
    parser.add_argument("--folds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--reference", default="baseline", help="compare with this one (default: %(default)s)")
    parser.add_argument("--regret", action="store_true", help="also train specialists for every subset")
    add_run_arguments(parser)
    given, overrides = parser.parse_known_args(args)
    check_overrides("ablate", overrides)
    csv, files = ablate(given, overrides)
    print("", files[0].read_text(encoding="utf-8"), sep="\n")
    print(*(str(path) for path in (csv, *files)), sep="\n")


def ablate(given: argparse.Namespace, overrides: Sequence[str]) -> tuple[Path, list[Path]]:
    """Run the jobs of the parsed arguments and report what has finished."""
    if given.regret and "subset" not in given.views:
        raise ValueError("ablate: --regret needs the view 'subset'")
    planned, data = plan(given, overrides)
    runs = [job for job, _ in planned]
    folder, epochs = given.out / "specialists", given.specialist_epochs
    specialists = {
        job.path: specialist_jobs(job, config, tuple(data.modalities), folder, epochs=epochs) if given.regret else {}
        for job, config in planned
    }
    jobs = [*runs, *(one for group in specialists.values() for one in group.values())]
    done, failures = complete(jobs, workers=given.workers, threads=given.threads, score=given.score)
    results = [done[job.path] for job in runs if job.path in done]
    for job, result in [(job, done[job.path]) for job in runs if job.path in done]:
        answers = {name: [[done[one.path]]] for name, one in specialists[job.path].items() if one.path in done}
        if answers and len(answers) == len(specialists[job.path]):
            add_regret(result["views"], answers)
    return finish("ablate", results, failures, len(jobs), given, data)


def plan(
    given: argparse.Namespace, overrides: Sequence[str]
) -> tuple[list[tuple[Job, dict[str, Any]]], MultimodalData]:
    """Check every configuration before the first run starts; make the jobs, each with its resolved configuration."""
    files = [find_config(name, CONFIGS) for name in given.configs]
    shared = [find_config(given.data_config, CONFIGS / "data")] if given.data_config else []
    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        raise ValueError(f"ablate: --configs: expected different names, got {', '.join(names)}")
    data: MultimodalData | None = None
    jobs = []
    for file in files:
        words = tuple(word for path in (file, *shared) for word in ("--config", str(path))) + tuple(overrides)
        cli = MerCLI(words, build=data is None, trainer={"enable_progress_bar": False})
        data = cli.datamodule if data is None else data
        config, settings = yaml.safe_load(cli.stored), cli.config.model
        try:
            build_model(settings.family, settings.options, data.in_features, num_classes=data.num_classes,
                        num_values=data.num_values, sequences=data.sequences)  # fmt: skip
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from None
        identity = fingerprint(cli, given.views, given.draws)
        label = shared[0].stem if shared else Path(data.root).stem
        for seed in given.seeds:
            for fold in given.folds:
                path = given.out / "runs" / f"{file.stem}-seed{seed}-fold{fold}.json"
                job = Job(file.stem, label, seed, fold, words, str(path), identity, (), tuple(given.views), given.draws)
                jobs.append((job, config))
    assert data is not None
    return jobs, data


def find_config(name: str, folder: Path) -> Path:
    """Find a configuration given as a file or as a name in `folder`."""
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise FileNotFoundError(f"{name}: no such configuration; expected a YAML file or one of {known}")


def check_overrides(command: str, words: Sequence[str]) -> None:
    """Let only settings of data, model, trainer and early stopping through to the configuration."""
    for word in words:
        if word.startswith("-") and not word.startswith(("--data.", "--model.", "--trainer.", "--early_stopping.")):
            raise ValueError(f"{command}: unknown argument {word!r}; see --help")
    if words and not words[0].startswith("--"):
        raise ValueError(f"{command}: unexpected {words[0]!r}; see --help")


def complete(jobs: Sequence[Job], *, workers: int, threads: int, score: str) -> tuple[dict[str, Result], list[Outcome]]:
    """Run all jobs with a line for each; return the results by path, and the failures."""
    done: dict[str, Result] = {}
    failures: list[Outcome] = []
    with closing(run_jobs(jobs, workers=workers, threads=threads)) as outcomes:
        for number, outcome in enumerate(outcomes, start=1):
            result = outcome.result
            if result is None:
                failures.append(outcome)
                text = f"FAILED: {outcome.error}"
            else:
                done[outcome.job.path] = result
                text = f"epoch {result['best_epoch'] + 1} of {result['epochs']}, {result['seconds']:.0f} s"
                if "views" in result:
                    text = f"{score} {result['views'][result['clean']][''].get(score, float('nan')):.3f}, {text}"
            print(f"[{number}/{len(jobs)}] {outcome.job.label}: {text}", flush=True)
    return done, failures


def finish(
    command: str,
    results: Sequence[Result],
    failures: Sequence[Outcome],
    total: int,
    given: argparse.Namespace,
    data: MultimodalData,
) -> tuple[Path, list[Path]]:
    """Report the finished runs; a failed one is an error, but only after the others have been reported."""
    written = None
    if results:
        reference = getattr(given, "reference", None)
        written = report(results, given.out, parts=list_tests(data), score=given.score, reference=reference)
    if failures or written is None:
        first = f"; first: {failures[0].job.label}: {failures[0].error}" if failures else ""
        raise ValueError(f"{command}: {len(failures)} of {total} runs failed; the others are in {given.out}{first}")
    return written
