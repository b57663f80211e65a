"""Intervals and p values: against scipy, by coverage, and on inputs where the answer is known."""

import numpy as np
import pytest
from scipy import stats

from rgalign.errors import DataError
from rgalign.metrics import significance
from rgalign.metrics.significance import (
    Interval,
    Resampling,
    bootstrap,
    cluster_codes,
    mean_intervals,
    paired_comparisons,
    resample_counts,
    seed_mean,
    seed_spread,
    sign_flip,
)

FEW = Resampling(resamples=2000)


def column(values):
    return np.asarray(values, np.float64)[:, None]


def ones(values):
    return np.ones((len(values), 1))


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_equals_scipy(method):
    values = np.random.default_rng(0).exponential(size=200) ** 2  # skewed, so that the methods differ
    how = Resampling(method=method)
    found = bootstrap(column(values), ones(values), how=how)[0]
    name = {"percentile": "percentile", "bca": "BCa"}[method]
    expected = stats.bootstrap((values,), np.mean, n_resamples=10_000, method=name, rng=1).confidence_interval
    width = expected.high - expected.low
    assert found.estimate == pytest.approx(values.mean())
    # Both are Monte Carlo: a limit's standard error is 1 to 2 % of the width.
    assert found.low == pytest.approx(expected.low, abs=0.06 * width)
    assert found.high == pytest.approx(expected.high, abs=0.06 * width)


def test_bca_shifts_towards_the_long_tail():
    values = np.random.default_rng(0).exponential(size=100) ** 2
    percentile, bca = (
        bootstrap(column(values), ones(values), how=Resampling(method=m))[0] for m in ("percentile", "bca")
    )
    assert bca.low > percentile.low
    assert bca.high > percentile.high


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_cover_the_truth_as_often_as_they_say(method):
    rng = np.random.default_rng(3)
    values = rng.standard_normal((150, 400)) * 0.3  # 400 experiments of 150 sessions, difference 0
    intervals = [
        bootstrap(column(values[:, k]), ones(values), how=Resampling(resamples=400, seed=k, method=method))[0]
        for k in range(400)
    ]
    covered = np.mean([i.low <= 0 <= i.high for i in intervals])
    assert 0.91 < covered < 0.98  # 95 % +- 3 standard errors of 400 experiments


def test_clusters_widen_the_interval_when_sessions_repeat():
    rng = np.random.default_rng(4)
    users = np.repeat(np.arange(60), 10)
    values = rng.standard_normal(60)[users]  # every user says one thing ten times
    single = bootstrap(column(values), ones(values), how=FEW)[0]
    clustered = bootstrap(column(values), ones(values), users, FEW)[0]
    ratio = (clustered.high - clustered.low) / (single.high - single.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)
    assert clustered.estimate == pytest.approx(single.estimate)


def test_one_session_a_cluster_is_no_cluster():
    values = np.random.default_rng(5).standard_normal(50)
    assert bootstrap(column(values), ones(values), np.arange(50) + 7, FEW) == bootstrap(
        column(values), ones(values), how=FEW
    )


def test_weighted_means_and_undefined_sessions():
    values = np.array([[1.0, 0.0], [0.0, np.nan], [1.0, 1.0], [np.nan, np.nan]])
    weights = np.array([[1.0, 1.0], [3.0, 1.0], [1.0, 3.0], [9.0, 9.0]])
    found = mean_intervals(values, weights, how=FEW)
    assert [i.estimate for i in found] == pytest.approx([2 / 5, 3 / 4])


def test_columns_do_not_depend_on_each_other():
    values = np.random.default_rng(6).standard_normal((80, 3))
    weights = np.ones((80, 3))
    weights[:, 1] = np.arange(80)
    together = mean_intervals(values, weights, how=FEW)
    alone = [mean_intervals(values[:, [k]], weights[:, [k]], how=FEW)[0] for k in range(3)]
    for a, b in zip(together, alone, strict=True):
        assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=1e-6)


def test_chunks_do_not_change_the_draws(monkeypatch):
    whole = np.concatenate(list(resample_counts(30, Resampling(resamples=50))))
    assert (whole.sum(axis=1) == 30).all()
    monkeypatch.setattr(significance, "CHUNK", 30 * 8)
    assert np.array_equal(np.concatenate(list(resample_counts(30, Resampling(resamples=50)))), whole)


