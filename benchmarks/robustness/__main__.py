"""Write the report of a CSV of runs: `python -m benchmarks.robustness RUNS.csv --out FOLDER`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.robustness.report import without_pictures, write_report
from benchmarks.robustness.rows import read_rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the CSV, write table and pictures, print the table; exit status 1 and one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness", description=__doc__.partition(":")[0])
    parser.add_argument("csv", help="rows of runs, as written by evaluate or ablate")
    parser.add_argument("--out", required=True, help="folder for summary.md and the pictures")
    parser.add_argument("--score", default="weighted_f1", help="metric of tables and pictures (default: %(default)s)")
    parser.add_argument("--reference", help="configuration to compare with, run by run")
    parser.add_argument("--clean", default="test", help="name of the clean view (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        frame = read_rows(given.csv)
        paths = write_report(frame, given.out, score=given.score, reference=given.reference, clean=given.clean)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(without_pictures(paths[0].read_text(encoding="utf-8")).rstrip(), "", *map(str, paths), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
