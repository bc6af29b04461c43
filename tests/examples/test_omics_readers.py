"""What the readers make of `.npz`, `.csv` and `.h5ad`, and what they say of files that cannot be used.

The other tests of this pipeline write their small data sets with the functions here.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from examples.omics.readers import read_samples
from examples.omics.sources import shorten
from examples.pipeline.errors import DataError

BRANCHES = {"genes": "genes", "proteins": "proteins"}
ROWS, CLASSES = 60, 3


def make_arrays(rows: int = ROWS, classes: int = CLASSES, seed: int = 0) -> dict[str, np.ndarray]:
    """Make two branches of 12 and 6 features, of which the first few tell the class, with folds and a split."""
    rng = np.random.default_rng(seed)
    label = np.arange(rows) % classes
    arrays = {"label": label.astype(np.int8), "fold": (np.arange(rows) // classes % 5).astype(np.int8)}
    for name, width in (("genes", 12), ("proteins", 6)):
        values = rng.normal(size=(rows, width))
        values[np.arange(rows), label] += 3.0
        arrays[name] = values.astype(np.float32)
        arrays[f"{name}_names"] = np.array([f"{name[0]}{index}" for index in range(width)])
    arrays["split"] = (np.arange(rows) >= rows * 3 // 4).astype(np.int8)
    return arrays


def write_npz(path: Path, **changed: np.ndarray | None) -> Path:
    """Write the arrays, some of them changed or left out."""
    arrays = {**make_arrays(), **changed}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def write_csv(folder: Path, arrays: dict[str, np.ndarray] | None = None) -> Path:
    """Write one table per branch, the second without sample s3 and in another order, and a table of labels."""
    arrays = make_arrays() if arrays is None else arrays
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"s{row}" for row in range(len(arrays["label"]))]
    for name in BRANCHES:
        table = pd.DataFrame(arrays[name], index=pd.Index(ids, name="sample"), columns=list(arrays[f"{name}_names"]))
        table = table.drop(index="s3").iloc[::-1] if name == "proteins" else table
        table.to_csv(folder / f"{name}.csv")
    facts = {"type": [f"type {code}" for code in arrays["label"]], "fold": arrays["fold"]}
    pd.DataFrame(facts, index=pd.Index(ids, name="sample")).to_csv(folder / "labels.csv")
    return folder


CSV = {"genes": "genes.csv", "proteins": "proteins.csv"}


class TestNpz:
    def test_reads_branches_names_and_columns(self, tmp_path: Path) -> None:
        found = read_samples(write_npz(tmp_path / "x.npz"), BRANCHES, label="label", split="split", fold_array="fold")
        arrays = make_arrays()
        assert found.ids[:3] == ["0", "1", "2"]
        assert found.names["proteins"] == [f"p{index}" for index in range(6)]
        np.testing.assert_array_equal(found.values["genes"], arrays["genes"])
        assert found.present.all()
        assert found.label.tolist() == [str(code) for code in arrays["label"]]
        np.testing.assert_array_equal(found.fold, arrays["fold"])
        assert set(found.split) == {"0", "1"}

    def test_two_branches_may_have_one_source_and_names_are_optional(self, tmp_path: Path) -> None:
        path = write_npz(tmp_path / "x.npz", genes_names=None)
        found = read_samples(path, {"wide": "genes", "narrow": "genes"}, label="label")
        assert found.values["wide"] is found.values["narrow"]
        assert found.names["wide"][:2] == ["genes_0", "genes_1"]

    def test_reads_half_precision_as_float32(self, tmp_path: Path) -> None:
        path = write_npz(tmp_path / "x.npz", genes=make_arrays()["genes"].astype(np.float16))
        assert read_samples(path, BRANCHES).values["genes"].dtype == np.float32

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"genes": None}, "no array 'genes'; expected one of label"),
            ({"genes": np.zeros(5)}, r"array 'genes': expected shape \(N, D\), got \(5,\)"),
            ({"genes": np.array([["a", "b"]])}, "array 'genes': expected numbers, got dtype <U1"),
            ({"genes_names": np.array(["a"])}, "array 'genes_names': expected 12 names as 'genes' has features, got 1"),
            ({"genes_names": np.array(["a"] * 12)}, "expected every feature name once, got twice or more: a"),
            ({"label": np.zeros((2, 2))}, r"array 'label': expected shape \(N,\)"),
        ],
    )
    def test_says_what_is_wrong_with_an_array(
        self, changed: dict[str, np.ndarray | None], message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(DataError, match=message):
            read_samples(write_npz(tmp_path / "x.npz", **changed), BRANCHES, label="label")

    def test_names_duplicate_ids(self, tmp_path: Path) -> None:
        ids = np.array([f"s{row}" for row in range(ROWS)])
        ids[5] = "s4"
        path = write_npz(tmp_path / "x.npz", ids=ids)
        with pytest.raises(DataError, match="expected every sample id once, got twice or more: s4"):
            read_samples(path, BRANCHES, label="label", ids="ids")

    def test_never_unpickles(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", genes=np.array([{}], dtype=object))
        with pytest.raises(DataError, match="pickled objects, which are never read"):
            read_samples(tmp_path / "x.npz", {"genes": "genes"})

    @pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04half"])
    def test_says_that_a_file_is_damaged(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"x.npz: expected an .npz file"):
            read_samples(tmp_path / "x.npz", BRANCHES)

    def test_names_what_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nowhere.npz: no such file or folder"):
            read_samples(tmp_path / "nowhere.npz", BRANCHES)
        (tmp_path / "x.txt").write_text("x")
        with pytest.raises(DataError, match=r"expected a name that ends in .npz, .csv, .csv.gz, .h5ad"):
            read_samples(tmp_path / "x.txt", BRANCHES)


class TestCsv:
    def test_matches_samples_by_id(self, tmp_path: Path) -> None:
        found = read_samples(write_csv(tmp_path), CSV, label="labels.csv:type", fold_array="labels.csv:fold")
        arrays, others = make_arrays(), np.arange(ROWS) != 3
        assert found.ids[3] == "s3"
        np.testing.assert_array_equal(found.present[:, 1], others)
        assert np.isnan(found.values["proteins"][3]).all()
        np.testing.assert_allclose(found.values["proteins"][others], arrays["proteins"][others], rtol=1e-6)
        assert found.label[4] == "type 1"

    def test_finds_the_labels_in_a_column_of_a_branch(self, tmp_path: Path) -> None:
        write_csv(tmp_path)
        table = pd.read_csv(tmp_path / "genes.csv").assign(type=[f"t{row % 3}" for row in range(ROWS)])
        table.to_csv(tmp_path / "genes.csv", index=False)
        found = read_samples(tmp_path, CSV, label="type")
        assert "type" not in found.names["genes"]
        assert found.label[5] == "t2"
        alone = read_samples(tmp_path / "genes.csv", {"genes": "genes.csv"}, label="type")
        assert alone.values["genes"].shape == (ROWS, 12)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("sample,a,b\ns0,1,2\ns0,3,4\ns1,5,6\n", "genes.csv: expected every sample id once, got twice or more: s0"),
            ("sample,a,a\ns0,1,2\n", "genes.csv: header: expected every column once, got twice or more: a"),
            ("sample,a,b\ns0,1,2\ns1,3,four\n", r"line 3 \('s1'\), column 'b': expected a number, got 'four'"),
            ("sample,a,b\ns0,1,2\n,3,4\n", "line 3: expected a sample id, got nothing"),
            ("a,b,c\ns0,1,2,3\ns1,4,5,6\n", "line 2: expected 3 fields as in the header, got 4; does the header lack"),
            ("sample,a\ns0,1,2,3\ns1,4,5,6\n", "line 2: expected 2 fields as in the header, got 4"),
            ("sample,a\ns0,1,\ns1,4,\n", "line 2: expected 2 fields as in the header, got 3"),
            ("sample,a\ns0,1\nNA,4\n", "line 3: expected a sample id, got nothing, or a text such as NA"),
            ("sample\ns0\n", "expected a column of sample ids, others, and rows"),
            ("", "expected a header and rows, the file is empty"),
            ("sample,a\n", "expected a column of sample ids, others, and rows"),
            ('sample,a\ns0,1\ns1,"2,3\n', "expected a CSV file in UTF-8"),
        ],
    )
    def test_says_what_is_wrong_with_a_table(self, content: str, message: str, tmp_path: Path) -> None:
        write_csv(tmp_path)
        (tmp_path / "genes.csv").write_text(content)
        with pytest.raises(DataError, match=message):
            read_samples(tmp_path, CSV, label="labels.csv:type")

    def test_is_no_utf8(self, tmp_path: Path) -> None:
        write_csv(tmp_path)
        (tmp_path / "genes.csv").write_bytes(b"sample,a\ns0,\xff\n")
        with pytest.raises(DataError, match=r"genes.csv: expected a CSV file in UTF-8"):
            read_samples(tmp_path, CSV)

    def test_names_samples_without_a_label(self, tmp_path: Path) -> None:
        write_csv(tmp_path)
        pd.read_csv(tmp_path / "labels.csv").iloc[2:].to_csv(tmp_path / "labels.csv", index=False)
        with pytest.raises(DataError, match=r"labels.csv: type: expected a value for every sample, none for s0, s1$"):
            read_samples(tmp_path, CSV, label="labels.csv:type")

    def test_does_not_take_a_missing_label_for_a_class(self, tmp_path: Path) -> None:
        write_csv(tmp_path)
        text = (tmp_path / "labels.csv").read_text().replace("s1,type 1", "s1,NA")
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(DataError, match=r"none for s1; an empty text, NA, nan and the like are none$"):
            read_samples(tmp_path, CSV, label="labels.csv:type")

    def test_names_a_column_that_is_not_there(self, tmp_path: Path) -> None:
        write_csv(tmp_path)
        with pytest.raises(DataError, match=r"labels.csv: no column 'kind'; expected one of type, fold"):
            read_samples(tmp_path, CSV, label="labels.csv:kind")
        with pytest.raises(DataError, match=r"no column 'kind' in genes.csv, proteins.csv; for another file give"):
            read_samples(tmp_path, CSV, label="kind")

    def test_wants_whole_numbers_as_folds(self, tmp_path: Path) -> None:
        write_csv(tmp_path)
        table = pd.read_csv(tmp_path / "labels.csv").assign(fold="first")
        table.to_csv(tmp_path / "labels.csv", index=False)
        with pytest.raises(DataError, match="sample 's0': expected a fold number, got 'first'"):
            read_samples(tmp_path, CSV, fold_array="labels.csv:fold")


class TestAnnData:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anndata lags behind pandas
            return self._write(tmp_path)

    def _write(self, tmp_path: Path) -> Path:
        anndata = pytest.importorskip("anndata", reason="reading .h5ad needs anndata")
        sparse = pytest.importorskip("scipy.sparse")
        if hasattr(anndata.settings, "allow_write_nullable_strings"):  # the strings of pandas 3
            anndata.settings.allow_write_nullable_strings = True
        arrays = make_arrays()
        obs = pd.DataFrame({"type": [f"t{code}" for code in arrays["label"]]}, index=[f"c{row}" for row in range(ROWS)])
        names = pd.DataFrame(index=list(arrays["genes_names"]))
        data = anndata.AnnData(sparse.csr_matrix(arrays["genes"]), obs=obs, var=names)
        data.obsm["proteins"] = arrays["proteins"]
        data.layers["raw"] = arrays["genes"] * 2
        data.write_h5ad(tmp_path / "x.h5ad")
        return tmp_path / "x.h5ad"

    def test_reads_sparse_features_and_obs(self, path: Path) -> None:
        found = read_samples(path, {"genes": "X", "proteins": "obsm/proteins", "raw": "layers/raw"}, label="type")
        arrays = make_arrays()
        np.testing.assert_array_equal(found.values["genes"], arrays["genes"])
        np.testing.assert_array_equal(found.values["raw"], arrays["genes"] * 2)
        assert found.names["genes"][0] == "g0"
        assert found.names["proteins"][0] == "proteins_0"
        assert (found.ids[1], found.label[1]) == ("c1", "t1")

    def test_names_what_is_not_there(self, path: Path) -> None:
        with pytest.raises(DataError, match="no features 'obsm/rna'; expected one of X, layers/raw, obsm/proteins"):
            read_samples(path, {"rna": "obsm/rna"})
        with pytest.raises(DataError, match="no obs column 'kind'; expected one of type"):
            read_samples(path, {"genes": "X"}, label="kind")

    def test_says_that_a_file_is_damaged(self, path: Path) -> None:
        path.write_bytes(b"nothing of the kind")
        with pytest.raises(DataError, match=r"x.h5ad: expected an .h5ad file"):
            read_samples(path, {"genes": "X"})


def test_wants_a_branch(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.branches: expected at least one branch"):
        read_samples(write_npz(tmp_path / "x.npz"), {})


def test_shortens_lists() -> None:
    assert shorten(["a", "b"]) == "a, b"
    assert shorten(list("abcdefgh")) == "a, b, c, d, e and 3 more"
