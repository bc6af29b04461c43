"""The made-up set: layout, dimensions, shares, determinism, difficulty, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import f1_score

from examples.mer import synthesize as module
from examples.mer.data import MultimodalData, MultimodalSet
from examples.mer.synthesize import PRIOR, draw_codes, feature_names, make_world, synthesize
from examples.pipeline.errors import DataError

DIMENSIONS = {"audio": 1024, "text": 5120, "video": 768}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(tmp_path_factory.mktemp("made") / "set", scale=0.15, seed=0)


@pytest.fixture(scope="module")
def data(made: Path) -> MultimodalData:
    data = MultimodalData(str(made), feature_names())
    data.setup()
    return data


def test_layout_and_dimensions(made: Path, data: MultimodalData) -> None:
    assert sorted(path.name for path in (made / "features").iterdir()) == [
        "Baichuan-13B-Base-UTT",
        "chinese-hubert-large-UTT",
        "clip-vit-large-patch14-UTT",
    ]
    assert (made / "labels.csv").read_text().startswith("name,split,emotion,valence\n")
    assert data.in_features == DIMENSIONS
    assert data.test_names == ["test1", "test2", "test3"]
    sizes = {name: len(part) for name, part in data.sets.items()}
    assert sizes == {"train": 404, "val": 102, "test1": 62, "test2": 62, "test3": 125}
    assert len(list((made / "features" / "Baichuan-13B-Base-UTT").iterdir())) == sum(sizes.values())
    sample = np.load(next((made / "features" / "Baichuan-13B-Base-UTT").iterdir()))
    assert (sample.dtype, sample.shape) == (np.float32, (5120,))


def test_class_shares(data: MultimodalData) -> None:
    def shares(*names: str) -> np.ndarray:
        label = torch.cat([data.sets[name].label for name in names])
        return torch.bincount(label, minlength=6).numpy() / len(label)

    np.testing.assert_allclose(shares("train", "val"), PRIOR, atol=0.01)
    np.testing.assert_allclose(shares("test1"), PRIOR, atol=0.1)
    assert shares("test3")[3] == pytest.approx(0.31, abs=0.02)


def test_valence(data: MultimodalData) -> None:
    train = data.sets["train"]
    assert train.score is not None
    assert train.score.mean() == pytest.approx(-0.69, abs=0.25)
    assert train.score.std() == pytest.approx(1.79, abs=0.2)
    assert train.score.abs().max() <= 5
    happy, angry = train.score[train.label == 2], train.score[train.label == 1]
    assert happy.mean() - angry.mean() > 3
    assert data.sets["test3"].score.isnan().all()  # type: ignore[union-attr]


def test_natural_missingness(data: MultimodalData) -> None:
    present = torch.cat([part.present for part in data.sets.values()])
    missing = 1 - present.float().mean(0)
    assert ((missing > 0) & (missing < 0.08)).all()
    assert present.any(1).all()


def linear_f1(data: MultimodalData, names: list[str], split: str = "test3") -> float:
    """Weighted F1 of ridge regression on the given modalities, fitted on train and val."""

    def matrix(part: MultimodalSet) -> np.ndarray:
        return torch.cat([part.features[name] for name in names], 1).numpy()

    train = [data.sets["train"], data.sets["val"]]
    x, y = np.concatenate([matrix(part) for part in train]), np.concatenate([part.label for part in train])
    model = RidgeClassifier(alpha=3000.0).fit(x, y)
    return float(f1_score(data.sets[split].label, model.predict(matrix(data.sets[split])), average="weighted"))


def test_hard_but_learnable_and_every_modality_counts(data: MultimodalData) -> None:
    full = linear_f1(data, list(DIMENSIONS))
    single = {name: linear_f1(data, [name]) for name in DIMENSIONS}
    assert 0.5 < full < 0.85
    assert all(0.3 < value < full - 0.05 for value in single.values()), (full, single)


def test_test2_is_noise_not_absence() -> None:
    world = make_world(0)
    label = np.repeat(np.arange(6), 200)
    clean, _, _ = draw_codes(np.random.default_rng(1), world, label, "test1")
    noisy, noisy_quality, _ = draw_codes(np.random.default_rng(1), world, label, "test2")
    np.testing.assert_array_equal(noisy["text"], clean["text"])
    difference = noisy["audio"] - clean["audio"]
    snr = 10 * np.log10(np.square(clean["audio"]).mean(1) / np.square(difference).mean(1))
    assert 7 < snr.mean() < 8.5
    assert np.all((snr > 2) & (snr < 14))  # 5 to 10 dB, but for the spread of 37 draws
    rate = np.round(clean["video"][:, :1] / noisy["video"][:, :1], 6) ** 2
    np.testing.assert_allclose(np.unique(np.round(rate, 4)), [1, 2, 4])
    assert np.mean(noisy_quality["audio"] > 0) > 0.95


def test_same_seed_same_files(made: Path, tmp_path: Path) -> None:
    again = synthesize(tmp_path / "again", scale=0.15, seed=0)
    for file in ["labels.csv", *(f"features/{feature}/sample_00000007.npy" for feature in feature_names().values())]:
        assert (again / file).read_bytes() == (made / file).read_bytes()
    small, other = synthesize(tmp_path / "small", scale=0.01), synthesize(tmp_path / "other", scale=0.01, seed=1)
    assert (small / "labels.csv").read_bytes() != (other / "labels.csv").read_bytes()


def test_frames(tmp_path: Path) -> None:
    made = synthesize(tmp_path / "set", scale=0.01, frames=True)
    data = MultimodalData(str(made), feature_names(frames=True), frames="aligned", align_to="text", folds=2)
    assert data.sequences == list(DIMENSIONS)
    assert data.in_features == DIMENSIONS
    test1 = data.sets["test1"]
    whole = test1.present.all(1)
    assert whole.any()
    lengths = {name: mask.sum(1)[whole].tolist() for name, mask in test1.masks.items()}
    assert lengths["audio"] == lengths["text"] == lengths["video"]
    assert len(set(lengths["text"])) > 1


def test_never_overwrites_unasked(tmp_path: Path) -> None:
    out = synthesize(tmp_path / "set", scale=0.01)
    before = (out / "labels.csv").read_bytes()
    with pytest.raises(DataError, match="set: is there already; expected a new folder, or overwrite"):
        synthesize(out, scale=0.01, seed=1)
    assert (out / "labels.csv").read_bytes() == before
    synthesize(out, scale=0.01, seed=1, overwrite=True)
    assert (out / "labels.csv").read_bytes() != before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("dear")
    with pytest.raises(DataError, match=r"expected a set made by synthesize \(with synthetic\.json\)"):
        synthesize(foreign, overwrite=True)
    assert (foreign / "thesis.txt").read_text() == "dear"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "set"]


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = synthesize(tmp_path / "set", scale=0.01)
    before = (out / "labels.csv").read_bytes()

    def fail(*args: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module.csv, "writer", fail)
    for target in (tmp_path / "new", out):
        with pytest.raises(OSError, match="disk full"):
            synthesize(target, scale=0.01, seed=1, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert (out / "labels.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "scale: expected 0.01 to 1, got 0.0"),
        ({"scale": 2.0}, "scale: expected 0.01 to 1"),
        ({"scale": float("nan")}, "scale: expected 0.01 to 1"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
    ],
)
def test_arguments(tmp_path: Path, options: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        synthesize(tmp_path / "set", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="expected its parent to be a folder"):
        synthesize(tmp_path / "file" / "set", scale=0.01)
