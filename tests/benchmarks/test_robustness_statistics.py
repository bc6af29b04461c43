"""Bootstrap intervals and paired differences over runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks.robustness.statistics import (
    bootstrap_means,
    clusters_of,
    compare,
    interval,
    pair_runs,
    reduce_columns,
    summarize,
)

EACH = np.arange(100)


def test_plain_interval_equals_scipy() -> None:
    values = np.random.default_rng(0).exponential(size=25)
    ours = summarize(values[:, None], EACH[:25], small_sample=False, resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert ours.mean == pytest.approx(values.mean()) and ours.sd == pytest.approx(values.std(ddof=1))


def test_small_sample_interval_has_the_width_of_students_t() -> None:
    values = stats.norm.ppf((np.arange(12) + 0.5) / 12)
    summary = summarize(values[:, None], EACH[:12], resamples=40_000)
    half = stats.t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert (summary.low, summary.high) == pytest.approx((-half, half), rel=0.05)


@pytest.mark.parametrize(("runs", "low", "high"), [(5, 0.90, 0.97), (15, 0.92, 0.98)])
def test_interval_covers_the_truth_about_as_often_as_it_says(runs: int, low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    hits = plain = 0
    for _ in range(500):
        values = rng.normal(0.7, 0.1, size=(runs, 1))
        samples = bootstrap_means(values, EACH[:runs], resamples=4000)[:, 0]
        expanded, narrow = interval(samples, runs), interval(samples, runs, small_sample=False)
        hits += expanded[0] <= 0.7 <= expanded[1]
        plain += narrow[0] <= 0.7 <= narrow[1]
    assert low < hits / 500 < high
    assert plain < hits


def test_seeds_of_one_fold_are_resampled_together() -> None:
    rng = np.random.default_rng(0)
    fold = np.repeat(np.arange(5), 20)
    values = (rng.normal(size=5)[fold] + rng.normal(size=100) * 0.01)[:, None]
    clustered, naive = summarize(values, fold), summarize(values, EACH)
    assert clustered.clusters == 5 and clustered.runs == 100
    means = values.reshape(5, 20).mean(1)
    samples = bootstrap_means(values, fold)
    assert samples.std() == pytest.approx(means.std() / np.sqrt(5), rel=0.03)
    assert clustered.high - clustered.low > 3 * (naive.high - naive.low)


def test_uneven_clusters_count_by_their_runs() -> None:
    samples = bootstrap_means(np.array([[0.0], [0.0], [0.0], [1.0]]), np.array([7, 7, 7, 9]), resamples=4000)
    values, share = np.unique(samples, return_counts=True)
    assert values.tolist() == [0.0, 0.25, 1.0]
    assert share / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_one_run_has_a_mean_and_nothing_else() -> None:
    summary = summarize(np.array([[0.5]]), np.array([3]))
    assert summary.mean == 0.5 and summary.runs == 1
    assert np.isnan([summary.sd, summary.low, summary.high]).all()
    same_fold = summarize(np.array([[0.5], [0.7]]), np.array([3, 3]))
    assert same_fold.sd == pytest.approx(np.sqrt(0.02)) and np.isnan(same_fold.low)


def test_equal_runs_have_a_point_interval() -> None:
    summary = summarize(np.full((4, 2), 0.25), EACH[:4])
    assert (summary.mean, summary.sd, summary.low, summary.high) == (0.25, 0.0, 0.25, 0.25)


def test_no_run_gives_nan() -> None:
    summary = summarize(np.full((3, 2), np.nan), EACH[:3])
    assert summary.runs == summary.clusters == 0 and np.isnan(summary.mean)


def test_missing_values_leave_their_column_only() -> None:
    values = np.array([[1.0, 5.0], [3.0, np.nan], [2.0, 7.0]])
    assert summarize(values, EACH[:3]).mean == pytest.approx((2.0 + 6.0) / 2)
    assert summarize(values, EACH[:3], how="highest").mean == 6.0
    never = np.array([[1.0, np.nan], [3.0, np.nan]])
    assert summarize(never, EACH[:2], how="lowest").mean == 2.0


def test_worst_is_the_worst_mean_and_not_the_mean_of_the_worst() -> None:
    values = np.array([[0.0, 1.0], [1.0, 0.2]])
    summary = summarize(values, EACH[:2], how="lowest")
    assert summary.mean == 0.5 and summary.column == 0 and summary.sd == pytest.approx(np.std([0, 1], ddof=1))
    assert reduce_columns(values, "lowest").tolist() == [0.0, 0.2]
    assert summarize(values, EACH[:2], how="highest").column == 1


def test_pairing_cancels_what_is_common() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(0, 0.1, size=(10, 1))
    ours, reference = common + 0.02 + rng.normal(0, 0.003, size=(10, 1)), common
    summary = compare(ours, reference, EACH[:10])
    assert summary.mean == pytest.approx(0.02, abs=0.003) and summary.low > 0.015
    shuffled = compare(ours, reference[::-1], EACH[:10])
    assert shuffled.low < 0 < shuffled.high and shuffled.mean == pytest.approx(summary.mean)


def test_difference_of_the_worst_compares_the_worst_columns_of_both_sides() -> None:
    ours, reference = np.array([[0.6, 0.9], [0.6, 0.9]]), np.array([[0.8, 0.5], [0.8, 0.5]])
    assert compare(ours, reference, EACH[:2], how="lowest").mean == pytest.approx(0.1)
    gap = np.array([[0.6, np.nan], [0.6, np.nan]])
    assert compare(gap, reference, EACH[:2], how="lowest").mean == pytest.approx(-0.2)
    with pytest.raises(ValueError, match=r"reference of shape \(2, 2\), got \(2, 1\)"):
        compare(ours, reference[:, :1], EACH[:2])


def frame() -> pd.DataFrame:
    runs = [("base", 0, 0, 0.5), ("base", 1, 0, 0.6), ("base", 2, 0, 0.9), ("ours", 1, 0, 0.8), ("ours", 0, 0, 0.6)]
    columns = ["config", "seed", "fold", "test.accuracy"]
    return pd.DataFrame(runs, columns=columns).assign(data="toy")


def test_runs_are_paired_by_seed_and_fold_whatever_their_order() -> None:
    values, reference, clusters = pair_runs(frame(), "ours", "base", ["test.accuracy"])
    pairs = sorted(zip(clusters.tolist(), values[:, 0].tolist(), reference[:, 0].tolist(), strict=True))
    assert pairs == [(0, 0.6, 0.5), (1, 0.8, 0.6)]
    assert compare(values, reference, clusters).mean == pytest.approx(0.15)


def test_impossible_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="config among base, ours, got 'bse'"):
        pair_runs(frame(), "ours", "bse", [])
    apart = frame().query("config == 'base' and seed == 2 or config == 'ours'")
    with pytest.raises(ValueError, match="runs of 'ours' and 'base' with the same data, seed and fold"):
        pair_runs(apart, "ours", "base", ["test.accuracy"])


def test_folds_are_clusters_only_if_there_are_several() -> None:
    assert clusters_of(frame()).tolist() == [0, 1, 2, 1, 0]
    assert clusters_of(frame().assign(fold=[0, 1, 1, 0, 0])).tolist() == [0, 1, 1, 0, 0]


def test_bootstrap_is_seeded() -> None:
    values = np.random.default_rng(0).normal(size=(6, 3))
    first, second = (bootstrap_means(values, EACH[:6], resamples=50, seed=seed) for seed in (1, 2))
    assert np.array_equal(first, bootstrap_means(values, EACH[:6], resamples=50, seed=1))
    assert not np.array_equal(first, second)
