"""Checkpoints opened again: their rows stay in the part in which they were trained, chosen or tested on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from examples.omics.__main__ import main
from examples.omics.data import OmicsData
from examples.omics.parts import members_from_state, members_state
from examples.omics.trained import open_checkpoint
from examples.pipeline.errors import DataError
from tests.examples import failing
from tests.examples.test_omics_commands import DATA, TINY
from tests.examples.test_omics_readers import BRANCHES, CSV, ROWS, make_arrays, write_csv, write_npz

fails = partial(failing.fails, main)
DRAWN: dict[str, Any] = {"branches": BRANCHES, "label": "label", "fold_array": None}
LABEL = "label: labels.csv:type"
TABLES: dict[str, Any] = {"branches": CSV, "label": "labels.csv:type"}


def ids(data: OmicsData) -> dict[str, list[str]]:
    return {name: rows.ids for name, rows in data.sets.items()}


def again(one: OmicsData, path: Path, options: dict[str, Any]) -> OmicsData:
    """Read data with what a checkpoint of `one` holds."""
    found = OmicsData(str(path), **options)
    found.use(one.preparation, members_from_state(members_state(one.members())))
    return found


def shuffle(folder: Path, seed: int = 1) -> None:
    """Put the rows of the tables that `write_csv` wrote into another order."""
    for path in folder.glob("*.csv"):
        pd.read_csv(path).sample(frac=1, random_state=seed).to_csv(path, index=False)


def take(arrays: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: x if name.endswith("_names") else x[rows] for name, x in arrays.items()}


class TestMembers:
    @pytest.mark.parametrize("options", [TABLES, {**TABLES, "leave_out": "type 1"}])
    def test_stay_in_their_parts_when_rows_are_moved(self, options: dict[str, Any], tmp_path: Path) -> None:
        one = OmicsData(str(write_csv(tmp_path / "a")), **options)
        shuffle(write_csv(tmp_path / "b"))
        assert ids(OmicsData(str(tmp_path / "b"), **options)) != ids(one), "the folds are drawn by the order of rows"
        found = again(one, tmp_path / "b", options)
        assert ids(found) == ids(one)
        for name, rows in one.sets.items():
            assert torch.equal(found.sets[name].label, rows.label)
            assert torch.equal(found.sets[name].features["genes"], rows.features["genes"])

    def test_stay_in_their_parts_when_there_are_more_rows(self, tmp_path: Path) -> None:
        arrays = make_arrays(ROWS + 9)
        one = OmicsData(str(write_csv(tmp_path / "a", take(arrays, np.arange(ROWS)))), **TABLES)
        assert ids(again(one, write_csv(tmp_path / "b", arrays), TABLES)) == ids(one)

    def test_stay_in_their_parts_by_another_label(self, tmp_path: Path) -> None:
        one = OmicsData(str(write_csv(tmp_path)), **TABLES)
        table = pd.read_csv(tmp_path / "labels.csv")
        table.assign(other=table["type"].sample(frac=1, random_state=0).to_numpy()).to_csv(
            tmp_path / "labels.csv", index=False
        )
        options = {**TABLES, "label": "labels.csv:other"}
        assert ids(OmicsData(str(tmp_path), **options)) != ids(one)
        assert ids(again(one, tmp_path, options)) == ids(one)

    def test_of_a_class_that_is_in_no_part_may_be_gone(self, tmp_path: Path) -> None:
        arrays = make_arrays()
        arrays["fold"] = np.where(arrays["label"] == 1, 3, arrays["fold"])
        path, options = write_npz(tmp_path / "x.npz", **arrays), {**DRAWN, "fold_array": "fold", "leave_out": "1"}
        one = OmicsData(str(path), **options)
        assert one.sets["test"].label.min() == 0
        assert ids(again(one, path, options)) == ids(one)

    def test_that_are_gone_are_named(self, tmp_path: Path) -> None:
        one = OmicsData(str(write_csv(tmp_path)), **TABLES)
        gone = one.sets["val"].ids[:6]
        for path in tmp_path.glob("*.csv"):
            table = pd.read_csv(path)
            table[~table["sample"].isin(gone)].to_csv(path, index=False)
        expected = f"lacks 6 of the {one.sets['val'].count} samples of the part val: {', '.join(gone[:5])} and 1 more"
        with pytest.raises(DataError, match=expected):
            _ = again(one, tmp_path, TABLES).sets

    def test_without_names_must_hold_what_they_held(self, tmp_path: Path) -> None:
        path, arrays = write_npz(tmp_path / "x.npz"), make_arrays()
        one = OmicsData(str(path), **DRAWN)
        assert ids(again(one, path, DRAWN)) == ids(one)
        order = np.random.default_rng(1).permutation(ROWS)
        moved = write_npz(tmp_path / "y.npz", **take(arrays, order))
        with pytest.raises(DataError, match=r"y.npz: expected rows .* of the part train to hold what they held in"):
            _ = again(one, moved, DRAWN).sets

    def test_of_other_classes_are_an_error(self, tmp_path: Path) -> None:
        one = OmicsData(str(write_csv(tmp_path)), **TABLES)
        one.setup()
        table = pd.read_csv(tmp_path / "labels.csv")
        table.assign(type=table["type"].replace("type 2", "type 7")).to_csv(tmp_path / "labels.csv", index=False)
        with pytest.raises(DataError, match="classes type 0, type 1, type 2, got type 0, type 1, type 2, type 7"):
            _ = again(one, tmp_path, TABLES).sets
        with pytest.raises(DataError, match="expected data of the classes type 0, type 1, type 2, got x, y, z"):
            _ = again(one, tmp_path, {**TABLES, "classes": ["x", "y", "z"]}).sets


class TestCheckpoint:
    @pytest.fixture
    def best(self, tmp_path: Path) -> Path:
        (tmp_path / "toy.yaml").write_text(DATA.replace("  fold_array: fold\n", "").replace("label: label", LABEL))
        data = ["--config", str(tmp_path / "toy.yaml"), "--data.root", str(write_csv(tmp_path / "toy"))]
        run = ["--trainer.max_epochs", "1", "--trainer.default_root_dir", str(tmp_path / "run")]
        places = ["--data.branches", "{genes: genes.csv, proteins: proteins.csv}"]
        assert main(["fit", "--config", "asymmetric", *data, *places, *TINY, *run]) == 0
        return tmp_path / "run" / "best.ckpt"

    def test_never_tests_on_training_rows(self, best: Path, tmp_path: Path) -> None:
        shuffle(write_csv(tmp_path / "moved" / "toy"))
        for name, more in (("a", []), ("b", ["--data.root", str(tmp_path / "moved" / "toy")])):
            assert main(["evaluate", str(best), "--out", str(tmp_path / name), *more]) == 0
        rows = [pd.read_csv(tmp_path / name / "runs.csv").iloc[0] for name in "ab"]
        assert rows[0]["test.nll"] == pytest.approx(rows[1]["test.nll"], rel=1e-4)
        assert rows[0]["val.nll"] == pytest.approx(rows[1]["val.nll"], rel=1e-4)

    def test_that_holds_no_rows_opens_the_same_data_alone(
        self, best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        checkpoint = torch.load(best)
        members = checkpoint.pop("members")
        torch.save(checkpoint, best)
        trained = open_checkpoint(best, [], tmp_path / "configs")
        assert {name: list(one["ids"]) for name, one in members.items()} == ids(trained.data)
        write_csv(tmp_path / "moved" / "toy")
        for more in (["--data.root", str(tmp_path / "moved" / "toy")], ["--data.label", "labels.csv:fold"]):
            error = fails(capsys, "evaluate", str(best), "--out", str(tmp_path / "out"), *more)
            assert "does not hold which samples it was trained on" in error
            assert f"expected {more[0]} " in error
