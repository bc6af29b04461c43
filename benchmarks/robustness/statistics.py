"""Mean, spread and bootstrap interval over runs, and paired differences between configurations.

Runs are not independent when several seeds share a fold: then whole folds are resampled, with all their seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Reduce = Literal["mean", "lowest", "highest"]
Array = NDArray[np.float64]


class Summary(NamedTuple):
    """A statistic over runs; `sd`, `low` and `high` are NaN where a single cluster says nothing about spread.

    Attributes:
        mean: mean over runs (of the mean, lowest or highest of several columns).
        sd: standard deviation over runs (n - 1).
        low: lower end of the bootstrap interval of `mean`.
        high: upper end.
        runs: number of runs.
        clusters: number of independent units that were resampled: folds if there are several, seeds otherwise.
        column: index of the lowest or highest column; None for a mean.
    """

    mean: float
    sd: float
    low: float
    high: float
    runs: int
    clusters: int
    column: int | None = None


NOTHING = Summary(float("nan"), float("nan"), float("nan"), float("nan"), 0, 0)


def bootstrap_means(values: Array, clusters: NDArray[np.int64], *, resamples: int = 10_000, seed: int = 0) -> Array:
    """Average the columns of resampled runs.

    Whole clusters are drawn with replacement; all columns see the same draws. NaN entries are left out.

    Args:
        values: (n, S), a row per run.
        clusters: (n,) the cluster of each run, any integers.
        resamples: number of resamples R.
        seed: seed of the draws; equal clusters and seed mean equal draws.

    Returns:
        (R, S) means; NaN where a resample has no value.

    Example:
        >>> bootstrap_means(np.array([[1.0], [1.0]]), np.array([0, 1]), resamples=2).tolist()
        [[1.0], [1.0]]
    """
    _, index = np.unique(clusters, return_inverse=True)
    count = index.max() + 1
    member = np.eye(count)[:, index]
    known = ~np.isnan(values)
    sums, sizes = member @ np.where(known, values, 0.0), member @ known
    draws = _draws(count, resamples, seed)
    with np.errstate(invalid="ignore"):
        return (draws @ sums) / (draws @ sizes)


@lru_cache(maxsize=32)
def _draws(count: int, resamples: int, seed: int) -> Array:
    """Count how often each of `count` clusters is drawn: (R, count). The tables ask for the same draws many times."""
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return draws.astype(np.float64)


def interval(samples: Array, clusters: int, *, level: float = 0.95, small_sample: bool = True) -> tuple[float, float]:
    """Read a percentile interval off bootstrap samples.

    With few clusters the plain percentile interval is too narrow (5 clusters: it covers about 85 % instead of 95 %).
    The expanded one takes percentiles further out, so that for a normal mean it has the width of Student's t
    interval: the tail is Phi(-t sqrt(n / (n - 1))) with t the Student quantile of n - 1 degrees of freedom
    (Hesterberg, The American Statistician 2015, section 3). No bootstrap interval can leave the range of the data:
    with 3 clusters even the widest covers about 75 %.

    Args:
        samples: (R,) the statistic of each resample; NaN entries are left out.
        clusters: number of resampled units n; below 2 the interval is NaN.
        level: wanted coverage in (0, 1).
        small_sample: True = expanded, False = plain percentiles.

    Returns:
        Lower and upper end.
    """
    samples = samples[~np.isnan(samples)]
    if clusters < 2 or not len(samples):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    if small_sample:
        tail = float(stats.norm.cdf(stats.t.ppf(tail, clusters - 1) * np.sqrt(clusters / (clusters - 1))))
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def reduce_columns(means: Array, how: Reduce) -> Array:
    """Reduce the last axis of (..., S) column means to one figure; columns that are NaN are left out."""
    known = ~np.isnan(means)
    if how == "mean":
        with np.errstate(invalid="ignore"):
            return np.where(known, means, 0.0).sum(axis=-1) / known.sum(axis=-1)
    worst = np.where(known, means, np.inf).min(-1) if how == "lowest" else np.where(known, means, -np.inf).max(-1)
    return np.where(known.any(axis=-1), worst, np.nan)


def summarize(
    values: Array,
    clusters: NDArray[np.int64],
    *,
    how: Reduce = "mean",
    level: float = 0.95,
    small_sample: bool = True,
    resamples: int = 10_000,
    seed: int = 0,
) -> Summary:
    """Summarise runs: columns are averaged over the runs first, then reduced to their mean, lowest or highest.

    The worst of several columns is thus the worst of their means. (The mean of each run's worst would mostly measure
    noise: the more columns, the worse.)

    Args:
        values: (n, S), a row per run; NaN = the run has no such value. Runs without any value are left out.
        clusters: (n,) integers, the cluster of each run.
        how: "mean", "lowest" or "highest" of the columns.
        level: coverage of the interval.
        small_sample: see `interval`.
        resamples: bootstrap resamples.
        seed: seed of the bootstrap.

    Returns:
        The summary; all NaN without runs.

    Example:
        >>> summary = summarize(np.array([[0.5], [0.7]]), np.array([0, 1]))
        >>> round(summary.mean, 3), round(summary.sd, 3), summary.low, summary.high
        (0.6, 0.141, 0.5, 0.7)
    """
    some = ~np.isnan(values).all(axis=1)
    values, clusters = values[some], clusters[some]
    runs, count = len(values), len(np.unique(clusters))
    if runs == 0:
        return NOTHING
    means = _column_means(values)
    if how == "mean" or np.isnan(means).all():
        column, spread = None, reduce_columns(values, "mean")
    else:
        column = int(np.nanargmin(means) if how == "lowest" else np.nanargmax(means))
        spread = values[~np.isnan(values[:, column]), column]
    sd = float(spread.std(ddof=1)) if len(spread) > 1 else float("nan")
    samples = reduce_columns(bootstrap_means(values, clusters, resamples=resamples, seed=seed), how)
    low, high = interval(samples, count, level=level, small_sample=small_sample)
    return Summary(float(reduce_columns(means, how)), sd, low, high, runs, count, column)


def compare(
    values: Array,
    reference: Array,
    clusters: NDArray[np.int64],
    *,
    how: Reduce = "mean",
    level: float = 0.95,
    small_sample: bool = True,
    resamples: int = 10_000,
    seed: int = 0,
) -> Summary:
    """Summarise the paired difference of two configurations, `values` minus `reference`, run by run.

    Both are reduced on the same resamples, so that what is common to a fold or a seed cancels.

    Args:
        values: (n, S), row i is the run paired with row i of `reference`.
        reference: (n, S), the same columns.
        clusters: (n,) integers, the cluster of each pair.
        how: as in `summarize`; the worst column may be another one on either side.
        level: coverage of the interval.
        small_sample: see `interval`.
        resamples: bootstrap resamples.
        seed: seed of the bootstrap.

    Returns:
        The summary of the difference; `sd` is that of the runs' differences.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> round(compare(np.array([[0.6], [0.9]]), np.array([[0.5], [0.8]]), np.array([0, 1])).low, 3)
        0.1
    """
    if values.shape != reference.shape:
        raise ValueError(f"compare: expected reference of shape {values.shape}, got {reference.shape}")
    both = ~(np.isnan(values) | np.isnan(reference))
    values, reference = np.where(both, values, np.nan), np.where(both, reference, np.nan)
    some = both.any(axis=1)
    values, reference, clusters = values[some], reference[some], clusters[some]
    runs, count = len(values), len(np.unique(clusters))
    if runs == 0:
        return NOTHING
    difference = [reduce_columns(_column_means(part), how) for part in (values, reference)]
    per_run = reduce_columns(values, how) - reduce_columns(reference, how)
    samples = [
        reduce_columns(bootstrap_means(part, clusters, resamples=resamples, seed=seed), how)
        for part in (values, reference)
    ]
    low, high = interval(samples[0] - samples[1], count, level=level, small_sample=small_sample)
    sd = float(per_run.std(ddof=1)) if runs > 1 else float("nan")
    return Summary(float(difference[0] - difference[1]), sd, low, high, runs, count)


def _column_means(values: Array) -> Array:
    return bootstrap_means(values, np.zeros(len(values), dtype=np.int64), resamples=1)[0]


def clusters_of(frame: pd.DataFrame) -> NDArray[np.int64]:
    """Name the independent unit of each run: its fold if there are several folds, otherwise its seed.

    Example:
        >>> clusters_of(pd.DataFrame({"seed": [0, 1, 0, 1], "fold": [0, 0, 1, 1]})).tolist()
        [0, 0, 1, 1]
    """
    return frame["fold" if frame["fold"].nunique() > 1 else "seed"].to_numpy(dtype=np.int64)


def pair_runs(
    frame: pd.DataFrame, config: str, reference: str, columns: Sequence[str]
) -> tuple[Array, Array, NDArray[np.int64]]:
    """Line up the runs of two configurations that share data, seed and fold.

    Args:
        frame: rows of runs (`read_rows`).
        config: name of the configuration.
        reference: name of the configuration to compare with.
        columns: columns wanted.

    Returns:
        The values of both, (n, S) each, and the clusters (n,).

    Raises:
        ValueError: if a configuration has no run, or no two runs can be paired.
    """
    known = set(frame["config"])
    for name in (config, reference):
        if name not in known:
            raise ValueError(f"pair_runs: expected a config among {', '.join(sorted(known))}, got {name!r}")
    keys = ["data", "seed", "fold"]
    left, right = (frame[frame["config"] == name][[*keys, *columns]] for name in (config, reference))
    pairs = left.merge(right, on=keys, suffixes=("", "|reference"))
    if pairs.empty:
        raise ValueError(f"pair_runs: expected runs of {config!r} and {reference!r} with the same data, seed and fold")
    if not columns:
        return np.empty((len(pairs), 0)), np.empty((len(pairs), 0)), clusters_of(pairs)
    right_columns = [f"{column}|reference" for column in columns]
    return pairs[list(columns)].to_numpy(float), pairs[right_columns].to_numpy(float), clusters_of(pairs)
