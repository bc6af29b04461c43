"""Selection, scaling and splits of the omics pipeline: all fitted on training rows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples.omics.classical import table
from examples.omics.data import OmicsData
from examples.omics.features import Preparation, choose, measure
from examples.pipeline.errors import DataError
from tests.examples.test_omics_readers import BRANCHES, CSV, ROWS, make_arrays, write_csv, write_npz


def load(path: Path, **options: Any) -> OmicsData:
    return OmicsData(str(path), **{"branches": BRANCHES, "label": "label", "fold_array": "fold", **options})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_npz(tmp_path / "x.npz")


class TestPreparation:
    @pytest.mark.parametrize("scale", ["zscore", "minmax", "none"])
    def test_scales_by_the_training_rows(self, scale: str, path: Path) -> None:
        sets = load(path, scale=scale).sets
        train = sets["train"].features["genes"].numpy()
        if scale == "zscore":
            np.testing.assert_allclose(train.mean(0), 0, atol=1e-6)
            np.testing.assert_allclose(train.std(0), 1, rtol=1e-5)
        elif scale == "minmax":
            np.testing.assert_allclose([train.min(), train.max()], [0, 1], atol=1e-6)
        else:
            rows = [int(one) for one in sets["train"].ids]
            np.testing.assert_array_equal(train, make_arrays()["genes"][rows])

    @pytest.mark.parametrize("select", ["variance", "f_classif"])
    def test_never_looks_at_other_rows(self, select: str, path: Path, tmp_path: Path) -> None:
        options = {"select": select, "features": {"genes": 4, "proteins": 2}}
        before = load(path, **options)
        spoilt = make_arrays()
        held_out = np.isin(spoilt["fold"], [0, 1])
        for name in BRANCHES:
            spoilt[name][held_out] *= 1000.0
        after = load(write_npz(tmp_path / "y.npz", **spoilt), **options)
        assert after.in_features == {"genes": 4, "proteins": 2}
        for name, one in before.preparation.branches.items():
            other = after.preparation.branches[name]
            assert one.names == other.names
            np.testing.assert_array_equal(one.center, other.center)
            np.testing.assert_array_equal(one.spread, other.spread)

    def test_selects_what_tells_classes_apart(self, path: Path) -> None:
        found = load(path, select="f_classif", features=3).preparation
        assert found.branches["genes"].names == ["g0", "g1", "g2"]

    def test_selects_by_branch(self, path: Path) -> None:
        data = load(
            path,
            branches={"wide": "genes", "narrow": "genes"},
            select={"narrow": "variance"},
            features={"narrow": 5},
        )
        assert data.in_features == {"wide": 12, "narrow": 5}
        assert set(data.preparation.branches["narrow"].names) < set(data.preparation.branches["wide"].names)

    def test_leaves_constant_features_at_zero(self) -> None:
        one = measure(np.array([[1.0, 0.1], [2.0, 0.1], [4.0, 0.1]]), ["a", "b"], "zscore")
        found = one.apply("x", ["a", "b"], np.array([[1.0, 0.1]]))
        assert found[0, 1] == pytest.approx(0.0, abs=1e-6)
        kept = choose("k", np.array([[1.0, 3.0], [2.0, 3.0], [9.0, 3.0]]), np.array([0, 0, 1]), "f_classif", 1)
        assert kept.tolist() == [0]

    def test_picks_features_by_name(self, path: Path, tmp_path: Path) -> None:
        data, arrays = load(path, select="variance", features=4), make_arrays()
        order = np.random.default_rng(1).permutation(12)
        arrays |= {"genes": arrays["genes"][:, order], "genes_names": arrays["genes_names"][order]}
        found = data.read_other(str(write_npz(tmp_path / "y.npz", **arrays)))
        rows = [int(one) for one in data.sets["test"].ids]
        assert torch.equal(found.features["genes"][rows], data.sets["test"].features["genes"])

    def test_lists_the_first_missing_features(self, path: Path, tmp_path: Path) -> None:
        arrays = make_arrays()
        arrays |= {"genes": arrays["genes"][:, 7:], "genes_names": arrays["genes_names"][7:]}
        other = write_npz(tmp_path / "y.npz", **arrays)
        with pytest.raises(
            DataError, match="lacks 7 of the 12 features that were trained on: g0, g1, g2, g3, g4 and 2"
        ):
            load(path).read_other(str(other))

    def test_survives_a_checkpoint(self, path: Path, tmp_path: Path) -> None:
        one = load(path, classes=["x", "y", "z"]).preparation
        torch.save(one.state(), tmp_path / "state")
        other = Preparation.from_state(torch.load(tmp_path / "state", weights_only=True))
        assert (other.classes, other.labels, other.nan) == (["x", "y", "z"], ["0", "1", "2"], "error")
        np.testing.assert_array_equal(other.branches["genes"].spread, one.branches["genes"].spread)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"select": "variance"}, "data.features of 'genes': expected 1 to 12, .* got None"),
            ({"select": "variance", "features": 99}, "data.features of 'genes': expected 1 to 12, .* got 99"),
            ({"select": "best", "features": 2}, "data.select of 'genes': expected one of none, variance, f_classif"),
            ({"select": {"rna": "variance"}}, "data.select: names of branches: expected one of genes, proteins"),
            ({"scale": "robust"}, "data.scale: expected one of none, zscore, minmax, got 'robust'"),
            ({"nan": "zero"}, "data.nan: expected one of error, absent, mean, got 'zero'"),
            ({"batch_size": 0}, "data.batch_size: expected at least 1, got 0"),
            ({"split": "split"}, "expected split or fold_array, got both"),
            ({"classes": ["a", "b"]}, "data.classes: expected 3 names, for 0, 1, 2, got a, b"),
        ],
    )
    def test_names_a_wrong_option(self, options: dict[str, Any], message: str, path: Path) -> None:
        with pytest.raises(DataError, match=message):
            _ = load(path, **options).sets


class TestNan:
    @pytest.fixture
    def holes(self, tmp_path: Path) -> Path:
        genes = make_arrays()["genes"]
        genes[7, 2] = genes[30, 5] = np.nan
        genes[31] = np.nan
        return write_npz(tmp_path / "x.npz", genes=genes)

    def test_is_an_error_that_names_the_first(self, holes: Path) -> None:
        expected = r"genes: sample '7' \(row 7\), feature 'g2' \(column 2\): expected a number, got NaN \(14 values"
        with pytest.raises(DataError, match=expected):
            _ = load(holes).sets

    def test_makes_the_branch_absent(self, holes: Path) -> None:
        sets = load(holes, nan="absent").sets
        absent = {
            row for one in sets.values() for row, there in zip(one.ids, one.present[:, 0], strict=True) if not there
        }
        assert absent == {"7", "30", "31"}
        assert all(torch.isfinite(one.features["genes"]).all() for one in sets.values())

    def test_is_the_mean_of_the_training_rows(self, holes: Path) -> None:
        sets = load(holes, nan="mean").sets
        absent = {
            row for one in sets.values() for row, there in zip(one.ids, one.present[:, 0], strict=True) if not there
        }
        assert absent == {"31"}, "nothing is known of it"
        train = sets["train"]
        assert train.features["genes"][train.ids.index("7"), 2] == pytest.approx(0.0, abs=1e-6)

    def test_infinite_values_are_an_error(self, tmp_path: Path) -> None:
        genes = make_arrays()["genes"]
        genes[7, 2] = np.inf
        with pytest.raises(DataError, match="sample '7', feature 'g2': expected a finite number, got inf"):
            _ = load(write_npz(tmp_path / "x.npz", genes=genes), nan="absent").sets


class TestSplit:
    def test_by_fold_array(self, path: Path) -> None:
        sets, fold = load(path, fold=3).sets, make_arrays()["fold"]
        assert {name: set(fold[[int(one) for one in rows.ids]]) for name, rows in sets.items()} == {
            "train": {0, 1, 2},
            "val": {4},
            "test": {3},
        }

    def test_by_split_array_validates_on_training_rows_of_each_seed(self, path: Path) -> None:
        options = {"fold_array": None, "split": "split", "split_values": {"train": 0, "test": 1}}
        found = {seed: load(path, seed=seed, **options).sets for seed in (0, 1)}
        for sets in found.values():
            assert [int(one) for one in sets["test"].ids] == list(range(45, 60))
            assert sets["val"].label.bincount().tolist() == [3, 3, 3]
        assert found[0]["val"].ids != found[1]["val"].ids

    def test_draws_test_folds_that_never_overlap(self, path: Path) -> None:
        ids = [load(path, fold_array=None, fold=fold, seed=fold).sets["test"].ids for fold in range(5)]
        assert sorted(one for part in ids for one in part) == sorted(map(str, range(ROWS)))

    def test_wants_training_rows_of_every_class(self, tmp_path: Path) -> None:
        label = make_arrays()["label"].copy()
        label[label == 2] = 1
        label[0] = 2
        data = load(write_npz(tmp_path / "x.npz", label=label))
        with pytest.raises(DataError, match="label: expected training rows of every class, none of '2'"):
            _ = data.sets

    def test_wants_a_test_part(self, path: Path) -> None:
        with pytest.raises(DataError, match="split: expected rows of the part test, found the values 0, 1"):
            _ = load(path, fold_array=None, split="split", split_values={"train": 0, "val": 1}).sets

    def test_wants_rows_of_every_part_that_is_named(self, path: Path) -> None:
        values = {"train": 0, "val": 2, "test": 1}
        with pytest.raises(DataError, match=r"split: expected rows of the part val \(value 2\), found the values 0, 1"):
            _ = load(path, fold_array=None, split="split", split_values=values).sets

    def test_unused_rows_may_hold_anything(self, tmp_path: Path) -> None:
        arrays = make_arrays()
        arrays["split"][3:6], arrays["label"][3:6] = 7, 9
        arrays["genes"][3:6, 1], arrays["genes"][4, 2] = np.nan, np.inf
        path = write_npz(tmp_path / "x.npz", **arrays)
        options = {"fold_array": None, "split": "split", "split_values": {"train": 0, "test": 1}}
        data = load(path, **options)
        assert data.classes == ["0", "1", "2"]
        assert not {"3", "4", "5"} & {one for rows in data.sets.values() for one in rows.ids}
        again = load(path, **options)
        again.use(data.preparation, data.members())
        assert [rows.ids for rows in again.sets.values()] == [rows.ids for rows in data.sets.values()]

    def test_leaves_a_class_out(self, path: Path) -> None:
        data = load(path, leave_out="1")
        assert data.classes == ["0", "2"]
        assert [set(data.sets[name].label.tolist()) for name in ("train", "val", "test")] == [
            {0, 1},
            {0, 1},
            {-1, 0, 1},
        ]
        labels = make_arrays()["label"][[int(one) for one in data.sets["test"].ids]]
        assert ((labels == 1) == (data.sets["test"].label.numpy() == -1)).all()

    def test_leaves_no_class_of_two_out(self, tmp_path: Path) -> None:
        path = write_npz(tmp_path / "x.npz", label=np.arange(ROWS) // 3 % 2)
        with pytest.raises(DataError, match=r"data.leave_out: expected at least three classes, got 0, 1"):
            _ = load(path, leave_out="1").sets

    def test_names_an_unknown_class_to_leave_out(self, path: Path) -> None:
        with pytest.raises(DataError, match=r"data.leave_out: expected one of 0, 1, 2, got '7'"):
            _ = load(path, leave_out="7").sets


class TestOtherData:
    def test_unseen_labels_are_an_error_or_unknown(self, path: Path, tmp_path: Path) -> None:
        label = make_arrays()["label"].copy()
        label[4] = 9
        other = str(write_npz(tmp_path / "y.npz", label=label))
        data = load(path, classes=["x", "y", "z"])
        with pytest.raises(DataError, match="label: expected the classes 0, 1, 2, got 9; --unknown counts them"):
            data.read_other(other)
        assert data.read_other(other, count_unknown=True).label[3:6].tolist() == [0, -1, 2]

    def test_of_the_same_data_must_be_the_same(self, path: Path, tmp_path: Path) -> None:
        options = {"classes": ["x", "y", "z"]}
        other = write_npz(tmp_path / "y.npz", label=make_arrays()["label"] + 5)
        for members in (None, load(path, **options).members()):
            data = load(other, **options)
            data.use(load(path, **options).preparation, members)
            with pytest.raises(DataError, match=r"y.npz: expected data of the classes 0, 1, 2, got .*5, 6, 7"):
                _ = data.sets


class TestBaselines:
    def test_keep_the_features_that_another_branch_has_too(self, path: Path) -> None:
        options = {"select": {"narrow": "variance"}, "features": {"narrow": 5}}
        data = load(path, branches={"wide": "genes", "narrow": "genes", "proteins": "proteins"}, **options)
        rows = data.sets["test"]
        whole, without = table(data, rows), table(data, rows, without="wide")
        assert whole.shape == (rows.count, 18)
        wide, narrow = (data.preparation.branches[name].names for name in ("wide", "narrow"))
        kept = np.array([name in narrow for name in wide] + [True] * 6)
        np.testing.assert_array_equal(without[:, kept], whole[:, kept])
        assert not without[:, ~kept].any()
        np.testing.assert_array_equal(table(data, rows, without="narrow"), whole)


class TestBatches:
    def test_samples_without_a_branch_are_absent(self, tmp_path: Path) -> None:
        data = load(write_csv(tmp_path), branches=CSV, label="labels.csv:type", fold_array="labels.csv:fold")
        rows = next(one for one in data.sets.values() if "s3" in one.ids)
        place = rows.ids.index("s3")
        assert rows.present[place].tolist() == [True, False]
        assert not rows.features["proteins"][place].any()
        assert data.classes == ["type 0", "type 1", "type 2"]

    def test_balanced_batches_have_every_class(self, path: Path) -> None:
        batches = list(load(path, balanced=True, batch_size=12).train_dataloader())
        assert all(batch["label"].bincount().tolist() == [4, 4, 4] for batch in batches)

    def test_every_row_is_in_an_epoch_once(self, path: Path) -> None:
        data = load(path, batch_size=7)
        assert sum(len(batch["label"]) for batch in data.train_dataloader()) == data.sets["train"].count
