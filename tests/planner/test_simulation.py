"""The simulated cell against what can be computed by hand and by queueing theory, and what it promises."""

from __future__ import annotations

import numpy as np
import pytest

from rgalign.errors import ConfigError, DataError
from rgalign.planner import Curve, Outage, simulate
from rgalign.planner.arrivals import poisson
from rgalign.planner.simulation import Ended
from rgalign.recommender import RecommenderConfig

ONE_ROW = RecommenderConfig(max_rows=1, max_queue=1_024, deadline_ms=60_000.0)


def flat(ms: float, **more: object) -> Curve:
    """Every batch takes so long, whatever is in it."""
    values = {"tokens": (1, 1_000), "ms": (ms, ms + 1e-9), "lengths": (100,)} | more
    return Curve.model_validate(values)


def test_an_idle_replica_takes_host_batch_and_host() -> None:
    curve = flat(10.0, read_ms=2.0, tower_ms=3.0, answer_ms=1.0)
    result = simulate(curve, RecommenderConfig(), [0.0, 1.0, 2.0])
    np.testing.assert_allclose(result.latency_ms, 13.0, atol=1e-3)
    assert (result.ended == Ended.WHOLE).all()


def test_a_tower_longer_than_the_batch_holds_up_the_answer() -> None:
    result = simulate(flat(1.0, read_ms=2.0, tower_ms=5.0, answer_ms=1.0), RecommenderConfig(), [0.0])
    np.testing.assert_allclose(result.latency_ms, 8.0, atol=1e-3)


def test_what_comes_while_the_worker_is_busy_is_one_batch() -> None:
    result = simulate(flat(10.0), RecommenderConfig(), [0.0, 0.001, 0.002, 0.003])
    np.testing.assert_allclose(result.latency_ms, [10.0, 19.0, 18.0, 17.0], atol=1e-3)
    assert (result.batches, result.rows) == (2, 4)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_row_batches_wait_as_an_m_d_1_queue(load: float) -> None:
    """Pollaczek and Khinchine: mean waiting = load / (2 (1 - load)) service times."""
    times = poisson(load * 100.0, 2_000.0, seed=1)
    result = simulate(flat(10.0), ONE_ROW, times)
    waited = result.latency_ms.mean() - 10.0
    assert waited == pytest.approx(10.0 * load / (2 * (1 - load)), rel=0.06)
    assert result.worker_busy == pytest.approx(load, rel=0.02)


def test_random_routing_to_many_is_as_one_replica_and_least_outstanding_is_better() -> None:
    times = poisson(0.8 * 100.0 * 8, 200.0, seed=2)
    alone = simulate(flat(10.0), ONE_ROW, poisson(0.8 * 100.0, 1_600.0, seed=3))
    random = simulate(flat(10.0), ONE_ROW, times, replicas=8, routing="random")
    least = simulate(flat(10.0), ONE_ROW, times, replicas=8)
    assert random.latency_ms.mean() == pytest.approx(alone.latency_ms.mean(), rel=0.1)
    assert least.percentile(99) < 0.5 * random.percentile(99)


def test_an_overload_refuses_and_answers_late_ones_without_the_reasoner() -> None:
    times = poisson(300.0, 20.0, seed=4)
    short, long = (
        simulate(flat(10.0), RecommenderConfig(max_rows=1, max_queue=queue, deadline_ms=50.0), times)
        for queue in (3, 8)
    )
    assert short.share(Ended.WHOLE) * 300.0 == pytest.approx(100.0, rel=0.05)  # what one worker can do
    assert short.share(Ended.DEGRADED) == 0
    assert long.share(Ended.DEGRADED) > 0.3  # a queue longer than the deadline is of no use
    assert (short.most_waiting, long.most_waiting) == (3, 8)
    assert long.latency_ms.max() <= 50.0


def test_a_crash_loses_what_the_replica_has_and_a_drained_one_nothing() -> None:
    times = poisson(100.0, 60.0, seed=5)
    crash = simulate(flat(10.0), ONE_ROW, times, replicas=2, outages=[Outage(0, 20.0, 40.0, noticed=22.0)])
    lost = np.asarray(times)[crash.ended == Ended.LOST]
    # An idle dead replica has nothing outstanding: least-outstanding sends it everything until it is noticed.
    assert 100 < len(lost) < 220
    assert lost.min() > 19.5
    assert lost.max() <= 22.0
    drained = simulate(flat(10.0), ONE_ROW, times, replicas=2, outages=[Outage(0, 20.0, 40.0)])
    assert drained.share(Ended.WHOLE) == 1.0
    assert drained.percentile(99) > simulate(flat(10.0), ONE_ROW, times, replicas=2).percentile(99)


def test_the_same_arguments_give_the_same_result_and_another_seed_another() -> None:
    curve = flat(10.0, lengths=(50, 100, 200), jitter=(0.9, 1.0, 1.4), tokens=(50, 400))
    times = poisson(40.0, 60.0, seed=6)
    first, again, other = (simulate(curve, RecommenderConfig(), times, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.latency_ms, again.latency_ms)
    assert (first.latency_ms != other.latency_ms).any()


def test_request_n_has_the_nth_length_where_none_is_drawn() -> None:
    curve = Curve(tokens=(100, 400), ms=(10.0, 40.0), lengths=(100, 200, 400))
    result = simulate(curve, RecommenderConfig(), np.arange(5.0), draw_lengths=False)
    np.testing.assert_allclose(result.latency_ms, [10.0, 20.0, 40.0, 10.0, 20.0])


@pytest.mark.parametrize("times", [[], [1.0, 0.5], [-1.0], [float("nan")], [[0.0]]])
def test_bad_arrivals_are_refused(times: list[float]) -> None:
    with pytest.raises(DataError, match="simulate arrivals"):
        simulate(flat(10.0), RecommenderConfig(), times)


@pytest.mark.parametrize("outage", [Outage(1, 0.0, 1.0), Outage(0, 2.0, 1.0), Outage(0, 1.0, 2.0, noticed=3.0)])
def test_bad_outages_are_refused(outage: Outage) -> None:
    with pytest.raises(ConfigError, match="simulate outages"):
        simulate(flat(10.0), RecommenderConfig(), [0.0], outages=[outage])
