"""What a run is selected by: its validation rows as they are, or also with modalities lost and spoilt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.robustness.corruption import Corruption, corrupt
from mmrobust.presence import all_presence_patterns

SPOILT = (Corruption("noise", 0.0), Corruption("zeros"))
MOST_SUBSETS = 15
Batch = Mapping[str, Any]


class Look(NamedTuple):
    """One way to look at a validation batch.

    Attributes:
        view: "clean", "subset" or "corrupt"; metrics are pooled within a view.
        inputs: features by name.
        masks: step masks by name.
        present: (B, M) bool.
        rows: (B,) bool, the rows that count.
    """

    view: str
    inputs: dict[str, Tensor]
    masks: dict[str, Tensor]
    present: Tensor
    rows: Tensor


def looks(batch: Batch, views: tuple[str, ...], seed: int) -> Iterator[Look]:
    """Yield a batch in every view: as it is, with every other subset of modalities, with each modality spoilt.

    With more than four modalities the subsets are the single ones and those that lack one. The noise depends on
    `seed` alone, so that every epoch is measured on the same rows.
    """
    inputs, masks, present = dict(batch["inputs"]), dict(batch.get("masks") or {}), batch["present"]
    rows = torch.ones(len(present), dtype=torch.bool, device=present.device)
    if "clean" in views:
        yield Look("clean", inputs, masks, present, rows)
    if "subset" in views:
        for pattern in _patterns(present.shape[1]).to(present.device):
            left = present & pattern
            yield Look("subset", inputs, masks, left, left.any(1) & (left != present).any(1))
    if "corrupt" in views:
        for index, name in enumerate(inputs):
            for corruption in SPOILT:
                generator = torch.Generator().manual_seed(seed)
                mask = masks.get(name)
                x, mask = corrupt(inputs[name].cpu(), None if mask is None else mask.cpu(), corruption, generator)
                spoilt = {**inputs, name: x.to(inputs[name].device)}
                yield Look("corrupt", spoilt, masks, present, present[:, index])


def _patterns(modalities: int) -> Tensor:
    if 2**modalities - 1 <= MOST_SUBSETS:
        return all_presence_patterns(modalities)[1:]
    single = torch.eye(modalities, dtype=torch.bool)
    return torch.cat([single, ~single])
