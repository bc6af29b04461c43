"""Several files of one data set, tables of other data, and what makes `ablate` run again."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from examples.omics.ablate import data_files, jobs_of
from examples.omics.cli import OmicsCLI
from examples.omics.data import OmicsData
from examples.omics.readers import read_samples
from examples.pipeline.errors import DataError
from examples.pipeline.jobs import data_fingerprint, fingerprint
from tests.examples.test_omics_readers import CSV, ROWS, make_arrays, write_csv, write_npz

ONE: dict[str, Any] = {"branches": {"genes": "one.csv"}, "label": "one.csv:type"}


def write_one(folder: Path, name: str = "one.csv", **more: list[str]) -> Path:
    """Write a single table with features, labels and a split in words."""
    folder.mkdir(exist_ok=True)
    arrays = make_arrays()
    ids = pd.Index([f"s{row}" for row in range(ROWS)], name="sample")
    table = pd.DataFrame(arrays["genes"], index=ids, columns=list(arrays["genes_names"]))
    facts = {"type": [f"type {code}" for code in arrays["label"]], "part": ["train"] * 40 + ["test"] * 20}
    table.assign(**facts, **more).to_csv(folder / name)
    return folder / name


class TestOtherTable:
    @pytest.mark.parametrize(
        "options", [{"split": "part"}, {"split": "one.csv:part"}, {"split": "part", "label": "type"}]
    )
    def test_may_have_the_columns_of_the_first(self, options: dict[str, Any], tmp_path: Path) -> None:
        data = OmicsData(str(write_one(tmp_path)), **{**ONE, **options})
        assert data.in_features == {"genes": 12}
        rows = data.sets["test"]
        for path in (tmp_path / "one.csv", write_one(tmp_path, "other.csv"), write_one(tmp_path / "else", "one.csv")):
            found = data.read_other(str(path))
            assert found.count == ROWS
            assert torch.equal(found.features["genes"][40:], rows.features["genes"])

    def test_has_labels_of_its_own(self, tmp_path: Path) -> None:
        data = OmicsData(str(write_one(tmp_path)), **ONE, split="part")
        other = write_one(tmp_path, "other.csv")
        table = pd.read_csv(other)
        table.assign(type=table["type"].to_numpy()[::-1]).to_csv(other, index=False)
        labels = data.read_other(str(other)).label
        assert torch.equal(labels, data.read_other(str(tmp_path / "one.csv")).label.flip(0))

    def test_may_have_columns_that_nobody_asked_for(self, tmp_path: Path) -> None:
        data = OmicsData(str(write_one(tmp_path)), **ONE, split="part")
        other = write_one(tmp_path, "other.csv", comment=["seen twice"] * ROWS)
        assert data.read_other(str(other)).features["genes"].shape == (ROWS, 12)
        with pytest.raises(DataError, match="column 'comment': expected a number, got 'seen twice'"):
            OmicsData(str(other), **{**ONE, "branches": {"genes": "."}, "label": "type"}, split="part").setup()

    def test_says_how_to_name_its_only_branch(self, tmp_path: Path) -> None:
        path = write_one(tmp_path, "other.csv")
        with pytest.raises(
            DataError, match=r"other.csv: expected other.csv alone, or '.' where it is the root: .* got"
        ):
            read_samples(path, {"genes": "one.csv"}, label="type")

    def test_reads_what_both_branches_of_a_place_need(self, tmp_path: Path) -> None:
        branches = {"narrow": ".", "wide": "one.csv"}
        more = {"select": {"narrow": "variance"}, "features": {"narrow": 3}, "split": "part", "label": "type"}
        data = OmicsData(str(write_one(tmp_path)), branches, **more)
        found = data.read_other(str(tmp_path / "one.csv"))
        assert {name: x.shape[1] for name, x in found.features.items()} == {"narrow": 3, "wide": 12}


class TestColumns:
    def test_of_a_file_are_features_of_others(self, tmp_path: Path) -> None:
        write_csv(tmp_path)
        table = pd.read_csv(tmp_path / "genes.csv").rename(columns={"g3": "type"})
        table.to_csv(tmp_path / "genes.csv", index=False)
        with pytest.raises(DataError, match=r"genes.csv: column 'type': is a feature here and a column there, of data"):
            read_samples(tmp_path, CSV, label="labels.csv:type")
        (tmp_path / "genes.csv").rename(tmp_path / "labels2.csv")
        found = read_samples(tmp_path, {"genes": "labels2.csv"}, label="labels2.csv:type")
        assert "type" not in found.names["genes"]

    def test_without_a_file_are_features_nowhere(self, tmp_path: Path) -> None:
        write_csv(tmp_path)
        for name in CSV.values():
            pd.read_csv(tmp_path / name).assign(type=1.0).to_csv(tmp_path / name, index=False)
        found = read_samples(tmp_path, CSV, label="type")
        assert [len(names) for names in found.names.values()] == [12, 6]


class TestFingerprint:
    @staticmethod
    def make_cli(root: Path, **options: Any) -> OmicsCLI:
        words = [word for name, value in options.items() for word in (f"--data.{name}", str(value))]
        return OmicsCLI(["--data.root", str(root), *words], build=False)

    def test_sees_labels_beside_the_root(self, tmp_path: Path) -> None:
        write_csv(tmp_path)
        cli = self.make_cli(tmp_path / "genes.csv", branches="{genes: .}", label="labels.csv:type")
        assert data_files(cli) == [tmp_path / "genes.csv", tmp_path / "labels.csv"]
        given = argparse.Namespace(seeds=1, folds=[0], by_seed=False, keep=False, out=tmp_path / "out")
        before = jobs_of("plain", cli, given)[0].fingerprint
        assert before == jobs_of("plain", cli, given)[0].fingerprint
        text = (tmp_path / "labels.csv").read_text()
        (tmp_path / "labels.csv").write_text(text.replace("s0,type 0", "s0,type 1"))
        assert before != jobs_of("plain", cli, given)[0].fingerprint

    def test_sees_files_below_a_folder(self, tmp_path: Path) -> None:
        write_csv(tmp_path / "x" / "below")
        branches = "{genes: below/genes.csv, proteins: below/proteins.csv}"
        cli = self.make_cli(tmp_path / "x", branches=branches, label="below/labels.csv:type", split="part")
        assert [path.name for path in data_files(cli)] == ["genes.csv", "labels.csv", "proteins.csv"]
        before = fingerprint(cli, files=data_files(cli))
        table = pd.read_csv(tmp_path / "x" / "below" / "labels.csv", dtype=str)
        table.assign(type=table["type"].to_numpy()[::-1]).to_csv(tmp_path / "x" / "below" / "labels.csv", index=False)
        assert before != fingerprint(cli, files=data_files(cli))

    def test_of_a_single_file_is_that_of_finished_runs(self, tmp_path: Path) -> None:
        (tmp_path / "x.npz").write_bytes(b"content")
        known = "d3d65da02021b1aa"
        assert data_fingerprint(str(tmp_path / "x.npz")).startswith(known)
        assert data_fingerprint(str(tmp_path / "x.npz"), [tmp_path / "x.npz"]).startswith(known)
        shutil.copy(tmp_path / "x.npz", tmp_path / "y.npz")
        assert data_fingerprint(str(tmp_path / "x.npz")).startswith(known), "others beside it are not of it"
        cli = self.make_cli(write_npz(tmp_path / "x.npz"), branches="{genes: genes, proteins: proteins}", label="label")
        assert fingerprint(cli) == fingerprint(cli, files=data_files(cli))
