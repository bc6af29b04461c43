"""How well single statistics of novelty tell spoilt rows from clean ones: what a learned std has to be as good as."""

from __future__ import annotations

import torch

from benchmarks.robustness import CORRUPTIONS, View, corrupt
from benchmarks.robustness.metrics import auroc
from mmrobust.quality import Reference, fit_reference, novelty_statistics

from .data import MultimodalData
from .predict import list_tests
from .sets import MultimodalSet
from .task import FusionTask

STATISTICS = ("residual", "mahalanobis", "energy", "nearest")


def add_detectors(views: dict[str, View], task: FusionTask, data: MultimodalData) -> None:
    """Add the view `detector` to those of a model that reads the quality of its inputs, beside the view `corrupt`."""
    if "corrupt" in views and getattr(task.final, "quality", None) is not None:
        views["detector"] = detector_view(data.sets["train"], data.sets[list_tests(data)[0]])


def detector_view(train: MultimodalSet, test: MultimodalSet, *, seed: int = 0) -> View:
    """Measure every statistic of `novelty_statistics`, fitted on training rows, on the corruptions of the other views.

    Args:
        train: rows to compare with.
        test: rows to spoil, one modality at a time.
        seed: as in `corrupted_predictions`, whose noise this is.

    Returns:
        AUROC of each statistic by "modality:corruption"; near 0 tells as well as near 1, by being low.
    """
    view: View = {}
    for index, name in enumerate(test.features):
        rows, mask = test.present[:, index], test.masks.get(name)
        if not rows.any():
            continue
        reference = _fit(train, name, index)
        clean, steps = test.features[name][rows], None if mask is None else mask[rows]
        before = novelty_statistics(clean, reference, steps)
        for corruption in CORRUPTIONS:
            generator = torch.Generator().manual_seed(seed * 1000 + index)
            spoilt, changed = corrupt(clean, steps, corruption, generator)
            after = novelty_statistics(spoilt, reference, changed)
            view[f"{name}:{corruption.label}"] = {
                statistic: auroc(after[:, column].numpy(), before[:, column].numpy())
                for column, statistic in enumerate(STATISTICS)
            }
    return view


def _fit(train: MultimodalSet, name: str, index: int) -> Reference:
    # The steps of an absent row are all masked.
    return fit_reference(train.features[name][train.masks.get(name, train.present[:, index])])
