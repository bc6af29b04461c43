"""The two readers of the emotion pipeline, on made-up and real sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.examples.mer_sets import SIZES, Rng, layout_data, npz_data, write_layout, write_npz

# --- the MER2023 layout


def test_layout_complete(tmp_path: Path, rng: Rng) -> None:
    names = write_layout(tmp_path, rng)
    data = layout_data(tmp_path, normalize="none")
    assert list(data.sets) == ["train", "val", "test1", "test3"]
    assert data.test_names == ["test1", "test3"]
    assert data.in_features == SIZES
    assert (data.num_classes, data.num_values, data.sequences) == (6, 1, [])
    assert data.class_names == ["neutral", "angry", "happy", "sad", "worried", "surprise"]
    assert sorted(data.sets["train"].ids + data.sets["val"].ids) == sorted(n for n in names if n.startswith("train"))
    test1 = data.sets["test1"]
    stored = np.load(tmp_path / "features" / "text" / "test1_2.npy")
    np.testing.assert_array_equal(test1.features["text"][2].numpy(), stored)
    assert test1.label.tolist() == list(range(6))
    assert test1.score is not None
    assert test1.score.tolist() == [i / 8 for i in range(6)]


def test_no_valence_is_nan(tmp_path: Path, rng: Rng) -> None:
    write_layout(tmp_path, rng)
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text().replace("test1_0,test1,neutral,0.0", "test1_0,test1,neutral,"))
    data = layout_data(tmp_path)
    assert data.sets["test3"].score.isnan().all()  # type: ignore[union-attr]
    assert data.sets["test1"].score.isnan().tolist() == [True] + [False] * 5  # type: ignore[union-attr]


def test_json_tables_equal_csv(tmp_path: Path, rng: Rng) -> None:
    write_layout(tmp_path, rng)
    expected = layout_data(tmp_path).sets["val"]
    header, *lines = [line.split(",") for line in (tmp_path / "labels.csv").read_text().splitlines()]
    records = [dict(zip(header, line, strict=True)) | {"valence": float(line[3])} for line in lines]
    (tmp_path / "labels.csv").unlink()
    for content in (records, {r["name"]: {k: v for k, v in r.items() if k != "name"} for r in records}):
        (tmp_path / "labels.json").write_text(json.dumps(content))
        found = layout_data(tmp_path).sets["val"]
        assert found.ids == expected.ids
        assert torch.equal(found.label, expected.label)
        torch.testing.assert_close(found.score, expected.score, equal_nan=True)


def test_presence_from_zeros_and_missing_files(tmp_path: Path, rng: Rng) -> None:
    write_layout(tmp_path, rng)
    np.save(tmp_path / "features" / "audio" / "test1_0.npy", np.zeros(4))
    (tmp_path / "features" / "video" / "test1_1.npy").unlink()
    np.save(tmp_path / "features" / "text" / "test1_2.npy", np.zeros((0, 3)))
    test1 = layout_data(tmp_path).sets["test1"]
    expected = torch.ones(6, 3, dtype=torch.bool)
    expected[[0, 2, 1], [0, 1, 2]] = False
    assert torch.equal(test1.present, expected)
    for m, x in enumerate(test1.features.values()):
        assert (x[~expected[:, m]] == 0).all()  # standardisation leaves them at zero
        assert (x[expected[:, m]] != 0).all()


def test_folder_of_faces_is_stacked_in_order(tmp_path: Path, rng: Rng) -> None:
    write_layout(tmp_path, rng, frames=True)
    (tmp_path / "features" / "video" / "test1_0.npy").unlink()
    folder = tmp_path / "features" / "video" / "test1_0"
    folder.mkdir()
    for i in (2, 0, 1):
        np.save(folder / f"face_{i:03d}.npy", np.array([1.0 + i, -1.0 - i]))
    test1 = layout_data(tmp_path, frames="unaligned", normalize="none").sets["test1"]
    assert test1.features["video"][0, :3].tolist() == [[1, -1], [2, -2], [3, -3]]
    assert test1.masks["video"][0].tolist()[:4] == [True, True, True, False]
    utterance = layout_data(tmp_path, normalize="none").sets["test1"]
    assert utterance.features["video"][0].tolist() == [2, -2]
    assert utterance.masks == {}


def test_group_and_fold_columns(tmp_path: Path, rng: Rng) -> None:
    write_layout(tmp_path, rng)
    header, *lines = (tmp_path / "labels.csv").read_text().splitlines()
    extended = [f"{header},speaker,part"] + [f"{line},s{i // 6},{i % 3}" for i, line in enumerate(lines)]
    (tmp_path / "labels.csv").write_text("\n".join(extended))
    data = layout_data(tmp_path, group="speaker")
    train, val = data.sets["train"].group, data.sets["val"].group
    assert train is not None
    assert val is not None
    assert not set(train.tolist()) & set(val.tolist())
    data = layout_data(tmp_path, fold_array="part", folds=3, fold=1)
    assert data.sets["val"].ids == [f"train_{i}" for i in range(1, 30, 3)]


# --- plain npz


def test_npz_file(tmp_path: Path, rng: Rng) -> None:
    b = rng.standard_normal((60, 2)).astype(np.float16)
    b[7] = 0
    path = write_npz(tmp_path / "set.npz", rng, b=b, score=np.where(np.arange(60) == 3, np.nan, 1.0))
    data = npz_data(path, score="score", normalize="none")
    assert list(data.sets) == ["train", "val", "test"]
    assert [len(part) for part in data.sets.values()] == [36, 12, 12]
    assert (data.in_features, data.num_classes, data.num_values) == ({"a": 3, "b": 2}, 3, 1)
    assert data.class_names == ["0", "1", "2"]
    for part in data.sets.values():
        rows = [int(i) for i in part.ids]
        np.testing.assert_array_equal(part.features["b"].numpy(), b[rows].astype(np.float32))
        assert part.present.tolist() == [[True, i != 7] for i in rows]
        assert part.score is not None
        assert part.score.isnan().tolist() == [i == 3 for i in rows]
        assert torch.bincount(part.label).unique().numel() == 1  # stratified


def test_npz_folder_with_names(tmp_path: Path, rng: Rng) -> None:
    write_npz(tmp_path / "one.npz", rng)
    mood = np.array(["low", "high", "mid", ""] * 15)
    write_npz(tmp_path / "two.npz", rng, mood=mood, part=np.array([0, 1, 2, 3] * 15))
    values = {"train": [0, 3], "val": 1, "test_far": 2}
    options: dict[str, Any] = {"split": "two.npz:part", "split_values": values, "label": "two.npz:mood"}
    data = npz_data(tmp_path, modalities={"x": "one.npz:a", "y": "two.npz:b"}, **options)
    assert [len(part) for part in data.sets.values()] == [30, 15, 15]
    assert data.test_names == ["test_far"]
    assert data.class_names == ["high", "low", "mid"]
    assert sorted(set(data.sets["train"].label.tolist())) == [-1, 1]
    data = npz_data(tmp_path, modalities=["one.npz:a", "two.npz:b"], **options, classes=["low", "mid", "high"])
    assert list(data.in_features) == ["a", "b"]
    assert data.sets["val"].label.unique().tolist() == [2]


def test_npz_frames(tmp_path: Path, rng: Rng) -> None:
    a = rng.standard_normal((60, 4, 3))
    a[0, 2:] = 0
    a[1] = 0
    path = write_npz(tmp_path / "set.npz", rng, a=a, split=np.array(["train", "val", "test"] * 20))
    data = npz_data(path, split="split", frames="unaligned")
    assert data.sequences == ["a"]
    train, val = data.sets["train"], data.sets["val"]
    assert train.masks["a"][0].tolist() == [True, True, False, False]
    assert not val.present[0, 0]
    mean = npz_data(path, split="split", normalize="none").sets["train"]
    np.testing.assert_allclose(mean.features["a"][0].numpy(), a[0, :2].mean(0), rtol=1e-5)


def test_regression_only(tmp_path: Path, rng: Rng) -> None:
    data = npz_data(write_npz(tmp_path / "set.npz", rng), label=None, score="subject")
    assert (data.num_classes, data.num_values, data.class_names) == (0, 1, [])
    assert data.sets["train"].label.unique().tolist() == [-1]


# --- real sets


def test_wesad(mmrobust_data: Path) -> None:
    tests: list[int] = []
    for fold in range(5):
        data = npz_data(
            mmrobust_data / "wesad_chest" / "wesad_chest.npz",
            modalities=["acc", "emg", "resp", "temp"],
            group="subject",
            normalize="group",
            fold=fold,
        )
        assert data.in_features == {"acc": 12, "emg": 12, "resp": 6, "temp": 5}
        homes = {name: set(part.group.tolist()) for name, part in data.sets.items()}  # type: ignore[union-attr]
        assert {name: len(home) for name, home in homes.items()} == {"train": 9, "val": 3, "test": 3}
        assert sum(len(part) for part in data.sets.values()) == 6098
        assert all(part.present.all() for part in data.sets.values())
        tests += homes["test"]
    assert sorted(tests) == list(range(15))


def test_mosi(mmrobust_data: Path) -> None:
    data = npz_data(
        mmrobust_data / "mosi",
        modalities={"audio": "mosi_features.npz:audio", "text_minilm": "mosi_text_minilm.npz:text_minilm"},
        label="mosi_features.npz:label",
        score="mosi_features.npz:score",
        split="mosi_features.npz:split_standard",
        split_values={"train": 0, "val": 1, "test": 2},
    )
    assert {name: len(part) for name, part in data.sets.items()} == {"train": 1284, "val": 229, "test": 686}
    assert data.in_features == {"audio": 73, "text_minilm": 384}
    assert (data.num_classes, data.num_values) == (2, 1)
    for part in data.sets.values():
        assert part.score is not None
        assert torch.equal(part.label, (part.score >= 0).long())


def test_mfeat(mmrobust_data: Path) -> None:
    views = ["fou", "fac", "kar", "pix", "zer", "mor"]
    data = npz_data(mmrobust_data / "mfeat" / "mfeat.npz", modalities=views, fold_array="fold", fold=4)
    assert {name: len(part) for name, part in data.sets.items()} == {"train": 1200, "val": 400, "test": 400}
    assert list(data.in_features) == views
    with np.load(mmrobust_data / "mfeat" / "mfeat.npz", allow_pickle=False) as file:
        assert data.sets["test"].ids == [str(i) for i in np.flatnonzero(file["fold"] == 4)]
