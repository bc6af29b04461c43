"""The `demo` command: make a small set, train two models on it, compare how they bear missing modalities."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.robustness import VIEWS
from examples.pipeline.arguments import Arguments, count

from .ablate import ablate
from .reporting import show
from .synthesize import MARKER, synthesize


def demo_command(args: Sequence[str]) -> None:
    """Synthesize a set in the MER2023 layout, train `baseline` and `robust`, print the comparison and where it lies."""
    parser = Arguments("python -m examples.mer demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="output folder (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=0.15, help="size of the made-up set (default: %(default)s)")
    parser.add_argument("--epochs", type=count, default=20, help="longest training (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default: 0 1")
    parser.add_argument("--workers", type=count, default=2, help="parallel processes (default: %(default)s)")
    given = parser.parse_args(args)
    root = given.out / "synthetic-mer2023"
    marker = root / MARKER
    if not marker.exists() or json.loads(marker.read_text(encoding="utf-8"))["scale"] != given.scale:
        print(f"making a synthetic set in the MER2023 layout: {root}", flush=True)
        synthesize(root, scale=given.scale, overwrite=True)
    print("training baseline and robust", flush=True)
    settings = argparse.Namespace(
        configs=["baseline", "robust"],
        data_config=None,
        seeds=given.seeds,
        folds=[0],
        reference="baseline",
        regret=None,
        regret_seeds=None,
        by_seed=False,
        out=given.out / "results",
        workers=given.workers,
        threads=1,
        score="weighted_f1",
        views=list(VIEWS),
        draws=10,
        specialist_epochs=None,
        epoch_lines=max(1, given.epochs // 4),
    )
    csv, files = ablate(settings, ["--data.root", str(root), "--trainer.max_epochs", str(given.epochs)])
    show(files[0])
    print("table:", f"  {files[0]}", f"  {csv}", "pictures:", sep="\n")
    print(*(f"  {path}" for path in files[1:]), sep="\n")
