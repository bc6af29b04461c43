"""The `evaluate` command: all scores of trained checkpoints, on validation and test posts side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from examples.pipeline.arguments import Arguments, check_reference, count, split_overrides
from examples.pipeline.files import atomic_file
from examples.pipeline.reports import show

from .measure import Views, Wanted, measure, notes_of
from .report import Result, pairs_of, report
from .trained import open_checkpoint


def evaluate_command(args: Sequence[str]) -> None:
    """Print the scores of checkpoints and write CSV, tables and pictures."""
    parser = Arguments(
        "python -m examples.hate_speech evaluate",
        description=__doc__,
        epilog="Other words, such as --data.root PATH, change the stored configuration.",
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, help="best.ckpt of one or more runs")
    parser.add_argument("--out", type=Path, help="folder for the results (default: evaluation beside the first)")
    parser.add_argument("--reference", help="configuration to compare with")
    parser.add_argument("--threads", type=count, help="threads (default: all)")
    add_wanted(parser, faithfulness=True)
    own, overrides = split_overrides(args)
    given = parser.parse_args(own)
    files = evaluate(given, overrides)
    show(files)


def add_wanted(parser: argparse.ArgumentParser, *, faithfulness: bool) -> None:
    """Add what decides which scores are measured."""
    parser.add_argument(
        "--faithfulness",
        action=argparse.BooleanOptionalAction,
        default=faithfulness,
        help="comprehensiveness and sufficiency of rationales (about a minute) (default: %(default)s)",
    )
    parser.add_argument(
        "--attention",
        action=argparse.BooleanOptionalAction,
        default=faithfulness,
        help="the attention of the encoder as a score too (default: %(default)s)",
    )
    parser.add_argument("--spans", default="", help="folder of a corpus with character spans, such as toxic_spans")


def wanted_of(given: argparse.Namespace) -> Wanted:
    return Wanted(given.faithfulness, given.attention, given.spans)


def evaluate(given: argparse.Namespace, overrides: Sequence[str]) -> list[Path]:
    """Measure the checkpoints of the parsed arguments and report."""
    folder = given.out or given.checkpoints[0].parent / "evaluation"
    if given.threads:
        torch.set_num_threads(given.threads)
    results, notes = [], dict[str, None]()
    for path in given.checkpoints:
        trained = open_checkpoint(path, overrides, folder / "configs")
        results.append({**trained.facts, "views": measure(trained.task, trained.data, wanted_of(given))})
        notes |= dict.fromkeys(notes_of(trained.data, given.spans))
        print(f"{path}: {_line(results[-1]['views'])}", flush=True)
    check_reference("evaluate", given.reference, [result["config"] for result in results])
    store(results, folder / "results.json")
    pairs = pairs_of(list(dict.fromkeys(result["config"] for result in results)))
    return report(results, folder, reference=given.reference, pairs=pairs, notes=list(notes))


def _line(views: Views) -> str:
    val, test = views["val"][""], views["test"][""]
    return f"macro F1 {val['macro_f1']:.3f} on validation, {test['macro_f1']:.3f} on test"


def store(results: Sequence[Result], path: Path) -> None:
    """Write results as JSON."""
    with atomic_file(path) as scratch:
        scratch.write_text(json.dumps(results, indent=1), encoding="utf-8")
