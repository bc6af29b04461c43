"""One row per run: column names and the CSV."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.robustness import Column, parse_column, parse_corruption, read_rows, tidy, update_rows, write_rows
from benchmarks.robustness.rows import write_atomically


def run(config: str = "a", seed: int = 0, fold: int = 0, **values: float) -> dict[str, str | int | float]:
    named = {name.replace("__", "."): value for name, value in values.items()}
    return {"config": config, "data": "toy", "seed": seed, "fold": fold, **named}


@pytest.mark.parametrize(
    "name", ["test.accuracy", "subset[audio+text].weighted_f1", "missing[0.3].accuracy", "weight[audio:noise@0dB].text"]
)
def test_column_names_survive_the_way_through_their_parts(name: str) -> None:
    column = parse_column(name)
    assert column is not None and str(column) == name


@pytest.mark.parametrize("name", ["seconds", "config", "subset[a]", "a.b.c", "subset[].accuracy", "[a].accuracy", ""])
def test_other_columns_are_no_scores(name: str) -> None:
    assert parse_column(name) is None


def test_corruption_labels() -> None:
    assert parse_corruption("video:noise@-5dB") == ("video", "noise", -5.0)
    assert parse_corruption("video:clean") == ("video", "clean", None)
    with pytest.raises(ValueError, match="expected modality:kind or modality:kind@LEVELdB, got 'video'"):
        parse_corruption("video")


def test_csv_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "runs.csv"
    write_rows(path, [run(seed=3, test__accuracy=1 / 3, note="x, y"), run(seed=4, val__accuracy=0.5)])
    lines = path.read_text().splitlines()
    assert lines[0] == "config,data,seed,fold,test.accuracy,note,val.accuracy"
    assert lines[1] == 'a,toy,3,0,0.333333,"x, y",'
    frame = read_rows(path)
    assert frame["seed"].tolist() == [3, 4] and frame["seed"].dtype == np.int64
    assert frame["test.accuracy"][0] == 0.333333 and np.isnan(frame["test.accuracy"][1])
    assert frame["note"].tolist() == ["x, y", ""]
    assert os.listdir(path.parent) == ["runs.csv"]


def test_update_replaces_the_same_run_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    update_rows(path, [run("a", 0, test__accuracy=0.1), run("a", 1, test__accuracy=0.2)])
    frame = update_rows(path, [run("a", 1, test__accuracy=0.3), run("b", 0, test__accuracy=0.4, val__accuracy=0.5)])
    assert frame[["config", "seed"]].values.tolist() == [["a", 0], ["a", 1], ["b", 0]]
    assert frame["test.accuracy"].tolist() == [0.1, 0.3, 0.4]
    assert update_rows(path, []).equals(frame)


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs.csv"
    write_atomically(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["runs.csv"]


HEADER = "config,data,seed,fold,test.accuracy\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a column 'config' in the header"),
        ("config,data,seed\n", "expected a column 'fold' in the header"),
        (HEADER + "a,toy,0,0,high\n", "row 2, column 'test.accuracy': expected a number or nothing, got 'high'"),
        (HEADER + "a,toy,0,0,1\na,toy,x,0,1\n", "row 3, column 'seed': expected a whole number, got 'x'"),
        (HEADER + "a,toy,0,0.5,1\n", "row 2, column 'fold': expected a whole number, got '0.5'"),
        (HEADER + "a,toy,0,,1\n", "row 2, column 'fold': expected a whole number, got ''"),
        (HEADER + "a,toy,0,0\n", "row 2: expected 5 fields as in the header, got 4"),
        (HEADER + "a,toy,0,0,1\na,toy,0,0,2\n", "row 3: expected every run once, got config=a, data=toy, seed=0, fold"),
        ("config,data,seed,fold,t.a,t.a\n", "column 't.a' once, got 2 times"),
    ],
)
def test_bad_files_are_named_with_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_rows(path)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="expected a CSV file in UTF-8"):
        read_rows(path)


def test_runs_must_say_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    with pytest.raises(ValueError, match="column 'seed' in every run"):
        write_rows(path, [{"config": "a", "data": "toy", "fold": 0}])
    with pytest.raises(ValueError, match="row 3: expected every run once"):
        write_rows(path, [run(), run()])
    with pytest.raises(ValueError, match="at least one run"):
        write_rows(path, [])
    assert not path.exists()


def test_tidy_has_a_line_per_number() -> None:
    rows = [run(seed=0, test__accuracy=0.5), run(seed=1, test__accuracy=0.6, seconds=3.0)]
    frame = tidy(pd.DataFrame([{**rows[0], "subset[a+b].accuracy": 0.1}, rows[1]]))
    assert len(frame) == 3 and list(frame.columns[:4]) == ["config", "data", "seed", "fold"]
    subset = frame[frame["view"] == "subset"].iloc[0]
    assert Column(subset["view"], subset["argument"], subset["metric"]) == ("subset", "a+b", "accuracy")
    assert frame.query("view == 'test' and seed == 1")["value"].tolist() == [0.6]
