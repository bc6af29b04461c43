"""What a run is selected by: its validation rows as they are, or also with modalities lost and spoilt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.robustness.corruption import Corruption, corrupt
from mmrobust.presence import all_presence_patterns

VIEWS = ("clean", "subset", "corrupt")
SPOILT = (Corruption("noise", 0.0), Corruption("zeros"))
MOST_SUBSETS = 15
Batch = Mapping[str, Any]


class Look(NamedTuple):
    """A validation batch, once or several times below each other, to be looked at in one or more ways.

    Attributes:
        inputs: features by name, of R * B rows.
        masks: step masks by name.
        present: (V, R * B, M) bool, one pattern of presence for each of V views.
        names: the V names, "clean", "subset" or "corrupt"; metrics are pooled within a name.
        rows: (V, R * B) bool, the rows that count.
    """

    inputs: dict[str, Tensor]
    masks: dict[str, Tensor]
    present: Tensor
    names: tuple[str, ...]
    rows: Tensor


def looks(batch: Batch, views: tuple[str, ...], seed: int) -> Iterator[Look]:
    """Yield a batch in every view: as it is, with every other subset of modalities, with each modality spoilt.

    With more than four modalities the subsets are the single ones and those that lack one. The noise depends on
    `seed` alone, so that every epoch is measured on the same rows.
    """
    inputs, masks, present = dict(batch["inputs"]), dict(batch.get("masks") or {}), batch["present"]
    patterns = _patterns(present.shape[1]).to(present.device)
    left = torch.cat([present[None], present & patterns.unsqueeze(1)])
    rows = left.any(-1) & (left != present).any(-1)
    rows[0] = True
    wanted = torch.tensor(["clean" in views, *["subset" in views] * len(patterns)], device=rows.device)
    if wanted.any():
        names = [
            name for name, keep in zip(["clean", *["subset"] * len(patterns)], wanted.tolist(), strict=True) if keep
        ]
        yield Look(inputs, masks, left[wanted], tuple(names), rows[wanted])
    if "corrupt" in views:
        yield _spoilt(inputs, masks, present, seed)


def _spoilt(inputs: dict[str, Tensor], masks: dict[str, Tensor], present: Tensor, seed: int) -> Look:
    """Put the batch below itself once for every modality and every way to spoil it."""
    times, found, steps, rows = len(inputs) * len(SPOILT), {}, {}, []
    for name, x in inputs.items():
        found[name] = x.repeat(times, *[1] * (x.dim() - 1))
        if name in masks:
            steps[name] = masks[name].repeat(times, 1)
    for index, name in enumerate(inputs):
        for number, corruption in enumerate(SPOILT):
            generator, mask = torch.Generator().manual_seed(seed), masks.get(name)
            x, _ = corrupt(inputs[name].cpu(), None if mask is None else mask.cpu(), corruption, generator)
            start = (index * len(SPOILT) + number) * len(present)
            found[name][start : start + len(present)] = x.to(inputs[name].device)
            rows.append(present[:, index])
    return Look(found, steps, present.repeat(times, 1)[None], ("corrupt",), torch.cat(rows)[None])


def _patterns(modalities: int) -> Tensor:
    if 2**modalities - 1 <= MOST_SUBSETS:
        return all_presence_patterns(modalities)[1:]
    single = torch.eye(modalities, dtype=torch.bool)
    return torch.cat([single, ~single])
