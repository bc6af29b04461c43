"""Two yardsticks made of specialists: regret (subsets) and gap (unmarked corruption)."""

from __future__ import annotations

import math

from benchmarks.robustness.metrics import LOWER_IS_BETTER, Scores
from benchmarks.robustness.rows import View, parse_corruption


def regret_view(robust: View, specialists: View) -> View:
    """Compare the subset scores of a robust model with those of the specialists of the same subsets.

    Regret is what the specialist is better by: specialist minus robust, the other way round for errors. Positive is
    worse than the specialist, negative better.

    Args:
        robust: the robust model's subset view.
        specialists: for each subset the scores of the model trained and selected for it alone, on the same rows.

    Returns:
        Regret by subset, then "mean" and "worst" (largest) over the subsets that have rows.

    Raises:
        ValueError: if the subsets differ, or specialist and robust model were scored on different rows.

    Example:
        >>> robust = {"audio": {"accuracy": 0.5}, "text": {"accuracy": 0.9}}
        >>> specialists = {"audio": {"accuracy": 0.75}, "text": {"accuracy": 0.9}}
        >>> regret = regret_view(robust, specialists)
        >>> regret["mean"], regret["worst"]
        ({'accuracy': 0.125}, {'accuracy': 0.25})
    """
    if robust.keys() != specialists.keys():
        got = _differing(robust.keys() - specialists.keys(), specialists.keys() - robust.keys())
        raise ValueError(f"regret_view: expected specialists for the subsets of robust, got {got}")
    view = {subset: _regret(subset, robust[subset], specialists[subset]) for subset in robust}
    # A subset without rows has fewer scores; it takes no part in either summary.
    names = dict.fromkeys(name for scores in view.values() for name in scores)
    columns = {name: [scores.get(name, math.nan) for scores in view.values()] for name in names}
    view["mean"] = {name: _over(column, "mean") for name, column in columns.items()}
    view["worst"] = {name: _over(column, "worst") for name, column in columns.items()}
    return view


def _differing(missing: set[str], extra: set[str]) -> str:
    parts = [f"no {', '.join(sorted(missing))}"] if missing else []
    return "; ".join(parts + ([f"unknown {', '.join(sorted(extra))}"] if extra else []))


def _regret(subset: str, robust: Scores, specialist: Scores) -> Scores:
    if robust.get("rows") != specialist.get("rows"):
        rows = f"{robust.get('rows')} and {specialist.get('rows')}"
        raise ValueError(f"regret_view: expected the same rows for both models in subset {subset}, got {rows}")
    return _advantage(specialist, robust)


def gap_view(corrupt_view: View, specialists: View) -> View:
    """Compare the scores under unmarked corruption with those of the specialists that never see the modality.

    The specialist of the other modalities is what one would use if one knew that the modality is spoilt. The gap is
    what the model is better by: model minus specialist, the other way round for errors. Negative: it would have been
    better never to have had the modality.

    The model is scored on the samples that have the modality, the specialist on those that have any other. Where every
    sample has every modality, these are the same; `rows` is the model's number of rows minus the specialist's.

    Args:
        corrupt_view: the model's scores by "audio:noise@0dB".
        specialists: for each subset the scores of the model trained and selected for it alone, as in `regret_view`.

    Returns:
        The gap by the labels of `corrupt_view`; nothing for the only modality of a set.

    Raises:
        ValueError: if the specialist of the other modalities is not there.

    Example:
        >>> specialists = {"audio": {"accuracy": 0.5}, "text": {"accuracy": 0.75}, "audio+text": {"accuracy": 0.9}}
        >>> gap_view({"audio:zeros": {"accuracy": 0.875}}, specialists)
        {'audio:zeros': {'accuracy': 0.125}}
    """
    members = {frozenset(subset.split("+")): scores for subset, scores in specialists.items()}
    modalities = frozenset().union(*members)
    view = {}
    for label, scores in corrupt_view.items():
        modality = parse_corruption(label).modality
        others = modalities - {modality}
        if modality not in modalities or (others and others not in members):
            expected = f"a specialist that sees all but {modality}, among all subsets"
            raise ValueError(f"gap_view: expected {expected}, got {', '.join(specialists) or 'none'}")
        if others:
            view[label] = _gap(scores, members[others])
    return view


def _gap(model: Scores, specialist: Scores) -> Scores:
    gap = _advantage(model, specialist)
    if "rows" in model and "rows" in specialist:
        gap["rows"] = model["rows"] - specialist["rows"]
    return gap


def _advantage(first: Scores, second: Scores) -> Scores:
    """Compute by how much the first is better in each score that both have."""
    return {
        name: (first[name] - second[name]) * (-1.0 if name in LOWER_IS_BETTER else 1.0)
        for name in second
        if name != "rows" and name in first
    }


def _over(values: list[float], how: str) -> float:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan
    return max(known) if how == "worst" else sum(known) / len(known)
