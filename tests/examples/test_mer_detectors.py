"""How well single statistics of novelty tell spoilt rows: against scikit-learn, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.robustness import CORRUPTIONS, corrupt, read_rows, run_row
from examples.mer.__main__ import main
from examples.mer.cli import MerCLI
from examples.mer.detectors import STATISTICS, detector_view
from examples.mer.jobs import Job, execute
from examples.mer.sets import MultimodalSet
from mmrobust.quality import fit_reference, novelty_statistics
from tests.examples.mer_runs import write_config, write_toy


def rows_of(count: int, seed: int, *, frames: bool = False) -> MultimodalSet:
    """Make rows of two modalities of which some lack the second, the first as frames if wanted."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=random) @ torch.tensor([[2.0, 1, 0, 0, 1]] * 5).tril()
    y = torch.randn(count, 3, generator=random)
    present = torch.ones(count, 2, dtype=torch.bool)
    present[::3, 1] = False
    y[::3] = 0
    masks = {}
    if frames:
        x = x.unsqueeze(1) + torch.randn(count, 4, 5, generator=random)
        masks["x"] = torch.arange(4) <= torch.arange(count).unsqueeze(1) % 4
        x[~masks["x"]] = 0
    ids = [str(i) for i in range(count)]
    return MultimodalSet(ids, {"x": x, "y": y}, masks, present, torch.zeros(count, dtype=torch.long))


@pytest.mark.parametrize("frames", [False, True])
def test_equals_scikit_learn_on_the_noise_of_the_corruption_view(frames: bool) -> None:
    train, test = rows_of(80, 0, frames=frames), rows_of(31, 1, frames=frames)
    view = detector_view(train, test, seed=2)
    assert set(view) == {f"{name}:{one.label}" for name in ("x", "y") for one in CORRUPTIONS}
    for index, name in enumerate(("x", "y")):
        real = train.masks.get(name, train.present[:, index])
        reference = fit_reference(train.features[name][real])
        there = test.present[:, index]
        clean = test.features[name][there]
        mask = test.masks[name][there] if name in test.masks else None
        for corruption in CORRUPTIONS:
            spoilt, changed = corrupt(clean, mask, corruption, torch.Generator().manual_seed(2000 + index))
            parts = [novelty_statistics(spoilt, reference, changed), novelty_statistics(clean, reference, mask)]
            truth = np.repeat([1, 0], len(clean))
            for column, statistic in enumerate(STATISTICS):
                expected = roc_auc_score(truth, torch.cat(parts)[:, column].numpy())
                assert view[f"{name}:{corruption.label}"][statistic] == pytest.approx(expected)
    assert view["x:noise@-5dB"]["mahalanobis"] > 0.6


WITH_QUALITY = {"hidden_features": 8, "quality": "replace", "attention": "none"}


class TestCommands:
    """The view stands beside the corruption view of a model with quality, and nowhere else."""

    def words(self, folder: Path, options: dict[str, Any]) -> tuple[str, ...]:
        config = write_config(folder / "toy.yaml", model__options=options, trainer__max_epochs=1)
        return "--config", str(config), "--data.root", str(write_toy(folder / "toy.npz"))

    def expected(self, words: tuple[str, ...]) -> dict[str, dict[str, float]]:
        sets = MerCLI(words, trainer={"enable_progress_bar": False}).datamodule.sets
        return detector_view(sets["train"], sets["test"])

    @pytest.mark.parametrize("views", [("corrupt",), ("subset",)])
    def test_a_job_measures_training_and_test_rows(self, views: tuple[str, ...], tmp_path: Path) -> None:
        words = self.words(tmp_path, WITH_QUALITY)
        job = Job("toy", "toy", 0, 0, words, str(tmp_path / "run.json"), "print", views=views)
        assert execute(job)["views"].get("detector") == (self.expected(words) if "corrupt" in views else None)

    @pytest.mark.parametrize("quality", [True, False])
    def test_evaluate_measures_those_of_one_checkpoint(self, quality: bool, tmp_path: Path) -> None:
        words = self.words(tmp_path, WITH_QUALITY if quality else {"hidden_features": 8})
        assert main(["fit", *words, "--trainer.default_root_dir", str(tmp_path / "run")]) == 0
        command = ["evaluate", str(tmp_path / "run" / "best.ckpt"), "--out", str(tmp_path / "out"), "--no-regret"]
        assert main([*command, "--views", "corrupt"]) == 0
        row = read_rows(tmp_path / "out" / "runs.csv").iloc[0]
        found = {name: value for name, value in row.items() if name.startswith("detector")}
        expected = run_row({"detector": self.expected(words)}) if quality else {}
        assert found == pytest.approx(expected, abs=1e-5)


def test_leaves_out_a_modality_that_no_test_row_has() -> None:
    test = rows_of(9, 1)
    test.present[:, 1] = False
    assert {label.partition(":")[0] for label in detector_view(rows_of(80, 0), test)} == {"x"}
