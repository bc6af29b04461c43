"""Classes by number: in the order of their labels, or as a checkpoint has numbered them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from examples.pipeline.errors import DataError

from .features import Preparation

UNKNOWN = -1


def check_classes(
    root: str, known: Preparation, names: Sequence[str] | None = None, labels: Sequence[str] | None = None
) -> None:
    """Raise unless labels, and the names of classes, are those that were trained on."""
    for expected, got in ((known.labels, labels), (known.classes, names)):
        if got is not None and expected != list(got):
            raise DataError(f"{root}: expected data of the classes {', '.join(expected)}, got {', '.join(got)}")


def encode_known(label: np.ndarray, known: Preparation) -> np.ndarray:
    """Number the classes as in training; -1 for others."""
    place = {value: index for index, value in enumerate(known.labels)}
    return np.array([place.get(one, UNKNOWN) for one in label.tolist()], dtype=np.int64)


def encode(label: np.ndarray, given: Sequence[str] | None) -> tuple[list[str], list[str], np.ndarray]:
    """Number the classes in the order of their labels, numbers by size; return names, labels and codes."""
    values = sorted(set(label.tolist()), key=_by_size)
    if len(values) < 2:
        raise DataError(f"data.label: expected at least two classes, got {', '.join(map(repr, values))}")
    if given is not None and len(given) != len(values):
        raise DataError(f"data.classes: expected {len(values)} names, for {', '.join(values)}, got {', '.join(given)}")
    place = {value: index for index, value in enumerate(values)}
    return list(given or values), values, np.array([place[one] for one in label.tolist()])


def _by_size(label: str) -> tuple[bool, int, str]:
    number = label.removeprefix("-").isdecimal()
    return not number, int(label) if number else 0, label
