"""Bad data: one line that names the place and what is expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.pipeline.errors import DataError
from tests.examples.mer_sets import Rng, layout_data, npz_data, write_layout, write_npz


def replace_in_table(old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / "labels.csv").read_text()
        assert old in text
        (root / "labels.csv").write_text(text.replace(old, new, 1))

    return change


def save_sample(feature: str, name: str, x: np.ndarray) -> Callable[[Path], None]:
    return lambda root: np.save(root / "features" / feature / f"{name}.npy", x)


def broken_sample(root: Path) -> None:
    (root / "features" / "text" / "train_3.npy").write_bytes(b"not an array")


LAYOUT_ERRORS: list[tuple[Callable[[Path], Any], str]] = [
    (lambda root: (root / "labels.csv").unlink(), r"expected one of labels\.csv or labels\.json, found neither"),
    (lambda root: (root / "labels.json").write_text("[]"), r"expected one of .*, found both"),
    (lambda root: (root / "labels.csv").rename(root / "label-6way.npz"), r"make it once from label-6way\.npz"),
    (lambda root: (root / "labels.csv").write_text("name,split,emotion,valence\n"), r"labels\.csv: .*at least one row"),
    (lambda root: (root / "labels.csv").write_bytes(b"\xff\xfe\xfa"), r"labels\.csv: expected UTF-8"),
    (replace_in_table("emotion", "mood"), r"labels\.csv: expected a column 'emotion', found name, split, mood"),
    (replace_in_table("name,split", "name,name"), r"labels\.csv: expected different column names"),
    (replace_in_table("train_0,train,neutral,0.0", "train_0,train,neutral"), r"line 2: expected 4 cells .*, got 3"),
    (replace_in_table("train_1,train,angry", "train_1,train,calm"), r"line 3: expected one of neutral, .* got 'calm'"),
    (replace_in_table("train_1,train", "train_1,training"), r"line 3: expected a split of train, val.* got 'training'"),
    (replace_in_table("angry,0.125", "angry,much"), r"line 3: expected a finite number or an empty cell, got 'much'"),
    (replace_in_table("angry,0.125", "angry,nan"), r"line 3: expected a finite number"),
    (replace_in_table("train_1,", "train_0,"), r"line 3: expected every sample once, got 'train_0' again"),
    (replace_in_table("train_1,", "../train_1,"), r"line 3: expected a sample name without slashes"),
    (save_sample("text", "train_3", np.array([1.0, np.nan, 2.0])), r"text/train_3\.npy: expected finite .*nan.*\(1,\)"),
    (
        save_sample("text", "train_3", np.array([1.0, 1e300, 2.0])),
        r"text/train_3\.npy: expected finite values, got inf",
    ),
    (save_sample("text", "train_3", np.ones(5)), r"text/train_3\.npy: expected 3 features as in train_0\.npy, got 5"),
    (save_sample("text", "train_3", np.ones((1, 1, 3))), r"train_3\.npy: expected numbers of shape .* \(1, 1, 3\)"),
    (save_sample("text", "train_3", np.array(["a"])), r"train_3\.npy: expected numbers of shape"),
    (save_sample("text", "train_3", np.array([{}], dtype=object)), r"train_3\.npy: expected .* \(it holds pickled ob"),
    (broken_sample, r"text/train_3\.npy: expected a \.npy array of numbers$"),
    (
        lambda root: (root / "features" / "text").rename(root / "features" / "words"),
        r"text: no such .* audio, video, w",
    ),
]


@pytest.mark.parametrize(("change", "message"), LAYOUT_ERRORS)
def test_layout_errors(tmp_path: Path, rng: Rng, change: Callable[[Path], Any], message: str) -> None:
    write_layout(tmp_path, rng)
    change(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        layout_data(tmp_path)
    assert "\n" not in str(caught.value)


def test_feature_folder_without_any_sample(tmp_path: Path, rng: Rng) -> None:
    write_layout(tmp_path, rng)
    for path in (tmp_path / "features" / "text").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(DataError, match=r"features/text: expected <sample>\.npy files, none of the 42 samples has one"):
        layout_data(tmp_path)


def test_bad_json(tmp_path: Path, rng: Rng) -> None:
    write_layout(tmp_path, rng)
    (tmp_path / "labels.csv").unlink()
    for text, message in {
        "[{]": "line 1: expected JSON",
        "3": "expected a list of objects",
        '[{"name": "a"}, {"title": "b"}]': "entry 2: expected an object with the keys name",
    }.items():
        (tmp_path / "labels.json").write_text(text)
        with pytest.raises(DataError, match=message):
            layout_data(tmp_path)


NPZ_ERRORS: list[tuple[dict[str, np.ndarray], dict[str, Any], str]] = [
    ({"a": np.full((60, 3), np.nan)}, {}, r"set\.npz: a: row 0: expected finite features.*\(60 such rows\)"),
    ({"a": np.where(np.arange(60)[:, None] == 9, np.inf, np.ones((60, 2)))}, {}, r"a: row 9: expected finite"),
    ({"a": np.ones(60)}, {}, r"a: expected numbers of shape \(N, D\) or \(N, T, D\), got float64 of shape \(60,\)"),
    ({"a": np.ones((60, 0))}, {}, r"a: expected numbers of shape"),
    ({"a": np.array([["x"]] * 60)}, {}, r"a: expected numbers of shape"),
    (
        {"a": np.array([[None]] * 60)},
        {},
        r"set\.npz: a: not a readable \.npz archive of plain arrays \(it holds pickled ob",
    ),
    ({"b": np.ones((59, 2))}, {}, r"set\.npz: b: expected 60 rows as in .*set\.npz: a, got 59"),
    ({"label": np.zeros((60, 1))}, {}, r"label: expected labels or numbers of shape \(N,\)"),
    ({"label": np.arange(60) - 2}, {}, r"label: row 0: expected a number from 0 to 57 \(or -1 for none\), got -2"),
    ({"label": np.arange(60) % 3 + 1}, {}, r"label: expected every number from 0 to 3, none is 0"),
    ({"label": np.arange(60) / 2}, {}, r"label: row 1: expected a whole number"),
    ({}, {"classes": ["x", "y"]}, r"label: row 2: expected a number from 0 to 1 \(or -1 for none\), got 2"),
    ({"label": np.array(["x", "z"] * 30)}, {"classes": ["x", "y"]}, r"label: row 1: expected one of x, y, got 'z'"),
    ({}, {"label": "mood"}, r"set\.npz: expected an array 'mood', found a, b, label, subject"),
    ({}, {"split": "subject", "split_values": {"train": 0}}, r"subject: row 5: expected a split of 0, got '1'"),
    ({}, {"split": "subject", "split_values": {"dev": 0}}, r"split_values: expected train, val.* got 'dev'"),
    ({}, {"split": "label", "split_values": {"train": 5, "val": [0, 1, 2]}}, r"expected rows of 'train', got none"),
    ({"f": np.arange(60) % 3}, {"fold_array": "f"}, r"folds: expected 3 as in the fold array, got 5"),
    ({}, {"fold": 5}, r"^--data\.fold: expected 0 to 4, got 5"),
    (
        {"f": np.arange(60) % 3, "s": np.array(["train", "test1", "train"] * 20)},
        {"fold_array": "f", "folds": 3, "fold": 1, "split": "s"},
        r"^--data\.fold: expected folds with rows, fold 1, which is 'val', has none",
    ),
    ({}, {"folds": 1}, r"folds: expected 2 to 60, the number of rows"),
    ({}, {"folds": 13, "group": "subject"}, r"folds: expected 2 to 12, the number of groups"),
    ({"f": np.arange(60) % 5}, {"fold_array": "f", "group": "subject"}, r"group: row 1: its group is in 'test' and in"),
    ({"s": np.array([np.inf] * 60)}, {"score": "s"}, r"s: row 0: expected a number or NaN as score"),
    ({}, {"normalize": "group"}, r"normalize: 'group' expects a group column"),
    ({}, {"normalize": "all"}, r"normalize: expected one of train, group, none, got 'all'"),
    ({}, {"format": "zip"}, r"format: expected one of mer2023, npz, got 'zip'"),
    ({}, {"only": ["c"]}, r"only: expected one of a, b, got 'c'"),
    ({}, {"only": []}, r"only: expected at least one of a, b"),
    ({}, {"modalities": ["a", "a"]}, r"modalities: expected one or more different names"),
    ({}, {"batch_size": 0}, r"batch_size: expected at least 1, got 0"),
    ({}, {"frames": "all"}, r"frames: expected one of utterance, aligned, unaligned, got 'all'"),
    ({"a": np.ones((60, 2, 3))}, {"frames": "aligned"}, r"align_to: expected one of a, got None"),
]


@pytest.mark.parametrize(("arrays", "options", "message"), NPZ_ERRORS)
def test_npz_errors(
    tmp_path: Path, rng: Rng, arrays: dict[str, np.ndarray], options: dict[str, Any], message: str
) -> None:
    path = write_npz(tmp_path / "set.npz", rng, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        npz_data(path, **options)
    assert "\n" not in str(caught.value)


def test_npz_file_errors(tmp_path: Path, rng: Rng) -> None:
    write_npz(tmp_path / "set.npz", rng)
    np.save(tmp_path / "single.npy", np.ones((4, 2)))
    (tmp_path / "text.npz").write_text("no zip")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object))
    for name in ("single", "pickled"):
        (tmp_path / f"{name}.npy").rename(tmp_path / f"{name}.npz")
    whole = (tmp_path / "set.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "changed.npz").write_bytes(whole[:200] + b"?" + whole[201:])
    plain = r"not a readable \.npz archive of plain arrays"
    for root, modalities, message in [
        ("none.npz", ["a"], r"none\.npz: no such file or folder"),
        ("single.npz", ["a"], rf"single\.npz: {plain} \(a single array, as in \.npy\)$"),
        ("pickled.npz", ["a"], rf"pickled\.npz: {plain} .*never read\); `convert` turns the published label-6way\.npz"),
        ("text.npz", ["a"], rf"text\.npz: {plain}$"),
        ("empty.npz", ["a"], rf"empty\.npz: {plain} \(No data left in file\)$"),
        ("cut.npz", ["a"], rf"cut\.npz: {plain}"),
        ("changed.npz", ["a"], rf"changed\.npz: a: {plain}"),
        (".", ["a"], r"is a folder; expected an array named file\.npz:array, got 'a'"),
        (".", ["other.npz:a"], r"other\.npz: no such file"),
    ]:
        with pytest.raises(DataError, match=message) as caught:
            npz_data(tmp_path / root, modalities=modalities)
        assert "allow_pickle" not in str(caught.value)


def test_no_test_part(tmp_path: Path, rng: Rng) -> None:
    path = write_npz(tmp_path / "set.npz", rng, split=np.array(["train"] * 60))
    data = npz_data(path, split="split")
    assert list(data.sets) == ["train", "val"]
    with pytest.raises(DataError, match="expected a test part, the split has only train, val"):
        data.test_dataloader()
    with pytest.raises(DataError, match="split: expected one of train, val, got 'test'"):
        data.loader("test")


def test_a_named_part_without_rows(tmp_path: Path, rng: Rng) -> None:
    path = write_npz(tmp_path / "set.npz", rng, split=np.zeros(60, dtype=np.int64))
    with pytest.raises(DataError, match=r"split_values: expected rows of 'test', got none of 60 with 2"):
        npz_data(path, split="split", split_values={"train": 0, "test": 2}).sets  # noqa: B018