def test_seed_decides():
    values = np.random.default_rng(7).standard_normal(40)
    first, again, other = (bootstrap(column(values), ones(values), how=Resampling(seed=s)) for s in (1, 1, 2))
    assert first == again != other


def test_sign_flip_equals_the_exact_permutation_test():
    rng = np.random.default_rng(8)
    values = rng.integers(-3, 5, 11).astype(float)  # discrete: many sign patterns tie with the observed sum
    patterns = np.array(np.meshgrid(*[[-1, 1]] * 11)).reshape(11, -1)
    exact = np.mean(np.abs(values @ patterns) >= abs(values.sum()))
    found = sign_flip(column(values), how=Resampling(resamples=40_000))[0]
    assert 0.01 < exact < 0.9
    assert found == pytest.approx(exact, abs=0.01)


def test_sign_flip_flips_whole_clusters():
    values = column(np.repeat([1.0, 1.0, 1.0], 50))
    assert sign_flip(values, how=FEW)[0] < 0.001
    assert sign_flip(values, np.repeat([0, 1, 2], 50), FEW)[0] == pytest.approx(0.25, abs=0.03)  # 2 of 8 patterns


def test_sign_flip_without_any_difference():
    assert sign_flip(np.zeros((9, 2)), how=FEW).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.2, "better"),
        (-0.2, -0.1, "worse"),
        (-0.1, 0.2, "inconclusive (interval spans zero)"),
        (0.0, 0.2, "inconclusive (interval spans zero)"),
        (0.0, 0.0, "inconclusive (interval spans zero)"),
    ],
)
def test_verdicts(low, high, verdict):
    assert Interval((low + high) / 2, low, high).verdict == verdict


def test_comparison_finds_a_small_paired_difference():
    rng = np.random.default_rng(9)
    baseline = rng.random((500, 1))  # sessions differ much more than the rankers do
    values = baseline + 0.01 + 0.05 * rng.standard_normal((500, 1))
    found = paired_comparisons(values, baseline, np.ones((500, 1)), how=FEW)[0]
    assert found.verdict == "better"
    assert found.p_value < 0.01
    unpaired = mean_intervals(np.hstack([values, baseline]), np.ones((500, 2)), how=FEW)
    assert unpaired[0].low < unpaired[1].high  # the two means' own intervals overlap


def test_comparison_of_a_ranker_with_itself():
    values = np.random.default_rng(10).random((50, 1))
    found = paired_comparisons(values, values, np.ones((50, 1)), how=FEW)[0]
    assert (found.difference.low, found.difference.high, found.p_value) == (0, 0, 1)
    assert found.verdict.startswith("inconclusive")


def test_seeds():
    mean = seed_mean([np.array([[1.0], [np.nan]]), np.array([[0.0], [np.nan]])])
    np.testing.assert_array_equal(mean, [[0.5], [np.nan]])
    assert seed_spread([1.0, 3.0]) == pytest.approx(np.sqrt(2))
    assert np.isnan(seed_spread([1.0]))


def test_sessions_without_a_user_are_not_one_user():
    codes = cluster_codes(["a", None, "b", "a", "", None])
    assert codes[0] == codes[3]
    assert len(set(codes)) == 5


@pytest.mark.parametrize(
    ("x", "y", "clusters", "message"),
    [
        ([1.0], [1.0], None, "at least 2 independent"),
        ([1.0, 2.0], [1.0, 1.0], [3, 3], "at least 2 independent"),
        ([1.0, np.nan], [1.0, 1.0], None, "required no NaN"),
        ([1.0, 1.0], [0.0, 0.0], None, "weights that sum to zero"),
    ],
)
def test_rejects(x, y, clusters, message):
    with pytest.raises(DataError, match=message):
        bootstrap(column(x), column(y), None if clusters is None else np.array(clusters))


def test_rejects_what_is_not_paired():
    with pytest.raises(DataError, match="defined for the same sessions"):
        paired_comparisons(np.array([[1.0], [np.nan]]), np.array([[1.0], [1.0]]), np.ones((2, 1)))
