"""The contrastive losses in NumPy float64: loops over rows from the formulas, no torch, no helper of the library.

Everything is analytic in its floating arguments, so that :func:`derivative` differentiates it without a formula: the
imaginary part of f(x + ih) is h f'(x) to the last digit, as nothing is subtracted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
_STEP = 1e-30


class Rows(NamedTuple):
    """The loss of every row, 0 where it does not count, and whether it counts."""

    losses: Array
    counted: Array


def derivative(function: Callable[..., Any], arguments: Mapping[str, Any], name: str) -> Array:
    """Return the gradient of a scalar function in the argument ``name``."""
    x = np.asarray(arguments[name], np.float64)
    gradient = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        moved = x.astype(np.complex128)
        moved[index] += 1j * _STEP
        gradient[index] = np.imag(function(**{**arguments, name: moved if x.ndim else moved[()]})) / _STEP
    return gradient


def _unit(x: Array) -> Array:
    """Return x / |x|, or 0 below 1e-12."""
    largest = np.max(np.abs(np.real(x)), initial=0.0)
    if largest == 0.0:
        return np.zeros_like(x)
    scaled = x / largest
    length = np.sqrt(np.sum(scaled * scaled))
    return np.zeros_like(x) if np.real(length) * largest < 1e-12 else scaled / length


def _units(x: Array, real: Sequence[bool]) -> Array:
    """Return the units of the real rows, and 0 elsewhere, which is not to be read."""
    rows = [_unit(row) if keep else np.zeros_like(row) for row, keep in zip(x, real, strict=True)]
    return np.stack(rows) if rows else np.zeros(np.shape(x), np.asarray(x).dtype)


def _log_sum_exp(values: Array) -> Any:
    top = np.max(np.real(values))
    return top + np.log(np.sum(np.exp(values - top)))


def _all(mask: Array | None, rows: int) -> list[bool]:
    return [True] * rows if mask is None else [bool(m) for m in mask]


def reduced(rows: Rows, weight: Array | None = None, reduction: str = "mean") -> Any:
    """Return the losses, their sum, or their (weighted) mean over the rows that count; 0 over none."""
    losses, total, amount = np.array(rows.losses), 0.0, 0.0
    losses = losses if weight is None else losses.astype(np.result_type(losses, weight))
    for index in np.ndindex(losses.shape):
        share = 1.0 if weight is None else weight[index[-1]]
        losses[index] = losses[index] * share if rows.counted[index] else 0.0
        total, amount = total + losses[index], amount + (share if rows.counted[index] else 0.0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return np.asarray(total)[()]
    return np.asarray(total / amount if np.real(amount) > 0 else total)[()]


# Supervised ------------------------------------------------------------------------------------------------------


def _positive(one: Any, other: Any) -> bool:
    """Two labels are equal, or two sets of labels (multi-hot) have one in common."""
    return bool(np.any(np.logical_and(one, other))) if np.ndim(one) else bool(one == other)


def sup_con_rows(
    features: Array,
    labels: Array | None = None,
    *,
    temperature: Any = 0.1,
    positives: Array | None = None,
    excluded: Array | None = None,
    present: Array | None = None,
    ignore_index: int | None = None,
    keys: Array | None = None,
    key_labels: Array | None = None,
    key_present: Array | None = None,
    key_excluded: Array | None = None,
    aggregation: str = "out",
    without_positives: str = "skip",
) -> Rows:
    size, extra = len(features), 0 if keys is None else len(keys)
    real = [*_all(present, size), *_all(key_present, extra)]
    names = None if labels is None else [*labels, *([] if key_labels is None else key_labels)]
    if ignore_index is not None and names is not None and np.ndim(labels) == 1:
        real = [keep and int(name) != ignore_index for keep, name in zip(real, names, strict=True)]
    z = _units(features if keys is None else np.concatenate([features, keys]), real)
    losses, counted = np.zeros(size, z.dtype if np.isrealobj(temperature) else np.complex128), np.zeros(size, bool)
    for i in range(size):
        others = [j for j in range(size + extra) if j != i and real[j] and (excluded is None or not excluded[i, j])]
        if key_excluded is not None:
            others = [j for j in others if j < size or not key_excluded[i, j - size]]
        if names is None:
            friends = [j for j in others if positives[i, j]]
        else:
            friends = [j for j in others if _positive(names[i], names[j])]
        counted[i] = real[i] and (bool(friends) or without_positives == "zero")
        if not real[i] or not friends:
            continue
        scores = z @ z[i] / temperature
        every = _log_sum_exp(scores[others])
        if aggregation == "out":
            losses[i] = every - np.sum(scores[friends]) / len(friends)
        else:
            losses[i] = every - (_log_sum_exp(scores[friends]) - np.log(len(friends)))
    return Rows(losses, counted)


def sup_con_loss(
    features: Array,
    labels: Array | None = None,
    *,
    weight: Array | None = None,
    reduction: str = "mean",
    **options: Any,
) -> Any:
    return reduced(sup_con_rows(features, labels, **options), weight, reduction)


# Pairs -----------------------------------------------------------------------------------------------------------


def _extra(negatives: Array | None, present: Array | None, excluded: Array | None, rows: Array) -> list[Array]:
    """Return for each row the units of the negatives that are real and not excluded."""
    if negatives is None:
        return [np.zeros((0, np.shape(rows)[1]))] * len(rows)
    real = np.array(_all(present, len(negatives)), bool)
    units = _units(negatives, real)
    return [units[real if excluded is None else real & ~excluded[i]] for i in range(len(rows))]


def info_nce_rows(
    query: Array,
    key: Array,
    *,
    temperature: Any = 0.07,
    symmetric: bool = True,
    present: Array | None = None,
    negatives: Array | None = None,
    negatives_present: Array | None = None,
    negatives_excluded: Array | None = None,
) -> Rows:
    real = _all(present, len(query))
    queries, keys = _units(query, real), _units(key, real)
    extra = _extra(negatives, negatives_present, negatives_excluded, query)
    losses = []
    for i, keep in enumerate(real):
        loss = 0.0
        if keep:
            own = queries[i] @ keys[i] / temperature
            there = np.concatenate([keys[real] @ queries[i], extra[i] @ queries[i]]) / temperature
            loss = _log_sum_exp(there) - own
            if symmetric:
                loss = (loss + _log_sum_exp(queries[real] @ keys[i] / temperature) - own) / 2
        losses.append(loss)
    return Rows(np.array(losses), np.array(real, bool))


def info_nce_loss(
    query: Array, key: Array, *, weight: Array | None = None, reduction: str = "mean", **options: Any
) -> Any:
    return reduced(info_nce_rows(query, key, **options), weight, reduction)


def nt_xent_rows(
    z1: Array,
    z2: Array,
    *,
    temperature: Any = 0.5,
    present: Array | None = None,
    negatives: Array | None = None,
    negatives_present: Array | None = None,
    negatives_excluded: Array | None = None,
) -> Rows:
    """Rows ``(2, B)``: those of the first view, then those of the second."""
    size, real = len(z1), _all(present, len(z1)) * 2
    z = _units(np.concatenate([z1, z2]), real)
    extra = _extra(negatives, negatives_present, negatives_excluded, z1)
    losses = []
    for i, keep in enumerate(real):
        loss = 0.0
        if keep:
            others = [j for j in range(2 * size) if j != i and real[j]]
            scores = np.concatenate([z[others] @ z[i], extra[i % size] @ z[i]]) / temperature
            loss = _log_sum_exp(scores) - z[i] @ z[(i + size) % (2 * size)] / temperature
        losses.append(loss)
    return Rows(np.array(losses).reshape(2, size), np.array(real, bool).reshape(2, size))


def nt_xent_loss(z1: Array, z2: Array, *, weight: Array | None = None, reduction: str = "mean", **options: Any) -> Any:
    return reduced(nt_xent_rows(z1, z2, **options), weight, reduction)


# Modalities ------------------------------------------------------------------------------------------------------


def modality_contrastive_loss(
    features: Array | Sequence[Array],
    present: Array | None = None,
    *,
    temperature: Any = 0.07,
    weight: Array | None = None,
    reduction: str = "mean",
) -> Any:
    x = features if isinstance(features, np.ndarray) else np.stack(list(features), axis=1)
    size, modalities = x.shape[:2]
    losses, rows = [], []
    for a in range(modalities):
        for b in range(a + 1, modalities):
            both = [i for i in range(size) if present is None or (present[i, a] and present[i, b])]
            share = None if weight is None else weight[both]
            of_rows = info_nce_loss(x[both, a], x[both, b], temperature=temperature, weight=share, reduction="none")
            spread = np.zeros(size, of_rows.dtype)
            spread[both] = of_rows
            rows.append(spread)
            if both and (share is None or np.real(share.sum()) > 0):
                losses.append(info_nce_loss(x[both, a], x[both, b], temperature=temperature, weight=share))
    if reduction == "none":
        return np.array(rows)
    return np.asarray(np.sum(rows) if reduction == "sum" else sum(losses) / len(losses) if losses else 0.0)[()]


def projected_modality_contrastive_loss(
    state: Mapping[str, Array], mu: Array, present: Array | None = None, *, temperature: float = 0.07
) -> Any:
    """The module: Linear, ReLU, Linear per modality with the parameters of a state dict, then the loss."""
    x = mu if isinstance(mu, np.ndarray) else np.stack(list(mu), axis=1)
    projected = []
    for m in range(x.shape[1]):
        w1, b1, w2, b2 = (state[f"heads.{m}.{layer}"] for layer in ("0.weight", "0.bias", "2.weight", "2.bias"))
        rows = []
        for b, row in enumerate(x[:, m]):
            clean = row if present is None or present[b, m] else np.zeros_like(row)
            rows.append(w2 @ np.array([max(0.0, h) for h in w1 @ clean + b1]) + b2)
        projected.append(np.array(rows).reshape(len(rows), len(b2)))
    return modality_contrastive_loss(projected, present, temperature=temperature)
