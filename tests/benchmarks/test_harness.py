"""The benchmark harness: wrong results are never timed, losses are shown like wins, results fit the schema."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.harness import measure, process, report, results, runner
from benchmarks.harness.case import Case, Contender, Problem, Setup, Size, Target, tensors
from benchmarks.harness.check import relative_error
from benchmarks.harness.floors import Ceilings, least_bytes
from benchmarks.harness.profile import part_of, split_time
from benchmarks.harness.runner import Options, run_unit

CPU = torch.device("cpu")
CEILINGS = Ceilings(((1000, 1e-6), (100_000, 1e-5)), 1e9)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def unit(problem: Any, **options: Any) -> dict[str, Any]:
    def build(setup: Setup) -> Problem:
        made: Problem = problem(setup)
        return made

    given = Options(CPU, CEILINGS, toy=True, **{"backend": "none", **options})
    return run_unit("fusion", Case("it", build, {"B": 4}, ()), Size({"B": 4}), given)


def double(x: Tensor) -> Tensor:
    return 2 * x


def same(setup: Setup) -> Problem:
    contenders = {"ours": Contender(double, "ours"), "eager": Contender(double, "eager")}
    return Problem(contenders, (setup.normal(4),))


def test_a_wrong_result_is_reported_and_not_timed() -> None:
    def problem(setup: Setup) -> Problem:
        contenders = {"ours": Contender(lambda x: 2.001 * x, "ours"), "eager": Contender(double, "eager")}
        return Problem(contenders, (setup.normal(4),))

    record = unit(problem)
    assert record["status"] == "failed"
    assert record["timings"] == []
    assert record["message"].startswith("ours: outputs off by 5.0e-04 from eager in float64")


@pytest.mark.parametrize("broken", [lambda x: 2 * x / 0 * 0, lambda x: 2 * x[:2]])
def test_nan_and_wrong_shapes_fail(broken: Any) -> None:
    def problem(setup: Setup) -> Problem:
        contenders = {"ours": Contender(broken, "ours"), "eager": Contender(double, "eager")}
        return Problem(contenders, (setup.normal(4),))

    record = unit(problem)
    assert record["status"] == "failed"
    assert record["checks"][0]["error"] is None


def test_a_wrong_gradient_fails() -> None:
    def problem(setup: Setup) -> Problem:
        contenders = {"ours": Contender(lambda x: x + x.detach(), "ours"), "eager": Contender(double, "eager")}
        return Problem(contenders, (setup.normal(4),))

    record = unit(problem)
    assert record["message"].startswith("ours: gradients off by 5.0e-01")


def test_a_wrong_peer_is_left_out_with_the_reason() -> None:
    def problem(setup: Setup) -> Problem:
        contenders = {
            "ours": Contender(double, "ours"),
            "eager": Contender(double, "eager"),
            "peer": Contender(lambda x: 3 * x),
        }
        return Problem(contenders, (setup.normal(4),))

    record = unit(problem)
    assert record["status"] == "ok"
    assert {timing["contender"] for timing in record["timings"]} == {"ours", "eager"}
    assert record["skipped"][0]["contender"] == "peer"
    assert "outputs off by 5.0e-01" in record["skipped"][0]["reason"]


def test_an_exception_becomes_a_record_that_fits_the_schema(tmp_path: Path) -> None:
    def problem(setup: Setup) -> Problem:
        raise RuntimeError("no such thing\nsecond line")

    record = unit(problem)
    assert (record["status"], record["message"]) == ("error", "RuntimeError: no such thing")
    results.validate(document([record]))


def test_compile_is_checked_and_timed_like_the_others() -> None:
    record = unit(same, backend="eager")
    assert [check["quantity"] for check in record["checks"] if check["contender"] == "compile"] == [
        "outputs",
        "gradients",
    ]
    assert {timing["mode"] for timing in record["timings"] if timing["contender"] == "compile"} == {
        "forward",
        "forward_backward",
    }


def test_what_does_not_compile_is_left_out_with_the_reason() -> None:
    def print_it(x: Tensor) -> Tensor:
        return 2 * x if x.sum() > 0 else x + x

    def problem(setup: Setup) -> Problem:
        contenders = {"ours": Contender(double, "ours"), "eager": Contender(print_it, "eager")}
        return Problem(contenders, (setup.normal(4),))

    record = unit(problem, backend="eager")
    assert record["status"] == "ok"
    assert record["skipped"][0]["contender"] == "compile"
    assert record["skipped"][0]["reason"].startswith("does not compile: ")


def test_compile_is_left_out_when_the_time_is_short() -> None:
    record = unit(same, backend="eager", deadline=0.0)
    assert record["skipped"] == [{"contender": "compile", "reason": "time budget"}]
    assert record["status"] == "ok"


@pytest.mark.parametrize(("at_least", "met"), [(1e-6, True), (1e6, False)])
def test_targets_are_judged(at_least: float, met: bool) -> None:
    def problem(setup: Setup) -> Problem:
        contenders = {"ours": Contender(double, "ours"), "eager": Contender(double, "eager")}
        targets = (Target("fast", versus="eager", at_least=at_least), Target("lost", versus="nobody", at_least=1.0))
        return Problem(contenders, (setup.normal(4),), targets=targets)

    judged, lost = unit(problem)["targets"]
    assert judged["met"] is met
    assert judged["measured"] > 0
    assert (lost["met"], lost["measured"]) == (None, None)


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target("quick", seconds_at_most=1e3), True),
        (Target("quick", seconds_at_most=1e-12), False),
        (Target("lean", bytes_at_most=10**6), True),
        (Target("lean", bytes_at_most=15), False),
        (Target("right", quantity="outputs", error_at_most=1e-5), True),
        (Target("right", quantity="gradients", error_at_most=1e-5), False),
        (Target("right", quantity="statistics", error_at_most=1.0), None),
        (Target("lost", versus="nobody", at_least=1.0), None),
    ],
)
def test_promises_of_every_kind(target: Target, met: bool | None) -> None:
    def problem(setup: Setup) -> Problem:
        contenders = {
            "ours": Contender(lambda x: 2 * x + 1e-4 * (x - x.detach()), "ours"),
            "eager": Contender(double, "eager"),
        }
        return Problem(contenders, (setup.normal(4),), targets=(target,))

    made = document([unit(problem)])
    results.validate(made)
    (judged,) = made["cases"][0]["targets"]
    assert judged["met"] is met
    assert (judged["measured"] is None) == (met is None)
    word = {True: "yes", False: "**no**", None: "unknown"}[met]
    (line,) = (line for line in report.markdown([made], {}).splitlines() if line.startswith(f"| {target.claim} |"))
    assert line.endswith(f"| {word} |")


def test_an_error_that_is_not_finite_breaks_a_promise() -> None:
    record: dict[str, Any] = {
        "timings": [],
        "checks": [{"contender": "ours", "quantity": "outputs", "error": None}],
    }
    judged = runner._judge(Target("right", quantity="outputs", error_at_most=1.0), record)
    assert (judged["measured"], judged["met"]) == (None, False)


def test_only_the_modes_that_are_wanted_are_timed() -> None:
    def problem(setup: Setup) -> Problem:
        return Problem(same(setup).contenders, (setup.normal(4),), modes=("forward_backward",), dtype="float16")

    record = unit(problem)
    assert {timing["mode"] for timing in record["timings"]} == {"forward_backward"}
    assert record["dtype"] == "float16"


def test_a_reference_is_computed_once() -> None:
    calls: list[torch.dtype] = []

    def count(x: Tensor) -> Tensor:
        calls.append(x.dtype)
        return 2 * x

    def problem(setup: Setup) -> Problem:
        others = {name: Contender(double) for name in "ab"}
        contenders = {"ours": Contender(double, "ours"), "eager": Contender(count, "eager"), **others}
        return Problem(contenders, (setup.normal(4),))

    assert unit(problem)["status"] == "ok"
    assert calls.count(torch.float64) == 2  # outputs and gradients


def test_setups_of_one_seed_differ_only_in_precision() -> None:
    narrow, wide = (Setup({"B": 3}, CPU, wide=flag, seed=5) for flag in (False, True))
    for draw in (lambda s: s.normal(3, 2), lambda s: s.module(lambda: nn.Linear(2, 2)).weight, lambda s: s.mask(3, 2)):
        a, b = draw(narrow), draw(wide)
        assert torch.equal(a.double(), b.double())
    assert (narrow.normal(1).dtype, wide.normal(1).dtype) == (torch.float32, torch.float64)
    assert bool((narrow.module(lambda: nn.LayerNorm(4)).bias != 0).all())


def test_relative_error() -> None:
    one = torch.ones(4)
    assert relative_error([one], [one.double() * 2]) == pytest.approx(0.5)
    assert math.isnan(relative_error([one], [one, one]))
    assert math.isnan(relative_error([one], [torch.ones(5)]))
    assert relative_error([one, one * 1e-9], [one, one * 0]) < 1e-6  # rounding noise beside a large tensor
    assert [id(t) for t in tensors(({"a": one}, [None, (one, 3)]))] == [id(one)] * 2


def test_peak_memory_on_the_cpu_is_exact() -> None:
    size = 1000 * 1000 * 4

    def action() -> Tensor:
        first = torch.ones(1000, 1000)
        second = first * 2
        del first
        return second.exp()

    assert measure.peak_bytes(action, CPU) == pytest.approx(2 * size, rel=0.01)
    held = torch.ones(1000, 1000)
    assert measure.peak_bytes(lambda: held.add_(1), CPU) < 1000


@pytest.mark.skipif(not process.is_possible(), reason="this system does not reset the peak memory of a process")
def test_growth_of_a_process_is_the_peak_of_a_call() -> None:
    def action() -> Tensor:
        return torch.ones(3000, 1000).exp_().add(1)

    process.growth(action)
    assert process.growth(action) == pytest.approx(2 * 12e6, rel=0.2)


@pytest.mark.skipif(not process.is_possible(), reason="this system does not reset the peak memory of a process")
def test_peaks_of_a_process_of_its_own() -> None:
    order = {
        "suite": "contrastive",
        "case": "InfoNCELoss",
        "dims": {"B": 1500, "D": 16},
        "contender": "eager",
        "modes": ["forward_backward"],
        "seed": 0,
        "threads": 1,
    }
    pairs = 4 * 1500**2
    assert 3 * pairs < process.peaks(order)["forward_backward"] < 6 * pairs
    with pytest.raises(process.ProcessError, match=r"exit status 1 KeyError: 'nobody'"):
        process.peaks({**order, "contender": "nobody"})


def test_smaller_sizes_keep_their_letters() -> None:
    assert process._smaller({"B": 16384, "D": 128}) == {"B": 1024, "D": 128}
    assert process._smaller({"B": 6, "D": 5}) == {"B": 6, "D": 5}


def test_parts_of_the_time() -> None:
    assert part_of("aten::mm", [[256, 128], [128, 4096]]) == "products"
    assert part_of("aten::addmm_", [[256, 64], [256, 128], [128, 64], [], []]) == "products"
    assert part_of("aten::mm", [[256, 4096], [4096, 1]]) == "sums"
    assert part_of("aten::mm", [[256, 2], [2, 4096]]) == "arithmetic"
    names = {"exp_": "exponentials", "_log_softmax": "exponentials", "mul_": "arithmetic", "maximum": "arithmetic"}
    names |= {"index_add_": "indexing", "masked_fill_": "indexing", "copy_": "memory", "addmv_": "sums"}
    assert {name: part_of(f"aten::{name}", []) for name in names} == names
    assert part_of("mmrobust::pair_logsumexp", [[4]]) == part_of("DivBackward0", []) == "rest"
    x = torch.randn(300, 300)
    parts = split_time(lambda: (x @ x).exp().sum(), CPU)
    assert {"products", "exponentials"} < {part["part"] for part in parts}
    assert sum(part["share"] for part in parts) == pytest.approx(1.0, abs=0.05)


def test_where_the_time_goes_is_reported() -> None:
    record = unit(same)
    record["profile"] = {"forward": [{"part": "products", "seconds": 2e-3, "share": 0.75}]}
    made = document([record])
    results.validate(made)
    assert "- it (B=4), forward, 2 ms in the profiler: products 75%" in report.markdown([made], {})


def test_blocks_are_interleaved_in_rotating_order() -> None:
    calls: list[str] = []
    actions = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    timed = measure.interleave(actions, measure.Clock(CPU), seconds=0.0, min_block=1e-9, min_rounds=3, max_rounds=9)
    assert calls[-9:] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert all(len(samples) == 3 and min(samples) >= 0 for samples, _ in timed.values())


def test_summary_gives_median_and_quartiles() -> None:
    assert measure.summary([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "q25": 2.0, "q75": 4.0, "min": 1.0}
    assert measure.summary([2.0])["q75"] == 2.0


def test_floors() -> None:
    assert CEILINGS.copy_seconds(10) == 1e-6  # never below one launch
    assert CEILINGS.copy_seconds(10_000) == pytest.approx(math.sqrt(1e-11))
    assert CEILINGS.copy_seconds(1_000_000) == pytest.approx(1e-4)
    assert CEILINGS.floor_seconds(1000, 2e9) == pytest.approx(2.0)
    x = torch.zeros(10, requires_grad=True)
    problem = Problem({"ours": Contender(double, "ours")}, (x,))
    assert least_bytes(problem, double(x)) == {"forward": 80, "forward_backward": 200, "training_step": 160}


def timing(contender: str, median: float, kind: str = "eager") -> dict[str, Any]:
    seconds = {"median": median, "q25": 0.9 * median, "q75": 1.1 * median, "min": 0.8 * median}
    return {
        "contender": contender,
        "kind": kind,
        "note": "",
        "mode": "forward",
        "seconds": seconds,
        "rounds": 3,
        "iterations": 1,
        "peak_bytes": 1000,
        "floor_seconds": 1e-4,
        "percent_of_floor": 10.0,
    }


def document(cases: list[dict[str, Any]]) -> dict[str, Any]:
    from benchmarks.harness.environment import describe

    settings = {"sizes": "toy", "seed": 0, "time_budget_s": 1.0, "compile_backend": "none"}
    return {
        "schema_version": 1,
        "suite": "fusion",
        "complete": True,
        "settings": settings,
        "environment": describe(CPU),
        "ceilings": CEILINGS.record(),
        "cases": cases,
    }


@pytest.mark.parametrize(("other", "verdict", "shown"), [(2e-3, "faster", "2.00"), (5e-4, "slower", "**0.50**"),
                                                         (1.1e-3, "equal", "1.10")])  # fmt: skip
def test_losses_are_shown_like_wins(other: float, verdict: str, shown: str) -> None:
    record = unit(same)
    record["timings"] = [timing("ours", 1e-3, "ours"), timing("eager", other)]
    made = document([record])
    results.validate(made)
    (row,) = report.rows(made)
    assert row.verdict() == verdict
    text = report.markdown([made], {})
    assert f"| {shown} |" in text
    counts = [str(int(verdict == word)) for word in ("faster", "equal", "slower")]
    assert f"| fusion | cpu | 1 | {' | '.join(counts)} | 0 |" in text


def test_durations_and_amounts_read_well() -> None:
    assert [report.duration(s) for s in (2.5, 0.0123, 4.56e-6, 9.99e-4, 7e-10)] == [
        "2.5 s",
        "12.3 ms",
        "4.56 µs",
        "999 µs",
        "0.7 ns",
    ]
    assert [report.amount(b) for b in (12, 4_000, 33_554_432)] == ["12 B", "4 kB", "33.6 MB"]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda d: d.update(extra=1), "top level"),
        (lambda d: d["environment"].pop("device_name"), "environment"),
        (lambda d: d["environment"].update(commit="abc"), "environment/commit"),
        (lambda d: d["cases"][0].update(status="fine"), "cases/0/"),
        (lambda d: d["cases"][0].update(timings=[]), "cases/0"),
        (lambda d: d["cases"][0]["timings"][0]["seconds"].update(median=0), "cases/0/timings/0/seconds/median"),
    ],
)
def test_the_schema_refuses(change: Any, where: str) -> None:
    record = unit(same)
    made = json.loads(json.dumps(document([record])))
    results.validate(made)
    change(made)
    with pytest.raises(results.ResultError, match=where):
        results.validate(made, "it.json")


def test_files_are_strict_json_and_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "cpu-fusion.json"
    results.write(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write(path, {"a": math.nan})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    path.write_text('{"a": NaN}', encoding="utf-8")
    with pytest.raises(results.ResultError, match=r"cpu-fusion\.json: expected a strict JSON .* NaN is not JSON"):
        results.read(path)
