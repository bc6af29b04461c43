"""The commands `synthesize` and `convert`: a data set to try everything on, and labels that need no unpickling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from examples.pipeline.arguments import Arguments

from .convert import convert
from .synthesize import synthesize


def synthesize_command(args: Sequence[str]) -> None:
    """Write a synthetic set in the MER2023 layout."""
    parser = Arguments("python -m examples.mer synthesize", description=synthesize_command.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--scale", type=float, default=0.15, help="share of the real split sizes (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--frames", action="store_true", help="frames of varying length in place of one vector")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier synthetic set")
    given = parser.parse_args(args)
    folder = synthesize(given.out, scale=given.scale, seed=given.seed, frames=given.frames, overwrite=given.overwrite)
    print(folder)


def convert_command(args: Sequence[str]) -> None:
    """Write `labels.csv` from the published pickled `label-6way.npz`, without running what it may contain."""
    parser = Arguments("python -m examples.mer convert", description=convert_command.__doc__)
    parser.add_argument("source", type=Path, help="the label-6way.npz file")
    parser.add_argument("--out", type=Path, help="the CSV file (default: labels.csv beside the source)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing CSV file")
    given = parser.parse_args(args)
    print(convert(given.source, given.out, overwrite=given.overwrite))
