"""The `predict` command: classes, probabilities and residuals of other samples, as CSV; they need no labels."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from examples.pipeline.arguments import Arguments, count, split_overrides
from examples.pipeline.files import write_table

from .measure import answers_of
from .metrics import Answers, log_softmax
from .trained import Trained, open_checkpoint

REJECTED = "none of these"


def predict_command(args: Sequence[str]) -> None:
    """Write a row for every sample."""
    parser = Arguments(
        "python -m examples.omics predict",
        description=__doc__,
        epilog="Other words, such as --data.nan mean, change the stored configuration.",
    )
    parser.add_argument("checkpoint", type=Path, help="best.ckpt of a run")
    parser.add_argument("--test", required=True, help="file or folder of samples, with the features trained on")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="CSV: sample, class, probability of each class; for a head of class subspaces also the residual to the "
        f"nearest, and the class {REJECTED!r} where it is above the threshold",
    )
    parser.add_argument("--threads", type=count, help="threads (default: all)")
    own, overrides = split_overrides(args)
    given = parser.parse_args(own)
    if given.threads:
        torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        trained = open_checkpoint(given.checkpoint, overrides, Path(folder))
        rows = trained.data.read_unlabelled(given.test)
        header, lines = label(trained, rows.ids, answers_of(trained.task, rows))
    write_table(given.out, [header, *lines])
    rejected = sum(line[1] == REJECTED for line in lines)
    print(f"{given.out}: {len(lines)} samples" + (f", {rejected} rejected" if rejected else ""))


def label(trained: Trained, ids: Sequence[str], found: Answers) -> tuple[list[str], list[list[str]]]:
    """Return the header and a row for every sample."""
    classes, odds = list(trained.task.classes), np.exp(log_softmax(found.logits))
    header, names = ["sample", "class", *classes], [classes[code] for code in found.logits.argmax(axis=1)]
    extra: list[list[str]] = [[] for _ in ids]
    if found.residual is not None and trained.task.prototypes is not None:
        nearest, limit = found.residual.min(axis=1), float(trained.task.prototypes.threshold)
        header.append("residual")
        extra = [[f"{one:.6g}"] for one in nearest]
        names = [REJECTED if one > limit else name for one, name in zip(nearest, names, strict=True)]
    triples = zip(ids, names, odds, extra, strict=True)
    return header, [[one, name, *(f"{p:.6f}" for p in row), *more] for one, name, row, more in triples]
