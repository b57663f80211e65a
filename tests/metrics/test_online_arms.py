"""Two arms: the delta method against simulation, false positives on A/A, power on a planted effect, sample ratio."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from rgalign.errors import DataError
from rgalign.metrics.online.arms import arm_ratio, compare_arms, quantile
from rgalign.metrics.online.experiment import STOPPED, assigned, online_metrics, run_experiment
from rgalign.metrics.online.exposures import Exposures
from rgalign.metrics.online.ratios import Ratio
from rgalign.metrics.online.sample_ratio import sample_ratio

USERS, LIFT = 1200, 0.04


def clicks(rng: np.random.Generator, lift: float) -> tuple[Ratio, np.ndarray, np.ndarray]:
    """Sessions of users with tastes of their own: 1 to 12 sessions each, a click rate of 0.15 to 0.85."""
    counts = rng.integers(1, 13, USERS)
    users = np.repeat(np.arange(USERS), counts)
    treated = (rng.random(USERS) < 0.5)[users]
    taste = rng.uniform(0.15, 0.85, USERS)[users]
    x = rng.random(len(users)) < taste + lift * treated
    return Ratio(x.astype(np.float64), np.ones(len(x))), treated, users


def experiments(count: int, lift: float) -> Iterator[tuple[Ratio, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(7)
    return (clicks(rng, lift) for _ in range(count))


def test_one_session_a_user_is_the_two_proportion_z_test() -> None:
    x = np.array([1.0] * 30 + [0.0] * 70 + [1.0] * 45 + [0.0] * 55)
    treated = np.arange(200) >= 100
    found = compare_arms(Ratio(x, np.ones(200)), treated, np.arange(200))
    assert found.difference.estimate == pytest.approx(0.15)
    # unpooled, with the sample variance
    error = math.sqrt(0.3 * 0.7 / 99 + 0.45 * 0.55 / 99)
    assert found.z == pytest.approx(0.15 / error)
    assert found.p_value == pytest.approx(2 * stats.norm.sf(0.15 / error))
    assert found.relative is not None
    assert found.relative.estimate == pytest.approx(0.5)
    reach = stats.norm.ppf(0.975) * math.sqrt(0.3 * 0.7 / 99 / 0.3**2 + 0.45 * 0.55 / 99 / 0.45**2)
    assert found.relative.low == pytest.approx(1.5 * math.exp(-reach) - 1)
    assert found.relative.high == pytest.approx(1.5 * math.exp(reach) - 1)
    assert found.detectable == pytest.approx((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * error)
    assert found.verdict == "better"


def test_a_user_twice_says_no_more_than_once() -> None:
    rng = np.random.default_rng(0)
    x, users = (rng.random(300) < 0.4).astype(np.float64), np.arange(300)
    once = arm_ratio(x, np.ones(300), users)
    twice = arm_ratio(np.tile(x, 2), np.ones(600), np.tile(users, 2))
    assert twice.variance == pytest.approx(once.variance)
    assert arm_ratio(np.tile(x, 2), np.ones(600), np.arange(600)).variance < 0.51 * once.variance


def test_the_variance_is_that_of_many_experiments() -> None:
    ratios = [arm_ratio(ratio.x, ratio.y, users) for ratio, _, users in experiments(300, 0.0)]
    spread = np.var([found.value.estimate for found in ratios], ddof=1)
    assert np.mean([found.variance for found in ratios]) == pytest.approx(spread, rel=0.25)
    inside = np.mean([found.value.low < 0.5 < found.value.high for found in ratios])
    assert 0.91 < inside < 0.985


def test_a_a_is_seldom_significant_and_sessions_taken_for_independent_often_are() -> None:
    by_user, by_session = [], []
    for ratio, treated, users in experiments(400, 0.0):
        by_user.append(compare_arms(ratio, treated, users).p_value < 0.05)
        by_session.append(compare_arms(ratio, treated, np.arange(len(users))).p_value < 0.05)
    # 400 experiments at 5 %: between 11 and 31 in all but one of a thousand suites, whatever the seed
    assert 11 <= sum(by_user) <= 31
    assert np.mean(by_session) > 0.1


def test_a_planted_effect_is_found_as_often_as_the_detectable_difference_says() -> None:
    found = [compare_arms(ratio, treated, users) for ratio, treated, users in experiments(300, LIFT)]
    detectable = float(np.mean([each.detectable for each in found]))
    error = detectable / (quantile(0.95) + NormalDist().inv_cdf(0.8))
    expected = 1 - NormalDist().cdf(quantile(0.95) - LIFT / error)
    better = np.mean([each.verdict == "better" for each in found])
    assert 0.5 < expected < 0.95  # neither hopeless nor certain, so the comparison means something
    assert better == pytest.approx(expected, abs=0.08)
    assert np.mean([each.difference.estimate for each in found]) == pytest.approx(LIFT, abs=0.003)
    covered = [each.difference.low < LIFT < each.difference.high for each in found]
    assert 0.91 < np.mean(covered) < 0.985


def test_an_arm_that_never_clicks_has_no_relative_change() -> None:
    x = np.array([0.0] * 10 + [1.0, 0.0] * 5)
    found = compare_arms(Ratio(x, np.ones(20)), np.arange(20) >= 10, np.arange(20))
    assert found.relative is None
    assert found.control.variance == 0
    none = compare_arms(Ratio(np.zeros(20), np.ones(20)), np.arange(20) >= 10, np.arange(20))
    assert (none.z, none.p_value) == (0, 1)
    assert none.verdict.startswith("inconclusive")
    with pytest.raises(DataError, match="csat, treatment: required at least 2 users"):
        compare_arms(Ratio(x, np.ones(20)), np.arange(20) >= 19, np.arange(20), where="csat")


def test_sample_ratio_is_the_chi_squared_test() -> None:
    found = sample_ratio(4900, 5100)
    assert found.p_value == pytest.approx(stats.chisquare([4900, 5100]).pvalue)
    assert not found.mismatch
    assert sample_ratio(4800, 5200).mismatch
    uneven = sample_ratio(9000, 1000, share=0.1)
    assert uneven.p_value == pytest.approx(1)
    assert sample_ratio(9000, 1150, share=0.1).p_value == pytest.approx(
        stats.chisquare([9000, 1150], [9135, 1015]).pvalue
    )
    for users, share in (((0, 0), 0.5), ((5, 5), 1.0)):
        with pytest.raises(DataError, match="sample ratio"):
            sample_ratio(*users, share=share)


def test_equal_splits_are_hardly_ever_called_a_mismatch() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.binomial(5000, 0.5, 4000)
    assert np.mean([sample_ratio(5000 - int(n), int(n), alpha=0.01).mismatch for n in drawn]) < 0.016


def exposures(num_users: int, share: float, *, crossed: bool = False) -> Exposures:
    """One session a user; the treatment clicks twice as often."""
    rng = np.random.default_rng(1)
    treated = rng.random(num_users) < share
    clicked = rng.random(num_users) < np.where(treated, 0.6, 0.3)
    users = np.arange(num_users)
    if crossed:
        users[np.flatnonzero(treated)[0]] = users[np.flatnonzero(~treated)[0]]
    return Exposures(
        session_ids=tuple(f"s{row}" for row in range(num_users)),
        users=users,
        treated=treated,
        shown=(("a", "b", "c"),) * num_users,
        clicked=tuple(frozenset("a" if hit else "") for hit in clicked),
        rating=("good", None) * (num_users // 2),
        transcripts=(None,) * num_users,
    )


def test_a_sample_ratio_mismatch_stops_every_conclusion() -> None:
    fair, unfair = (exposures(2000, share) for share in (0.5, 0.6))
    good = run_experiment(fair, online_metrics(fair))
    assert good.verdict("ctr@3") == "better"
    bad = run_experiment(unfair, online_metrics(unfair))
    assert bad.metrics["ctr@3"].verdict == "better"  # it would look like one
    assert bad.verdict("ctr@3") == STOPPED
    assert bad.guardrail("ctr@3", 0.01) is None
    meant = run_experiment(unfair, online_metrics(unfair), treatment_share=0.6)
    assert meant.verdict("ctr@3") == "better"


def test_guardrails_hold_are_violated_or_say_nothing() -> None:
    found = run_experiment(log := exposures(2000, 0.5), online_metrics(log))
    assert found.guardrail("ctr@3", 0.01) == "holds"
    interval = found.metrics["clicks_per_place@3"].difference
    assert found.guardrail("clicks_per_place@3", -(interval.low + interval.high) / 2) == "inconclusive"
    assert found.guardrail("clicks_per_place@3", -2 * interval.high) == "violated"
    assert found.guardrail("csat", 0.01) == "holds"  # every rating is good


def test_a_metric_that_nobody_has_is_named_and_left_out() -> None:
    log = exposures(100, 0.5)
    none = {"s0": "a"}
    found = run_experiment(log, online_metrics(log, intents=none))
    assert "ihr@3" not in found.metrics
    assert "2 each are needed" in found.undefined["ihr@3"]


def test_users_of_both_arms_are_refused_or_dropped() -> None:
    log = exposures(200, 0.5, crossed=True)
    with pytest.raises(DataError, match="2 sessions of users in both arms"):
        assigned(log)
    kept, crossed = assigned(log, "drop")
    assert (crossed, len(kept)) == (2, 198)
    fine = exposures(200, 0.5)
    assert assigned(fine) == (fine, 0)
