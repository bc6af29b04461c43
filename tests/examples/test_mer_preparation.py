"""Frames, parts and standardisation of the emotion pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from examples.mer.data import MultimodalSet
from examples.mer.frames import assemble, pool
from examples.mer.normalize import Standardizer, describe_features
from examples.pipeline.folds import assign_parts, fold_numbers
from tests.examples.mer_sets import SIZES, Rng, layout_data, npz_data, write_layout, write_npz

# --- frames


def test_pool_equals_adaptive_average_pooling(rng: Rng) -> None:
    for steps, length in [(7, 3), (3, 7), (5, 5), (1, 4), (12, 1)]:
        x = rng.standard_normal((steps, 2))
        expected = F.adaptive_avg_pool1d(torch.from_numpy(x).T, length).T.numpy()
        pooled, real = pool(x, length)
        np.testing.assert_allclose(pooled, expected, atol=1e-6)
        assert real.all()


def test_pool_leaves_absent_frames_out() -> None:
    x = np.array([[2.0, 4.0], [0.0, 0.0], [4.0, 8.0], [0.0, 0.0], [0.0, 0.0]])
    pooled, real = pool(x, 1)
    assert pooled.tolist() == [[3.0, 6.0]]
    pooled, real = pool(x, 5)
    assert real.tolist() == [True, False, True, False, False]
    assert pooled.tolist() == x.tolist()


def test_aligned_frames_have_the_length_of_one_modality() -> None:
    samples = {
        "audio": [np.arange(1.0, 9.0)[:, None], np.ones((6, 1)), np.ones((4, 1)), None],
        "text": [np.ones((2, 1)), np.ones((5, 1)), None, None],
        "video": [np.ones((1, 1)), None, np.ones((9, 1)), None],
    }
    features, masks, present = assemble(samples, "aligned", "text")
    assert {name: mask.sum(1).tolist() for name, mask in masks.items()} == {
        "audio": [2, 5, 4, 0],  # the third has no text: the shortest of what it has
        "text": [2, 5, 0, 0],
        "video": [2, 0, 4, 0],
    }
    assert features["audio"][0, :2, 0].tolist() == [2.5, 6.5]
    assert present.tolist() == [[True, True, True], [True, True, False], [True, False, True], [False] * 3]
    for name, mask in masks.items():
        assert (features[name][~mask] == 0).all()


def test_unaligned_frames_keep_their_lengths() -> None:
    samples = {"a": [np.ones((3, 2)), np.ones((1, 2)), None], "b": [np.ones(4), None, np.ones(4)]}
    features, masks, present = assemble(samples, "unaligned")
    assert features["a"].shape == (3, 3, 2)
    assert masks["a"].tolist() == [[True, True, True], [True, False, False], [False, False, False]]
    assert features["b"].shape == (3, 4)  # vectors stay vectors
    assert "b" not in masks
    assert present.tolist() == [[True, True], [True, False], [False, True]]
    short, masks, _ = assemble(samples, "unaligned", max_frames=2)
    assert short["a"].shape == (3, 2, 2)
    assert masks["a"].sum(1).tolist() == [2, 1, 0]


# --- parts


def test_folds_partition_and_stratify() -> None:
    label = np.repeat([0, 1, 2], [50, 30, 20])
    seen = []
    for fold in range(5):
        parts = assign_parts(label, folds=5, fold=fold, seed=3)
        assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(100))
        assert [np.bincount(label[rows]).tolist() for rows in parts.values()] == [[30, 18, 12], [10, 6, 4], [10, 6, 4]]
        following = assign_parts(label, folds=5, fold=(fold + 1) % 5, seed=3)
        np.testing.assert_array_equal(parts["val"], following["test"])
        seen.append(parts["test"])
    assert sorted(np.concatenate(seen).tolist()) == list(range(100))
    same, other = fold_numbers(label, None, 5, 3), fold_numbers(label, None, 5, 4)
    np.testing.assert_array_equal(same, fold_numbers(label, None, 5, 3))
    assert (same != other).any()


def test_groups_are_never_shared() -> None:
    group = np.repeat(np.arange(12), 7)
    label = np.tile([0, 0, 0, 1, 1, 2, 2], 12)
    for fold in range(4):
        parts = assign_parts(label, group=group, folds=4, fold=fold)
        homes = [set(group[rows].tolist()) for rows in parts.values()]
        assert [len(home) for home in homes] == [6, 3, 3]
        assert len(set.union(*homes)) == 12


def test_rare_classes_do_not_stop_the_folds() -> None:
    number = fold_numbers(np.array([0] * 20 + [1] * 2), None, 5, 0)
    assert np.bincount(number).max() - np.bincount(number).min() <= 1
    assert sorted(set(fold_numbers(np.arange(10), None, 5, 0).tolist())) == list(range(5))


def test_fold_array(tmp_path: Path, rng: Rng) -> None:
    path = write_npz(tmp_path / "set.npz", rng, fold=np.arange(60) % 4)
    data = npz_data(path, fold_array="fold", folds=4, fold=3)
    assert data.sets["test"].ids == [str(i) for i in range(3, 60, 4)]
    assert data.sets["val"].ids == [str(i) for i in range(0, 60, 4)]


def test_max_rows(tmp_path: Path, rng: Rng) -> None:
    path = write_npz(tmp_path / "set.npz", rng)
    full, small = npz_data(path), npz_data(path, max_rows=10)
    for name, part in small.sets.items():
        assert len(part) == 10
        assert set(part.ids) < set(full.sets[name].ids)


# --- standardisation


def test_standardised_by_present_training_rows(tmp_path: Path, rng: Rng) -> None:
    a = (1e4 + 7 * rng.standard_normal((60, 3))).astype(np.float32)
    a[:, 1] = 0.1  # constant
    a[::4] = 0  # absent
    path = write_npz(tmp_path / "set.npz", rng, a=a)
    data = npz_data(path)
    rows = np.array([int(i) for i in data.sets["train"].ids])
    rows = rows[rows % 4 != 0]
    mean, std = a[rows].astype(np.float64).mean(0), a[rows].astype(np.float64).std(0)
    std[1] = 1
    for part in data.sets.values():
        index = np.array([int(i) for i in part.ids])
        expected = np.where((index % 4 != 0)[:, None], (a[index] - mean) / std, 0)
        np.testing.assert_allclose(part.features["a"].numpy(), expected, atol=2e-3)


def test_standardised_frames_ignore_padding(tmp_path: Path, rng: Rng) -> None:
    write_layout(tmp_path, rng, frames=True)
    train = layout_data(tmp_path, frames="unaligned").sets["train"]
    for name, mask in train.masks.items():
        real = train.features[name][mask]
        torch.testing.assert_close(real.mean(0), torch.zeros(SIZES[name]), atol=1e-5, rtol=0)
        torch.testing.assert_close(real.std(0, correction=0), torch.ones(SIZES[name]))
        assert (train.features[name][~mask] == 0).all()


def test_standardised_within_groups(tmp_path: Path, rng: Rng) -> None:
    subject = np.arange(60) // 5
    a = rng.standard_normal((60, 3)) + 100 * subject[:, None]
    a[3] = 0
    path = write_npz(tmp_path / "set.npz", rng, a=a)
    data = npz_data(path, group="subject", normalize="group", folds=4)
    for part in data.sets.values():
        assert part.group is not None
        for number in part.group.unique():
            here = (part.group == number) & part.present[:, 0]
            own = part.features["a"][here]
            torch.testing.assert_close(own.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
            torch.testing.assert_close(own.std(0, correction=0), torch.ones(3))
        assert (part.features["a"][~part.present[:, 0]] == 0).all()


def test_standardizer_of_nothing_present() -> None:
    rows = MultimodalSet(
        ["x"], {"a": torch.zeros(1, 2)}, {}, torch.zeros(1, 1, dtype=torch.bool), torch.zeros(1).long()
    )
    assert Standardizer.fit(rows).apply(rows).features["a"].tolist() == [[0, 0]]


def test_description_of_the_features_names_configurations_only_where_they_differ() -> None:
    train, group = {"normalize": "train", "group": None}, {"normalize": "group", "group": "subject"}
    assert describe_features({"x": train, "y": train}).count("`normalize: train`") == 1
    both = describe_features({"x": train, "y": group, "z": train})
    assert "(`normalize: train`) in x, z; " in both and both.endswith("(`normalize: group`, subject) in y.")
