"""What is chosen is chosen on validation rows: nothing changes when test rows are spoilt."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from examples.omics import classical
from examples.omics.__main__ import main
from examples.omics.classical import CLASSICAL, fit_logistic_all, log_probabilities, table
from examples.omics.data import OmicsData
from examples.omics.measure import answers_of
from examples.omics.metrics import class_scores, cluster_ari
from examples.omics.report import best_by_validation
from examples.omics.trained import open_checkpoint
from tests.examples.test_omics_commands import DATA, TINY
from tests.examples.test_omics_readers import BRANCHES, CSV, make_arrays, write_csv, write_npz

OPTIONS: dict[str, Any] = {"branches": BRANCHES, "label": "label", "fold_array": "fold"}


def make_data(path: Path, spoilt: int | None = None) -> OmicsData:
    """Write and open data, of which one fold may have other labels and features; fold 0 tests, fold 1 validates."""
    arrays, rng = make_arrays(), np.random.default_rng(3)
    noise = rng.normal(size=arrays["genes"].shape) * 3
    arrays["genes"] = (arrays["genes"] + noise).astype(np.float32)
    rows = arrays["fold"] == spoilt
    arrays["label"][rows] = (arrays["label"][rows] + 1) % 3
    for name in BRANCHES:
        arrays[name][rows] *= -5
    return OmicsData(str(write_npz(path, **arrays)), **OPTIONS)


class TestBaselines:
    @pytest.mark.parametrize("name", list(CLASSICAL))
    def test_do_not_see_test_rows(self, name: str, tmp_path: Path) -> None:
        data = [make_data(tmp_path / f"{spoilt}.npz", spoilt) for spoilt in (None, 0)]
        assert (data[0].sets["test"].label != data[1].sets["test"].label).all()
        fitted = [CLASSICAL[name](one, 0) for one in data]
        assert fitted[0].chosen == fitted[1].chosen
        np.testing.assert_array_equal(fitted[0].val, fitted[1].val)
        rows = table(data[0], data[0].sets["test"])
        np.testing.assert_array_equal(*(log_probabilities(one.model, rows) for one in fitted))

    @pytest.mark.parametrize("name", ["logistic_regression", "boosting"])
    def test_are_chosen_by_the_likelihood_of_validation_rows(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data, scores = make_data(tmp_path / "x.npz"), []

        def record(logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
            scores.append((class_scores(logits, label)["nll"], logits))
            return class_scores(logits, label)

        monkeypatch.setattr(classical, "class_scores", record)
        fitted = CLASSICAL[name](data, 0)
        lowest = min(nll for nll, _ in scores)
        assert len({nll for nll, _ in scores}) > 2
        assert class_scores(fitted.val, data.sets["val"].label.numpy())["nll"] == lowest

    def test_trained_on_all_know_validation_rows_but_no_others(self, tmp_path: Path) -> None:
        data = make_data(tmp_path / "x.npz")
        found = fit_logistic_all(data, 0)
        both = [data.sets[part] for part in ("train", "val")]
        x, y = np.concatenate([table(data, rows) for rows in both]), np.concatenate([rows.label for rows in both])
        model = classical._logistic(float(found.chosen.removeprefix("C="))).fit(x, y)
        np.testing.assert_array_equal(found.model.coef_, model.coef_)


class TestBestByValidation:
    @staticmethod
    def frame(**columns: list[float]) -> pd.DataFrame:
        return pd.DataFrame({"config": ["a", "b"], **columns})

    def test_is_the_highest_and_not_by_test_rows(self) -> None:
        columns = {"val.balanced_accuracy": [0.6, 0.8], "val.nll": [0.1, 0.9]}
        assert best_by_validation(self.frame(**columns, **{"test.balanced_accuracy": [0.9, 0.1]})) == "b"
        assert best_by_validation(self.frame(**columns)) == "b"

    def test_is_the_likelier_of_equals(self) -> None:
        assert best_by_validation(self.frame(**{"val.balanced_accuracy": [0.8, 0.8], "val.nll": [0.9, 0.1]})) == "b"

    def test_needs_two(self) -> None:
        one = self.frame(**{"val.balanced_accuracy": [0.8, 0.8], "val.nll": [0.9, 0.1]}).iloc[:1]
        assert best_by_validation(one) is None


class TestAccept:
    def test_is_a_share_of_right_validation_rows(self, tmp_path: Path) -> None:
        (tmp_path / "toy.yaml").write_text(DATA)
        data = ["--config", str(tmp_path / "toy.yaml"), "--data.root", str(write_npz(tmp_path / "toy.npz"))]
        run = ["--trainer.max_epochs", "3", "--trainer.default_root_dir", str(tmp_path / "run")]
        assert main(["fit", "--config", "asymmetric", *data, *TINY, *run, "--model.lr", "0.01"]) == 0
        best = tmp_path / "run" / "best.ckpt"
        trained = open_checkpoint(best, [], tmp_path / "configs")
        val = answers_of(trained.task, trained.data.sets["val"])
        right = np.sort(val.residual.min(axis=1)[val.logits.argmax(axis=1) == val.label])
        shown = {}
        for accept in (None, 0.5):
            more = [] if accept is None else ["--accept", str(accept)]
            assert main(["evaluate", str(best), "--out", str(tmp_path / "out"), *more]) == 0
            shown[accept] = pd.read_csv(tmp_path / "out" / "runs.csv")["rejection.threshold"].item()
        for accept, share in ((None, 0.95), (0.5, 0.5)):
            assert shown[accept] == pytest.approx(right[math.ceil(share * len(right)) - 1], rel=1e-5)
        assert shown[0.5] < shown[None]


class TestSplitSeed:
    def test_draws_other_folds(self, tmp_path: Path) -> None:
        options = {"branches": CSV, "label": "labels.csv:type"}
        root = str(write_csv(tmp_path))
        found = {seed: OmicsData(root, **options, split_seed=seed, seed=5).sets["test"].ids for seed in (None, 0, 3)}
        assert found[None] == found[0] != found[3]

    def test_holds_validation_rows_fixed(self, tmp_path: Path) -> None:
        options = {**OPTIONS, "fold_array": None, "split": "split", "split_values": {"train": 0, "test": 1}}
        root = str(write_npz(tmp_path / "x.npz"))
        found = [OmicsData(root, **options, split_seed=3, seed=seed).sets["val"].ids for seed in (0, 1)]
        assert found[0] == found[1] == OmicsData(root, **options, seed=3).sets["val"].ids


def test_as_many_clusters_as_classes() -> None:
    label = np.arange(30) % 3
    assert cluster_ari(10.0 * np.eye(3)[label] + 0.01 * np.arange(30)[:, None], label, 3) == 1.0
