"""The `ablate` command: configurations x seeds x folds in parallel processes, resumable, compared run by run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from examples.pipeline.arguments import Arguments, check_reference, count, find_parts, label_of, split_overrides
from examples.pipeline.jobs import check_complete, data_fingerprint, fingerprint, plan_jobs
from examples.pipeline.reports import show

from .classical import CLASSICAL, MEANING
from .cli import HateCLI, corpus_of
from .data import TextData
from .evaluate import add_wanted, wanted_of
from .jobs import HateJob, complete
from .measure import notes_of, span_sets
from .readers import read_corpus
from .report import DCL, pairs_of, report
from .task import FROM_DATA, HateTask

CONFIGS = Path(__file__).parent / "configs"
REFERENCE = "encoder_only"
CALIBRATED = ("asrm", "token_level", "token_wide", "span_aware", "position_aware", "contrastive")
PLAIN = (REFERENCE, *CALIBRATED)
# Without a calibration nothing lies between a frozen encoder and what is pooled: contrastive losses teach their own
# heads alone.
ALL = (*PLAIN, *(f"{name}+{DCL}" for name in CALIBRATED))


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
        help="names or YAML files; NAME+OTHER puts one after the other, as span_aware+dcl (default: all thirteen)",
    )
    parser.add_argument(
        "--baselines",
        nargs="*",
        choices=list(CLASSICAL),
        default=[],
        help="of scikit-learn, to be compared with: "
        + "; ".join(f"{name} = {text}" for name, text in MEANING.items())
        + " (default: none)",
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
    done, failures = complete(jobs, wanted_of(given), workers=given.workers, threads=given.threads)
    results = [done[job.path] for job in jobs if job.path in done]
    written: list[Path] = []
    if results:
        names = list(dict.fromkeys(job.config for job in jobs))
        reference = given.reference or REFERENCE
        notes = [*notes_of(data, given.spans), *changed(overrides)]
        written = report(results, given.out, reference=reference, pairs=pairs_of(names), notes=notes)
    check_complete(failures, len(jobs), given.out)
    return written


def changed(overrides: Sequence[str]) -> list[str]:
    """Say which settings of all configurations the command line changed, but for the place of the data."""
    words = " ".join(overrides).replace(" --", "\n--").split("\n")
    kept = [word for word in words if word and not word.startswith(("--data.root", "--data.cache"))]
    return [f"changed in all configurations: `{' '.join(kept)}`"] if kept else []


def plan(given: argparse.Namespace, overrides: Sequence[str]) -> tuple[list[HateJob], TextData]:
    """Check every configuration before the first run starts, and make the jobs."""
    files = {label_of(name): find_parts(name, CONFIGS) for name in given.configs}
    if len(files) < len(given.configs):
        raise ValueError(f"ablate: --configs: expected different names, got {', '.join(map(label_of, given.configs))}")
    check_reference("ablate", given.reference, [*files, *given.baselines])
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
        identity = fingerprint(cli, wanted.faithfulness, wanted.attention, spans, kept[key].encoder.fingerprint)
        jobs += _jobs(name, identity, cli, given)
    first = [word for path in next(iter(files.values())) for word in ("--config", str(path))]
    for name in given.baselines:
        cli = HateCLI([*first, *overrides], build=False, trainer={"enable_progress_bar": False})
        if name != "tfidf" and not cli.config.data.frozen:
            raise ValueError(f"ablate: --baselines: expected data.frozen: true with {name}, which needs token states")
        encoder = "" if name == "tfidf" else next(iter(kept.values())).encoder.fingerprint
        jobs += _jobs(name, fingerprint(cli, name, encoder), cli, given, classical=name)
    assert data is not None
    return jobs, data


def _check_spans(root: str) -> str:
    """Read the corpus with character spans once, for its errors, and return its fingerprint."""
    if not root:
        return ""
    read_corpus(root)
    return data_fingerprint(root)


def _check(file: Path, cli: HateCLI, data: TextData) -> None:
    sizes = {"hidden_features": data.hidden_features, "classes": list(data.classes), "weights": None, "encoder": None}
    try:
        HateTask(**{**vars(cli.config.model), **{name: sizes[name] for name in FROM_DATA}})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None


def _jobs(name: str, identity: str, cli: HateCLI, given: argparse.Namespace, classical: str = "") -> list[HateJob]:
    cache = cli.config.data.cache
    call = ("--data.cache", "null" if cache is None else str(cache))
    runs = {"seeds": range(given.seeds), "folds": given.folds, "by_seed": given.by_seed}
    runs["keep"] = given.keep and not classical  # a baseline has no checkpoint
    planned = plan_jobs(cli, name, corpus_of(cli.config.data.root), identity, given.out, call=call, **runs)
    return [HateJob(**vars(job), classical=classical) for job in planned]
