"""The one-time conversion of the published pickled labels."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.mer.convert import RestrictedUnpickler, convert
from examples.mer.labels import read_table
from examples.pipeline.errors import DataError

CORPORA: dict[str, dict[str, dict[str, Any]]] = {
    "train_corpus": {
        "sample_1": {"emo": "happy", "val": 2.25},
        "sample_0": {"emo": np.str_("sad"), "val": np.float64(-3.1)},
    },
    "test1_corpus": {"sample_2": {"emo": "neutral", "val": np.float32(0.5)}},
    "test3_corpus": {"sample_3": {"emo": "worried", "val": -10}},
}


def write_npz(path: Path, **corpora: Any) -> Path:
    arrays = {}
    for key, corpus in corpora.items():
        arrays[key] = np.empty((), dtype=object)
        arrays[key][()] = corpus
    np.savez_compressed(path, **arrays)
    return path


def write_pickle(path: Path, payload: bytes) -> Path:
    """Write a file whose object array holds the given pickle."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_corpus.npy", header.getvalue() + payload)
    return path


def test_round_trip(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "label-6way.npz", **CORPORA)
    out = convert(source)
    assert out == tmp_path / "labels.csv"
    table = read_table(out)
    assert table.column("name") == ["sample_1", "sample_0", "sample_2", "sample_3"]
    assert table.column("split") == ["train", "train", "test1", "test3"]
    assert table.column("emotion") == ["happy", "sad", "neutral", "worried"]
    assert table.column("valence") == ["2.25", "-3.1", "0.5", "-10"]


def test_refuses_to_overwrite(tmp_path: Path) -> None:
    source, out = write_npz(tmp_path / "labels.npz", **CORPORA), tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(DataError, match=r"out\.csv: is there already"):
        convert(source, out)
    assert out.read_text() == "mine"
    assert read_table(convert(source, out, overwrite=True)).column("name")[0] == "sample_1"


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
@pytest.mark.parametrize("protocol", [3, 4])
def test_reads_pickles_of_both_numpy_generations(tmp_path: Path, module: str, protocol: int) -> None:
    array = np.empty((), dtype=object)
    array[()] = {"a": {"emo": "angry", "val": np.float64(-1.5)}}
    payload = pickle.dumps(array, protocol=protocol)
    here = np.empty(0).__reduce__()[0].__module__  # type: ignore[union-attr]
    old, new = here.encode(), module.encode()
    if protocol == 4:  # names carry their length there
        old, new = bytes([len(old)]) + old, bytes([len(new)]) + new
        frame = payload.index(b"\x95")
        length = int.from_bytes(payload[frame + 1 : frame + 9], "little") + payload.count(old) * (len(new) - len(old))
        payload = payload[: frame + 1] + length.to_bytes(8, "little") + payload[frame + 9 :]
    assert old in payload
    source = write_pickle(tmp_path / "label-6way.npz", payload.replace(old, new))
    assert read_table(convert(source)).column("valence") == ["-1.5"]


def test_arrays_and_builtins_are_read() -> None:
    values = [np.arange(6.0).reshape(2, 3), np.array(["x"]), np.float16(2), {1, 2}, {"a": [b"b", 3j, (None, True)]}]
    for value in values:
        for protocol in (3, 4, 5):
            found = RestrictedUnpickler(io.BytesIO(pickle.dumps(value, protocol=protocol))).load()
            assert type(found) is type(value)
            assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value


class Call:
    """Pickles to a call of ``function(*arguments)``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def test_a_malicious_pickle_is_refused_by_name_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    attacks = {
        "posix.system": Call(os.system, f"touch {trace}"),
        "builtins.exec": Call(exec, f"open({str(trace)!r}, 'w')"),
        "builtins.eval": Call(eval, "1"),
        "builtins.getattr": Call(getattr, "", "upper"),
        "numpy.load": Call(np.load, str(trace)),
        "pathlib": Call(Path, "x"),
    }
    for name, attack in attacks.items():
        source = write_npz(tmp_path / "label-6way.npz", train_corpus={"a": attack})
        with pytest.raises(DataError, match=f"train_corpus: refused .*{name.split('.')[-1]}") as caught:
            convert(source)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["label-6way.npz"]


def test_dotted_names_do_not_get_around_the_list(tmp_path: Path) -> None:
    # Protocol 4 looks names up attribute by attribute: "dtype.__class__" would lead anywhere.
    for module, name in [("numpy", "ndarray.__class__"), ("builtins", "dict.__class__"), ("numpy", "f2py.os.system")]:
        payload = (
            pickle.PROTO
            + b"\x04"
            + b"".join(pickle.SHORT_BINUNICODE + bytes([len(part)]) + part.encode() for part in (module, name))
        )
        source = write_pickle(tmp_path / "label-6way.npz", payload + pickle.STACK_GLOBAL + pickle.STOP)
        with pytest.raises(DataError, match=f"refused {module}.{name}"):
            convert(source)


BAD_CORPORA: list[tuple[dict[str, Any], str]] = [
    ({"test1_corpus": CORPORA["test1_corpus"]}, "expected a key 'train_corpus', found test1_corpus"),
    ({**CORPORA, "extra": {}}, "extra: expected a key such as train_corpus"),
    ({"train_corpus": []}, "train_corpus: expected a dictionary"),
    ({"train_corpus": {}}, "train_corpus: expected a dictionary"),
    ({"train_corpus": {"a": "happy"}}, r"'a': expected \{emo, val\} under a name, got 'happy'"),
    ({"train_corpus": {"a": {"emo": "happy"}}}, r"'a': expected \{emo, val\}"),
    ({"train_corpus": {3: {"emo": "happy", "val": 0}}}, r"3: expected \{emo, val\}"),
    ({"train_corpus": {"a": {"emo": "calm", "val": 0}}}, "'a': expected emo to be one of neutral, .*, got 'calm'"),
    ({"train_corpus": {"a": {"emo": "happy", "val": "much"}}}, "'a': expected val to be a finite number, got 'much'"),
    ({"train_corpus": {"a": {"emo": "happy", "val": np.nan}}}, "'a': expected val to be a finite number"),
    ({**CORPORA, "test2_corpus": CORPORA["train_corpus"]}, "test2_corpus: expected every sample once, got 'sample_1'"),
]


@pytest.mark.parametrize(("corpora", "message"), BAD_CORPORA)
def test_bad_corpora(tmp_path: Path, corpora: dict[str, Any], message: str) -> None:
    source = write_npz(tmp_path / "label-6way.npz", **corpora)
    with pytest.raises(DataError, match=message):
        convert(source)
    assert [path.name for path in tmp_path.iterdir()] == ["label-6way.npz"]


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz: no such file; expected label-6way\.npz"):
        convert(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(DataError, match=r"text\.npz: expected a \.npz file"):
        convert(tmp_path / "text.npz")
    np.savez(tmp_path / "plain.npz", train_corpus=np.ones(3))
    with pytest.raises(DataError, match=r"train_corpus: expected a 0-d object array, got float64 of shape \(3,\)"):
        convert(tmp_path / "plain.npz")
    write_pickle(tmp_path / "cut.npz", pickle.dumps({"a": 1})[:-3])
    with pytest.raises(DataError, match="train_corpus: expected a readable object array"):
        convert(tmp_path / "cut.npz")
