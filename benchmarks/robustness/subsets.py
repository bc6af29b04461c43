"""The subsets of the modalities that views (a) and calibration look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mmrobust.presence import all_presence_patterns

MOST_MODALITIES = 8


def subset_patterns(names: Sequence[str], subsets: Iterable[Sequence[str]] | None = None) -> dict[str, Tensor]:
    """List subsets of the modalities as patterns of presence.

    Args:
        names: the modalities, in the order of the set.
        subsets: names of modalities; None = every non-empty subset, allowed up to 8 modalities.

    Returns:
        (M,) bool by subset, the names joined by "+" in the order of the set.

    Raises:
        ValueError: if all subsets of more than 8 modalities are asked for, or a subset is empty or unknown.

    Example:
        >>> subset_patterns(["audio", "text"], [["text", "audio"]])
        {'audio+text': tensor([True, True])}
    """
    patterns = _all(names) if subsets is None else _named(names, [tuple(subset) for subset in subsets])
    kept = [[name for name, has in zip(names, pattern.tolist(), strict=True) if has] for pattern in patterns]
    return dict(zip(map("+".join, kept), patterns, strict=True))


def _all(names: Sequence[str]) -> Tensor:
    if len(names) > MOST_MODALITIES:
        limit = f"at most {MOST_MODALITIES} modalities, or named subsets"
        raise ValueError(f"subset_patterns: expected {limit}, got all subsets of {len(names)} modalities")
    return all_presence_patterns(len(names))


def _named(names: Sequence[str], subsets: list[tuple[str, ...]]) -> Tensor:
    for subset in subsets:
        if not subset or not set(subset) <= set(names):
            raise ValueError(f"subset_patterns: expected a non-empty subset of {', '.join(names)}, got {subset}")
    return torch.tensor([[name in subset for name in names] for subset in subsets], dtype=torch.bool)
