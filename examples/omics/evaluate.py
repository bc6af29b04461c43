"""The `evaluate` command: all scores of trained checkpoints, on their own test rows or on other data."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from examples.pipeline.arguments import Arguments, check_reference, count, split_overrides
from examples.pipeline.errors import DataError
from examples.pipeline.files import atomic_file
from examples.pipeline.reports import show

from .cli import data_name
from .measure import Views, answers_of, measure, measure_test
from .metrics import class_scores
from .report import Result, report
from .trained import Trained, open_checkpoint


def evaluate_command(args: Sequence[str]) -> None:
    """Print the scores of checkpoints and write CSV, tables and pictures."""
    parser = Arguments(
        "python -m examples.omics evaluate",
        description=__doc__,
        epilog="Other words, such as --data.root PATH, change the stored configuration.",
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, help="best.ckpt of one or more runs")
    parser.add_argument("--out", type=Path, help="folder for the results (default: evaluation beside the first)")
    parser.add_argument("--reference", help="configuration to compare with")
    parser.add_argument("--test", help="file or folder of other data, all of whose samples are tested")
    parser.add_argument("--unknown", action="store_true", help="with --test: accept labels that were not trained on")
    parser.add_argument(
        "--accept", type=float, help="share of rightly classified validation rows to accept (default: as trained)"
    )
    parser.add_argument("--threads", type=count, help="threads (default: all)")
    own, overrides = split_overrides(args)
    given = parser.parse_args(own)
    if given.unknown and given.test is None:
        raise ValueError("evaluate: --unknown: expected --test beside it")
    if given.accept is not None and not 0 < given.accept <= 1:
        raise ValueError(f"evaluate: --accept: expected a share in (0, 1], got {given.accept}")
    show(evaluate(given, overrides))


def evaluate(given: argparse.Namespace, overrides: Sequence[str]) -> list[Path]:
    """Measure the checkpoints of the parsed arguments and report."""
    folder = given.out or given.checkpoints[0].parent / "evaluation"
    if given.threads:
        torch.set_num_threads(given.threads)
    results: list[Result] = []
    for path in given.checkpoints:
        trained = open_checkpoint(path, overrides, folder / "configs")
        if given.accept is not None:
            fit_threshold(trained, given.accept)
        views = measure_other(trained, given) if given.test else measure(trained.task, trained.data)
        name = data_name(given.test) if given.test else trained.facts["data"]
        results.append({**trained.facts, "data": name, "views": views})
        print(f"{path}: {_line(views)}", flush=True)
    names = [result["config"] for result in results]
    check_reference("evaluate", given.reference, names)
    with atomic_file(folder / "results.json") as scratch:
        scratch.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return report(results, folder, reference=given.reference, published=given.test is None)


def fit_threshold(trained: Trained, accept: float) -> None:
    """Choose the threshold of rejection anew on the validation rows."""
    head, val = trained.task.prototypes, trained.data.sets["val"]
    if head is None:
        raise ValueError(f"{trained.path}: --accept: expected a head of class subspaces, it has a linear one")
    found = answers_of(trained.task, val)
    head.fit_threshold(torch.from_numpy(found.embedding), val.label, accept=accept)


def measure_other(trained: Trained, given: argparse.Namespace) -> Views:
    """Measure all samples of other data; the validation scores are there if the own data still is."""
    rows = trained.data.read_other(given.test, count_unknown=given.unknown)
    views = measure_test(trained.task, rows)
    try:
        val = answers_of(trained.task, trained.data.sets["val"])
    except DataError:
        return views
    return {"val": {"": class_scores(val.logits, val.label)}, **views}


def _line(views: Views) -> str:
    said = []
    for part, name in (("val", "validation"), ("test", "test")):
        if part in views and "balanced_accuracy" in views[part][""]:
            said.append(f"{views[part]['']['balanced_accuracy']:.3f} on {name}")
    if "rejection" in views:
        found = views["rejection"][""]
        said.append(f"coverage {found['coverage']:.3f} at threshold {found['threshold']:.4g}")
    return "balanced accuracy " + ", ".join(said)
