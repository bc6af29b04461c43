"""How well single statistics of novelty tell spoilt rows: against scikit-learn, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.robustness import CORRUPTIONS, corrupt
from examples.mer.detectors import STATISTICS, detector_view
from examples.mer.sets import MultimodalSet
from mmrobust.quality import fit_reference, novelty_statistics


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


def test_leaves_out_a_modality_that_no_test_row_has() -> None:
    test = rows_of(9, 1)
    test.present[:, 1] = False
    assert {label.partition(":")[0] for label in detector_view(rows_of(80, 0), test)} == {"x"}
