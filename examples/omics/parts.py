"""Which sample is in which part: as a column says or folds are drawn, and later as the checkpoint remembers it."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from examples.pipeline.errors import DataError, check_option

from .readers import Samples
from .sets import OmicsSet
from .sources import shorten

PARTS = ("train", "val", "test")
UNUSED = "unused"
ELSE = "for data that was not trained on use --test"


class Members(NamedTuple):
    """The samples of a part: their ids, and a number that stands for what was measured of each ``(N,)``."""

    ids: list[str]
    marks: Tensor


def describe(rows: OmicsSet) -> Members:
    """Remember the rows of a part."""
    columns = [x.numpy() for x in (*rows.features.values(), rows.present)]
    marks = np.empty(rows.count, dtype=np.int64)
    for row in range(rows.count):
        content = blake2b(digest_size=8)
        for column in columns:
            content.update(column[row].tobytes())
        marks[row] = int.from_bytes(content.digest(), "little", signed=True)
    return Members(rows.ids, torch.from_numpy(marks))


def members_state(members: Mapping[str, Members]) -> dict[str, Any]:
    """Return tensors and plain values, for a checkpoint."""
    return {name: one._asdict() for name, one in members.items()}


def members_from_state(state: Mapping[str, Any]) -> dict[str, Members]:
    return {name: Members(list(one["ids"]), one["marks"]) for name, one in state.items()}


def name_parts(samples: Samples, place: str | None, values: Mapping[str, str | int] | None) -> np.ndarray | None:
    """Name the part of every sample by its value in the split column; None without such a column.

    Args:
        samples: The samples.
        place: Where the column is.
        values: Part -> value; None = the values are the names of the parts.

    Raises:
        DataError: If there are no rows of a part that is named.
    """
    if samples.split is None:
        return None
    wanted = {name: str(value) for name, value in (values or {}).items()} or {name: name for name in PARTS}
    part = np.full(len(samples.ids), UNUSED, dtype="<U8")
    for name, value in wanted.items():
        check_option("data.split_values: names of parts", name, PARTS)
        part[samples.split == value] = name
    for name in [*(values or ()), "test"]:
        if not (part == name).any():
            given = f" (value {wanted[name]})" if name in wanted else ""
            found = ", ".join(sorted(set(samples.split.tolist())))
            raise DataError(
                f"{samples.root}: {place}: expected rows of the part {name}{given}, found the values {found}"
            )
    return part


def find_members(samples: Samples, members: Mapping[str, Members]) -> dict[str, np.ndarray]:
    """Find the samples that were in each part, wherever they are now.

    Raises:
        DataError: If some are not there.
    """
    place = pd.Index(samples.ids)
    found = {name: place.get_indexer(pd.Index(one.ids)) for name, one in members.items()}
    for name, rows in found.items():
        missing = [one for one, row in zip(members[name].ids, rows.tolist(), strict=True) if row < 0]
        if missing:
            what = f"lacks {len(missing)} of the {len(rows)} samples of the part {name}: {shorten(missing)}"
            raise DataError(f"{samples.root}: {what}; {ELSE}")
    return found


def numbered(samples: Samples) -> bool:
    """Tell whether ids are the numbers of the rows, which say nothing about who it is once rows are moved."""
    return samples.ids == [str(row) for row in range(len(samples.ids))]


def check_members(root: str, sets: Mapping[str, OmicsSet], members: Mapping[str, Members]) -> None:
    """Raise unless the rows of every part hold what they held in training."""
    for name, one in members.items():
        wrong = (describe(sets[name]).marks != one.marks).numpy()
        if wrong.any():
            rows = shorten([one.ids[row] for row in np.flatnonzero(wrong)])
            what = f"rows {rows} of the part {name} to hold what they held in training"
            raise DataError(f"{root}: expected {what}, as samples have no names; {ELSE}, or name them (data.ids)")
