"""Words of the command line that several commands understand."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml

from benchmarks.robustness import VIEWS
from examples.pipeline.arguments import count, find_config

from .data import MultimodalData
from .predict import list_metrics
from .reporting import METRICS

CONFIGS = Path(__file__).parent / "configs"
VARIANTS = CONFIGS / "variants.yaml"


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `ablate` and `evaluate` share."""
    parser.add_argument("--out", type=Path, required=True, help="folder for CSV, tables, pictures and finished runs")
    parser.add_argument("--workers", type=count, default=2, help="parallel processes (default: %(default)s)")
    parser.add_argument("--threads", type=count, default=1, help="threads of each process (default: %(default)s)")
    parser.add_argument(
        "--score", default="weighted_f1", choices=METRICS, help="metric of tables and pictures (default: %(default)s)"
    )
    parser.add_argument("--views", nargs="*", default=list(VIEWS), choices=VIEWS, help="default: all")
    parser.add_argument("--draws", type=count, default=10, help="draws per missing rate (default: %(default)s)")
    parser.add_argument("--specialist-epochs", type=count, help="epochs of a specialist (default: as the run)")


def check_score(command: str, score: str, data: MultimodalData) -> None:
    """Raise unless `score` can be measured on the first test part of the data."""
    known = list_metrics(data)
    if score not in known:
        raise ValueError(f"{command}: --score: expected one of {', '.join(known)} on {data.root}, got {score!r}")


def label_of(name: str) -> str:
    """Name a configuration given as name, file, or either with a variant: `robust:no_views` is `robust-no_views`."""
    base, _, variant = name.partition(":")
    return Path(base).stem + (f"-{variant}" if variant else "")


def find_variant(name: str) -> tuple[Path, list[str]]:
    """Find a configuration and the words that its variant, after a colon, adds to it."""
    base, _, variant = name.partition(":")
    if not variant:
        return find_config(base, CONFIGS, others=(VARIANTS.name,)), []
    variants = yaml.safe_load(VARIANTS.read_text(encoding="utf-8"))
    if variant not in variants:
        raise ValueError(f"{name}: expected a variant among {', '.join(variants)}, got {variant!r}")
    words = [word for key, value in variants[variant].items() for word in (f"--{key}", json.dumps(value))]
    return find_config(base, CONFIGS, others=(VARIANTS.name,)), [word.strip('"') for word in words]
