"""Command line: ``python -m benchmarks [suite ...] --device cuda --json DIR`` and ``... report DIR``."""

from __future__ import annotations

import argparse
import gc
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from .harness import report, results
from .harness.case import Case, Size
from .harness.environment import describe
from .harness.floors import Ceilings, measure_ceilings
from .harness.runner import Options, run_unit
from .suites import SUITES, load

_BUDGET = {"cpu": 720.0, "cuda": 420.0}  # seconds; a run on a GPU has to fit into eight minutes


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 = all right, 1 = a case failed, 2 = wrong use."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given[:1] == ["report"]:
            return _report(given[1:])
        return _run(_parse(given))
    except (results.ResultError, ModuleNotFoundError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


def _parse(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the components.")
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"one or more of {', '.join(SUITES)}; default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks"), metavar="DIR", help="where results go")
    parser.add_argument(
        "--only", action="append", metavar="TEXT", help='run a part: what "CASE SIZE" holds; may be repeated'
    )
    parser.add_argument("--profile", action="store_true", help="say where the time of ours goes")
    parser.add_argument("--sizes", choices=("toy", "default", "full"), default="default")
    parser.add_argument("--time-budget", type=float, metavar="S", help="seconds for the whole run (420 GPU, 720 CPU)")
    parser.add_argument("--compile", default=None, metavar="BACKEND", help="torch.compile backend, or none")
    parser.add_argument("--threads", type=int, help="CPU threads (default: what PyTorch chooses)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(given)
    unknown = [name for name in options.suites if name not in SUITES]
    if unknown:
        parser.error(f"unknown suite {unknown[0]!r}: expected {', '.join(SUITES)}, or report DIR")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device here")
    if options.time_budget is not None and not options.time_budget > 0:
        parser.error(f"--time-budget: expected a positive number of seconds, got {options.time_budget}")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads: expected at least 1, got {options.threads}")
    return options


def _report(given: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks report", description="Tables and pictures from JSON.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with the JSON files of a run")
    folder: Path = parser.parse_args(given).folder
    for path in report.make(results.read_folder(folder), folder):
        print(path)
    return 0


def _run(given: argparse.Namespace) -> int:
    device = torch.device(given.device)
    toy = given.sizes == "toy"
    # Float32 means float32: TF32 would be another precision on one side of a comparison.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if given.threads:
        torch.set_num_threads(given.threads)
    budget = given.time_budget or _BUDGET[given.device]
    deadline = time.monotonic() + budget
    ceilings = measure_ceilings(device, toy=toy)
    backend = given.compile or ("none" if toy else "inductor")
    options = Options(
        device, ceilings, toy=toy, backend=backend, seed=given.seed, profile=given.profile, deadline=deadline
    )
    plan = _plan(given)
    sizes = [size for units in plan.values() for _, size in units]
    options.units_left, options.compiles_left = len(sizes), sum(size.compile for size in sizes)
    settings = {"sizes": given.sizes, "seed": given.seed, "time_budget_s": budget, "compile_backend": backend}
    settings |= {"only": given.only} if given.only else {}
    gc.freeze()  # what is imported by now need not be looked through between the units
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\.")  # Inductor's own deprecations
            statuses = [_run_suite(suite, units, options, settings, given.json) for suite, units in plan.items()]
    finally:
        gc.unfreeze()
    print(f"results in {given.json}; tables and pictures: python -m benchmarks report {given.json}")
    return 0 if all(statuses) else 1


def _plan(given: argparse.Namespace) -> dict[str, list[tuple[Case, Size]]]:
    """Return the cases and sizes of every suite that has any; ``--only "X B=1"`` takes B=1 and not B=16."""
    wanted, found = given.only or [""], set()
    plan: dict[str, list[tuple[Case, Size]]] = {}
    for suite in given.suites or SUITES:
        for case in load(suite):
            for size in case.selected(given.sizes, given.device):
                holds = [text for text in wanted if f"{text} " in f"{case.name} {size.name} "]
                found.update(holds)
                if holds:
                    plan.setdefault(suite, []).append((case, size))
    missing = [text for text in wanted if text not in found]
    if missing:
        raise results.ResultError(f"--only: no case and size holds {' or '.join(map(repr, missing))}")
    return plan


def _run_suite(
    suite: str, units: list[tuple[Case, Size]], options: Options, settings: dict[str, Any], folder: Path
) -> bool:
    """Run one suite, keeping what is finished on disk after every unit; return whether all of it was right."""
    document = _document(suite, settings, options.ceilings, describe(options.device))
    path = folder / f"{options.device.type}-{suite}.json"
    for case, size in units:
        record = run_unit(suite, case, size, options)
        document["cases"].append(record)
        document["complete"] = len(document["cases"]) == len(units)
        results.write(path, document)
        print(_line(record), flush=True)
    return all(record["status"] == "ok" for record in document["cases"])


def _document(suite: str, settings: dict[str, Any], ceilings: Ceilings, environment: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "suite": suite,
        "complete": False,
        "settings": settings,
        "environment": environment,
        "ceilings": ceilings.record(),
        "cases": [],
    }


def _line(record: dict[str, Any]) -> str:
    head = f"{record['suite']:9} {record['case']} {record['size']['name']}"
    if record["status"] != "ok":
        return f"{head}: {record['status'].upper()} {record['message']}"
    parts = [
        f"{mode} {report.duration(ours['seconds']['median'])}"
        + "".join(f", {t['contender']} x{t['seconds']['median'] / ours['seconds']['median']:.2f}" for t in timed[1:])
        for mode, timed in _by_mode(record).items()
        for ours in timed[:1]
    ]
    promises = [
        f"{'kept' if t['met'] else 'NOT KEPT'}: {t['claim']}" for t in record["targets"] if t["met"] is not None
    ]
    return "\n    ".join([f"{head}: " + "; ".join(parts), *promises])


def _by_mode(record: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Group the timings by mode, ours first."""
    modes: dict[str, list[dict[str, Any]]] = {}
    for timing in sorted(record["timings"], key=lambda t: t["kind"] != "ours"):
        modes.setdefault(report.MODES[timing["mode"]], []).append(timing)
    return modes


if __name__ == "__main__":
    sys.exit(main())
