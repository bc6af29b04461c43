"""Reference for the memory bank: slots in a list, one row after the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .masking import Array

NO_LABEL, NOBODY = -100, -1


def unit(row: Array) -> Array:
    largest = max(abs(v) for v in row)
    if largest < 1e-12:
        return np.zeros(len(row))
    scaled = row / largest
    return scaled / math.sqrt(sum(v * v for v in scaled))


class Bank:
    """Both kinds in the plainest form: a dict from slot to what it holds."""

    def __init__(
        self,
        size: int,
        features: int,
        *,
        kind: str = "queue",
        momentum: float = 0.0,
        num_classes: int | None = None,
        warmup_updates: int = 0,
    ) -> None:
        self.size, self.features, self.kind, self.momentum = size, features, kind, momentum
        self.num_classes, self.warmup = num_classes, warmup_updates
        self.slots: dict[int, tuple[Array, int, int]] = {}
        self.next = [0] * (num_classes or 1)
        self.updates = 0

    def update(self, features: Array, labels: Any = None, *, index: Any = None, present: Any = None) -> None:
        rows = []
        for b in range(len(features)):
            if present is not None and not present[b]:
                continue
            if not all(math.isfinite(v) for v in features[b]):
                continue
            label = None if labels is None else int(labels[b])
            sample = NOBODY if index is None else int(index[b])
            rows.append((np.asarray(features[b], dtype=np.float64), label, sample))
        (self._queue if self.kind == "queue" else self._instance)(rows)
        self.updates += 1

    def _queue(self, rows: list[tuple[Array, int | None, int]]) -> None:
        depth = self.size // len(self.next)
        for row, label, sample in rows:
            ring = 0
            if self.num_classes is not None:
                assert label is not None
                if not 0 <= label < self.num_classes:
                    continue
                ring = label
            slot = ring * depth + self.next[ring]
            self.slots[slot] = (unit(row), NO_LABEL if label is None else label, sample)
            self.next[ring] = (self.next[ring] + 1) % depth

    def _instance(self, rows: list[tuple[Array, int | None, int]]) -> None:
        last = {sample: (row, label) for row, label, sample in rows if 0 <= sample < self.size}
        for sample, (row, label) in last.items():
            new = unit(row)
            if sample in self.slots:
                old, before, _ = self.slots[sample]
                new = unit(self.momentum * old + (1 - self.momentum) * new)
                label = before if label is None else label
            self.slots[sample] = (new, NO_LABEL if label is None else label, sample)

    def keys(self) -> tuple[Array, Any, Any]:
        features = np.zeros((self.size, self.features))
        labels, present = np.full(self.size, NO_LABEL), np.zeros(self.size, dtype=bool)
        for slot, (row, label, _) in self.slots.items():
            features[slot], labels[slot], present[slot] = row, label, self.updates >= self.warmup
        return features, labels, present

    def own_slots(self, index: Any) -> Any:
        return np.array(
            [
                [slot in self.slots and sample >= 0 and self.slots[slot][2] == sample for slot in range(self.size)]
                for sample in map(int, index)
            ],
            dtype=bool,
        ).reshape(len(index), self.size)
