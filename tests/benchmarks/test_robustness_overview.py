"""Tables of one configuration over several data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.robustness import write_rows
from benchmarks.robustness.overview import main


def rows(data: str, **shift: float) -> list[dict[str, Any]]:
    """Five seeds of `ours` and `plain`; `ours` is better by `shift` in the columns named."""
    plain = {
        "test.weighted_f1": 0.7,
        "subset[a].weighted_f1": 0.6,
        "subset[a+b].weighted_f1": 0.7,
        "corrupt[a:clean].weighted_f1": 0.7,
        "corrupt[a:zeros].weighted_f1": 0.5,
        "corrupt[a:shuffle].weighted_f1": 0.1,
        "calibration[mean].ece": 0.2,
    }
    own = {
        "regret[a].weighted_f1": 0.05,
        "regret[a+b].weighted_f1": -0.01,
        "gap[a:zeros].weighted_f1": -0.02,
        "gap[a:noise@0dB].weighted_f1": 0.03,
        "auroc[a:noise@0dB].std": 0.6,
        "detector[a:noise@0dB].energy": 0.85,
        "auroc[a:zeros].std": 0.9,
        "detector[a:zeros].residual": 0.2,
        "detector[a:zeros].nearest": 0.7,
    }
    found = []
    for seed in range(5):
        key = {"data": data, "seed": seed, "fold": 0}
        noise = 0.001 * seed
        found.append({"config": "plain", **key, **{name: value + noise for name, value in plain.items()}})
        better = {name: value + noise + shift.get(name.rpartition(".")[0], 0.0) for name, value in plain.items()}
        found.append({"config": "ours", **key, **better, **own})
    return found


def test_three_tables_of_two_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "one.csv", tmp_path / "two.csv"]
    write_rows(files[0], rows("one", test=0.1))
    write_rows(files[1], rows("two", **{"corrupt[a:shuffle]": 0.2, "corrupt[a:clean]": 0.2}))
    assert main([*map(str, files), "--config", "ours", "--out", str(tmp_path / "o.md")]) == 0
    text = (tmp_path / "o.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    # Mean regret (.05 - .01) / 2; one subset is lost with its whole interval, and so is one gap.
    assert "| one | ours | 0.020 [0.020, 0.020] | 0.050 [0.050, 0.050] (a) | 1 of 2 |" in text
    assert "| 0.005 [0.005, 0.005] | -0.020 [-0.020, -0.020] (a:zeros) | 1 of 2 |" in text
    assert "fewer than 5 folds or seeds the intervals are too narrow" in text
    # Shuffled and clean rows are no corruption; the difference of the clean score is the shift.
    heads = "| | clean | mean over subsets | mean over corruptions without shuffle | ECE (lower is better) |"
    assert heads.replace("| |", "|  |", 1) in text
    assert "| one, to plain | **+0.100 [+0.100, +0.100]** | +0.000 [+0.000, +0.000] | +0.000" in text
    assert "| two, to plain |" + 4 * " +0.000 [+0.000, +0.000] |" in text
    # A statistic that is low on spoilt rows tells them too: 1 - 0.2 beats 0.7.
    assert "| two, a | 0.600 / 0.850 | – / – | 0.900 / 0.800 |" in text
    assert "upper bound (statistic and direction picked per cell on the test rows)" in text


def test_a_measure_that_a_file_lacks_is_a_dash(tmp_path: Path) -> None:
    """And what no file has is no column; cells stay under their heads."""
    lacking = [
        {name: value for name, value in row.items() if not name.startswith(("calibration", "corrupt[a:zeros]"))}
        for row in rows("one")
    ]
    files = [tmp_path / "one.csv", tmp_path / "two.csv"]
    write_rows(files[0], lacking)
    write_rows(files[1], rows("two", **{"calibration[mean]": -0.1}))
    out = tmp_path / "o.md"
    assert main([*map(str, files), "--config", "ours", "--out", str(out)]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.read_text().splitlines()]
    (heads,) = [line for line in lines if "clean" in line]
    one, two = (dict(zip(heads, line, strict=True)) for line in lines if line and line[0].endswith(", to plain"))
    assert one["ECE (lower is better)"] == one["mean over corruptions without shuffle"] == "–"
    assert one["mean over subsets"] == "+0.000 [+0.000, +0.000]"
    assert two["ECE (lower is better)"] == "**-0.100 [-0.100, -0.100]**"
    assert main([str(files[0]), "--config", "ours", "--out", str(out)]) == 0
    assert "ECE" not in out.read_text()


def test_validation_alone_chooses(tmp_path: Path) -> None:
    """The candidate with the better validation score is taken, although the other one is better on test rows."""
    found = rows("one", test=0.1)
    for row in found:
        row["val.select"] = (-0.5 if row["config"] == "ours" else -0.4) + 0.001 * row["seed"]
    write_rows(tmp_path / "one.csv", found)
    out = tmp_path / "o.md"
    assert main([str(tmp_path / "one.csv"), "--config", "ours", "plain", "--out", str(out)]) == 0
    assert "| one | plain (ours -0.4980, plain -0.3980) |" in out.read_text()
    assert "to ours" not in out.read_text() and "to plain" not in out.read_text()


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "one.csv"
    write_rows(file, rows("one"))
    both = tmp_path / "both.csv"
    write_rows(both, rows("one") + rows("two"))
    for words, message in (
        ([str(file), "--config", "theirs"], "expected runs of 'theirs', got plain, ours"),
        ([str(tmp_path / "none.csv"), "--config", "ours"], "none.csv"),
        ([str(file), "--config", "ours", "plain"], "one.csv: expected a column val.select to choose by"),
        ([str(file), "--config", "ours", "--score", "f2"], "one.csv: summary_table: expected a score among ece"),
        ([str(both), "--config", "ours"], "both.csv: summary_table: expected runs of one data set, got one, two"),
    ):
        assert main([*words, "--out", str(tmp_path / "o.md")]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "o.md").exists()
