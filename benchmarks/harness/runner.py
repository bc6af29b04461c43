"""Runs one case at one size: build, check, compile, time, weigh, judge. Returns a plain record."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from . import process
from .case import Case, Contender, Problem, Setup, Size, Target, tensors
from .check import Check, check_contender, cotangents
from .floors import Ceilings, least_bytes
from .measure import Action, Clock, interleave, peak_bytes, summary
from .profile import split_time


@dataclass
class Options:
    """How a run is made; ``deadline`` is shared out over the units that are left."""

    device: torch.device
    ceilings: Ceilings
    toy: bool = False
    backend: str = "inductor"  # of torch.compile; "none" leaves the contender out
    seed: int = 0
    profile: bool = False  # say where the time of ours goes; without, only where a promise about time is not kept
    deadline: float = field(default_factory=lambda: time.monotonic() + 600)
    units_left: int = 1
    compiles_left: int = 1
    compile_seconds: list[float] = field(default_factory=list)

    def share(self) -> float:
        """Return the seconds that the next unit may take, compiling left out."""
        reserved = self.compiles_left * self.compile_estimate()
        return max(0.0, self.remaining() - reserved) / max(1, self.units_left)

    def can_compile(self) -> bool:
        """Say whether compiling leaves a second for every unit that is still to come."""
        return self.remaining() >= self.compile_estimate() + self.units_left

    def limits(self, problem: Problem) -> dict[str, Any]:
        """Return how long and how often to measure: toy runs measure nothing, late ones hurry."""
        if self.toy:
            rounds = 1 if problem.timer == "self" else 2
            return {"min_block": 1e-4, "min_rounds": rounds, "max_rounds": rounds}
        return {"min_rounds": problem.rounds if self.remaining() > 0 else min(problem.rounds, 3)}

    def remaining(self) -> float:
        return self.deadline - time.monotonic()

    def compile_estimate(self) -> float:
        """Return what compiling one more contender will cost, judged by the ones before."""
        return statistics.median([8.0, 8.0, 8.0, *self.compile_seconds])  # whole models are rare and take minutes


def run_unit(suite: str, case: Case, size: Size, options: Options) -> dict[str, Any]:
    """Run a case at a size; an exception becomes a record of status "error", a wrong result "failed"."""
    record: dict[str, Any] = {
        "suite": suite,
        "case": case.name,
        "covers": list(case.public_names()),
        "size": {"name": size.name, "dims": dict(size.dims)},
        "dtype": "float32",
        "status": "ok",
        "message": None,
        "checks": [],
        "timings": [],
        "skipped": [],
        "targets": [],
    }
    share = options.share()
    try:
        _run(case, size, options, share, record)
    except Exception as error:  # a broken case must not take the others with it, and must be seen
        record |= {"status": "error", "message": _one_line(error), "timings": [], "targets": []}
    options.units_left -= 1
    options.compiles_left -= size.compile
    gc.collect()
    return record


def _run(case: Case, size: Size, options: Options, share: float, record: dict[str, Any]) -> None:
    start = time.monotonic()
    problem, wide = (
        case.build(Setup(size.dims, options.device, wide=flag, seed=options.seed, toy=options.toy))
        for flag in (False, True)
    )
    record["dtype"] = problem.dtype
    record["skipped"] = [{"contender": name, "reason": reason} for name, reason in problem.missing.items()]
    passing = _check_all(problem, wide, record)
    if record["status"] == "failed":
        return
    left = max(0.0, share - (time.monotonic() - start))
    if size.compile or options.toy:
        passing |= _compiled(problem, wide, options, record)
    del wide
    record["timings"] = _time_all(problem, passing, options, left)
    if _weighs_apart(problem, options):
        _weigh(record, options)
    record["targets"] = [_judge(target, record) for target in problem.targets]
    actions = modes(problem, {"ours": problem.contenders["ours"]} if problem.timer == "device" else {})
    slow = {t["mode"] for t in record["targets"] if t["met"] is False and (t["at_least"] or t["seconds_at_most"])}
    wanted = [mode for mode in actions if options.profile or mode in slow]
    if wanted and not options.toy and problem.timer == "device":
        record["profile"] = {mode: split_time(actions[mode]["ours"], options.device) for mode in wanted}


def _check_all(problem: Problem, wide: Problem, record: dict[str, Any]) -> dict[str, Contender]:
    """Check every contender; ours or the reference failing fails the case, a peer failing drops the peer."""
    passing = {}
    for name, contender in problem.contenders.items():
        checks = [] if problem.timer == "self" else check_contender(name, contender, problem, wide)
        record["checks"] += [check.record() for check in checks]
        wrong = [check for check in checks if not check.passed]
        if not wrong:
            passing[name] = contender
        elif contender.kind in ("ours", "eager"):
            record |= {"status": "failed", "message": _explain(wrong[0])}
        else:
            record["skipped"].append({"contender": name, "reason": _explain(wrong[0])})
    return passing


def _compiled(problem: Problem, wide: Problem, options: Options, record: dict[str, Any]) -> dict[str, Contender]:
    """Return torch.compile of the eager contender, checked; or note why there is none."""
    eager = problem.contenders.get("eager")
    reason = None
    if eager is None or problem.compiles == "no":
        return {}
    if options.backend == "none":
        reason = "torch.compile switched off"
    elif not options.can_compile():
        reason = "time budget"
    if reason is None:
        torch.compiler.reset()
        whole = problem.compiles == "whole"
        run = torch.compile(eager.run, backend=options.backend, fullgraph=whole, dynamic=False)
        contender = dataclasses.replace(eager, run=run, kind="compile", note="")
        begin = time.monotonic()
        try:
            # Where training is random, its gradients cannot be compared, and eval mode would need one more compilation.
            checks = check_contender("compile", contender, problem, wide, gradients=not problem.stochastic)
            _train_once(problem, contender)
        except Exception as error:
            reason = f"does not compile: {_one_line(error)}"
        else:
            options.compile_seconds.append(time.monotonic() - begin)
            record["checks"] += [check.record() for check in checks]
            if all(check.passed for check in checks):
                return {"compile": contender}
            reason = _explain(next(check for check in checks if not check.passed))
    record["skipped"].append({"contender": "compile", "reason": reason})
    return {}


def _train_once(problem: Problem, contender: Contender) -> None:
    """Compile the training path now, where a failure costs no more than this contender."""
    problem.train(True)
    for mode, actions in modes(problem, {"compile": contender}).items():
        if mode != "forward":
            actions["compile"]()


def _time_all(problem: Problem, passing: dict[str, Contender], options: Options, left: float) -> list[dict[str, Any]]:
    clock = Clock(options.device, self_timed=problem.timer == "self")
    found = modes(problem, passing)
    timings = []
    for mode, actions in found.items():
        problem.train(mode != "forward")
        samples = interleave(actions, clock, seconds=left / len(found), **options.limits(problem))
        floor = _floor(problem, mode, options.ceilings)
        for name, (seconds, iterations) in samples.items():
            kind = passing[name].kind
            unseen = problem.timer == "self" or (_weighs_apart(problem, options) and kind != "compile")
            peak = None if unseen else peak_bytes(actions[name], options.device)
            head = {"contender": name, "kind": kind, "note": passing[name].note, "mode": mode}
            timings.append(_timing(head, seconds, iterations, peak, floor))
    return timings


def _weighs_apart(problem: Problem, options: Options) -> bool:
    return problem.own_process and options.device.type == "cpu" and not options.toy and process.is_possible()


def _weigh(record: dict[str, Any], options: Options) -> None:
    """Put the peak memory of a process of its own into the timings of every contender but the compiled one."""
    shared = {"suite": record["suite"], "case": record["case"], "dims": record["size"]["dims"], "seed": options.seed}
    for name in dict.fromkeys(timing["contender"] for timing in record["timings"]):
        mine = [t for t in record["timings"] if t["contender"] == name and t["kind"] != "compile"]
        if not mine:
            continue
        order = {**shared, "contender": name, "modes": [t["mode"] for t in mine], "threads": torch.get_num_threads()}
        try:
            peaks = process.peaks(order)
        except process.ProcessError as error:
            record["skipped"].append({"contender": name, "reason": str(error)})
            continue
        for timing in mine:
            timing |= {"peak_bytes": peaks[timing["mode"]], "peak_of": "process"}


def modes(problem: Problem, passing: dict[str, Contender]) -> dict[str, dict[str, Action]]:
    """Return the actions of every contender in every mode that is wanted."""
    found = _all_modes(problem, passing)
    return {mode: actions for mode, actions in found.items() if mode in (problem.modes or found)}


def _all_modes(problem: Problem, passing: dict[str, Contender]) -> dict[str, dict[str, Action]]:
    if problem.timer == "self":
        return {"forward": {name: contender.run for name, contender in passing.items()}}
    found = {"forward": {name: _forward(problem, contender.run) for name, contender in passing.items()}}
    steps = {name: c.step(c.run) for name, c in passing.items() if c.step is not None}
    if steps:
        found["training_step"] = steps
    elif problem.gradients:
        found["forward_backward"] = {name: _backward(problem, contender) for name, contender in passing.items()}
    return found


def _forward(problem: Problem, run: Callable[..., Any]) -> Action:
    def action() -> Any:
        with torch.no_grad():
            return run(*problem.inputs)

    return action


def _backward(problem: Problem, contender: Contender) -> Action:
    wanted = problem.wanted(contender)
    directions: list[torch.Tensor] = []

    def action() -> Any:
        outputs = [out for out in tensors(contender.run(*problem.inputs)) if out.requires_grad]
        if not directions:
            directions.extend(cotangents(outputs))
        return torch.autograd.grad(outputs, wanted, directions, allow_unused=True)

    return action


def _floor(problem: Problem, mode: str, ceilings: Ceilings) -> float | None:
    ours = problem.contenders.get("ours")
    if ours is None or problem.timer == "self":
        return None
    with torch.no_grad():
        moved = least_bytes(problem, ours.run(*problem.inputs))[mode]
    training = 3 * problem.flops if problem.training_flops is None else problem.training_flops
    return ceilings.floor_seconds(moved, problem.flops if mode == "forward" else training)


def _timing(
    head: dict[str, str], samples: list[float], iterations: int, peak: int | None, floor: float | None
) -> dict[str, Any]:
    seconds = summary(samples)
    return {
        **head,
        "seconds": seconds,
        "rounds": len(samples),
        "iterations": iterations,
        "peak_bytes": peak,
        "floor_seconds": floor,
        "percent_of_floor": None if floor is None else 100 * floor / seconds["median"],
    }


def _judge(target: Target, record: dict[str, Any]) -> dict[str, Any]:
    """Say whether a promise was kept; ``met`` is null when what it needs was not measured."""
    timed = {t["contender"]: t for t in record["timings"] if t["mode"] == target.mode}
    ours, other = timed.get("ours"), timed.get(target.versus or "ours")
    measured = met = None
    if target.error_at_most is not None:
        checks = [c for c in record["checks"] if (c["contender"], c["quantity"]) == ("ours", target.quantity)]
        measured = checks[0]["error"] if checks else None
        met = measured is not None and measured <= target.error_at_most if checks else None
    elif ours is not None and other is not None:
        if target.at_least is not None:
            measured = other["seconds"]["median"] / ours["seconds"]["median"]
            met = measured >= target.at_least
        elif target.bytes_at_most is not None:
            measured = ours["peak_bytes"]
            met = None if measured is None else measured <= target.bytes_at_most
        else:
            measured = ours["seconds"]["median"]
            met = measured <= (target.seconds_at_most or 0.0)
    return {**dataclasses.asdict(target), "measured": measured, "met": met}


def _explain(check: Check) -> str:
    error = "not finite or of another shape" if check.error is None else f"off by {check.error:.1e}"
    against = f"{check.reference} in float64 (allowed {check.tolerance:g})"
    return f"{check.contender}: {check.quantity} {error} from {against}"


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]
