"""The ledger: promised percentiles, their intervals, and milliseconds that add up."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rgalign.bench.loadgen_ledger import (
    STAGES,
    Ended,
    Ledger,
    by_second,
    from_json,
    interval_of_percentile,
    merged,
    percentile_of_all,
    plain,
    stages_ms,
    summary,
    to_json,
    where_time_went,
)


def ended(number: int, latency_ms: float, outcome: str = "ok", at: float = 0.0, late_ms: float = 1.0) -> Ended:
    timings = (2.0, 3.0, 10.0, 1.0, 16.5) if outcome in ("ok", "degraded") else None
    return Ended(number, at, late_ms, latency_ms, outcome, timings)


def test_a_percentile_is_of_all_requests_and_who_got_nothing_waited_for_ever() -> None:
    values = [float(value) for value in range(1, 100)]
    assert percentile_of_all(values, 99, 50) == 50  # the least value that half of them do not exceed
    assert percentile_of_all(values, 100, 99) == 99
    assert percentile_of_all(values[:98], 100, 99) == math.inf
    assert percentile_of_all([], 0, 99) == math.inf
    ledger = Ledger([*(ended(n, 5.0) for n in range(98)), ended(98, 1.0, "degraded"), ended(99, 1.0, "overloaded")])
    assert ledger.promised_ms(98) == 5
    assert ledger.promised_ms(98, since_sent=True) == 4
    assert ledger.promised_ms(99) == math.inf
    assert ledger.latency_ms(100) == 5


def test_the_interval_holds_the_true_percentile_nineteen_times_of_twenty() -> None:
    rng = np.random.default_rng(0)
    true = -math.log(0.01)  # of an exponential distribution
    draws = [interval_of_percentile(rng.exponential(1.0, 1_000).tolist(), 1_000, 99) for _ in range(600)]
    held = np.mean([low <= true <= high for low, high in draws])
    assert 0.92 < held < 0.99
    assert interval_of_percentile([1.0] * 99, 100, 99)[1] == math.inf  # one of a hundred had no answer
    assert interval_of_percentile([], 0, 99) == (math.inf, math.inf)


def test_the_stages_of_a_request_add_up_to_its_latency() -> None:
    requests = [ended(0, 20.0), ended(1, 40.0, "degraded"), Ended(2, 0.0, 2.0, 9.0, "ok")]
    parts = stages_ms(requests)
    assert parts.sum(axis=1) == pytest.approx([20.0, 40.0, 9.0])
    assert dict(zip(STAGES, parts[0], strict=True)) == pytest.approx(
        {"late": 1, "http": 2.5, "other": 0.5, "tokenise": 2, "queue": 3, "reason": 10, "rank": 1}
    )
    assert parts[2].tolist() == [2, 7, 0, 0, 0, 0, 0]  # a target that tells no times
    found = where_time_went(Ledger([*requests, ended(3, 1.0, "overloaded")]))
    assert sum(stage["mean"] for stage in found.values()) == pytest.approx(23.0, abs=0.01)
    assert sum(stage["slowest_1_percent"] for stage in found.values()) == pytest.approx(40.0, abs=0.01)
    assert where_time_went(Ledger([ended(0, 1.0, "overloaded")])) == {}


def test_seconds_count_each_request_where_it_was_scheduled() -> None:
    ledger = Ledger([ended(0, 1_500.0, at=0.2), ended(1, 10.0, at=0.9), ended(2, 5.0, "overloaded", at=2.1)])
    first, second, third = by_second(ledger)
    assert (first["offered"], first["ok"], first["waiting"], first["max_ms"]) == (2, 2, 1, 1_500.0)
    assert (second["offered"], second["waiting"]) == (0, 0)
    assert (third["offered"], third["ok"], third["other"]) == (1, 0, 1)
    assert by_second(Ledger()) == []


def test_several_processes_make_one_ledger() -> None:
    parts = [Ledger([ended(0, 30.0), ended(2, 1.0, at=1.0)], 1.0, 4.0), Ledger([ended(1, 10.0)], 3.0, 5.0)]
    read = [from_json(to_json(part)) for part in parts]
    assert read == parts
    whole = merged(read)
    assert [each.number for each in whole.ended] == [1, 0, 2]
    assert (whole.cpu_s, whole.wall_s, whole.processes) == (4.0, 5.0, 2)
    assert whole.busy == pytest.approx(0.4)
    numbers = summary(3.0, 1.0, 3, whole)
    assert (numbers["generator_processes"], numbers["outcomes"]) == (2, {"ok": 3})


def test_a_request_twice_in_the_ledger_is_an_error() -> None:
    with pytest.raises(SystemExit, match="2 requests, but"):
        summary(1.0, 1.0, 2, Ledger([ended(0, 1.0), ended(0, 1.0)]))


def test_json_has_null_for_what_is_not_finite() -> None:
    assert plain({"a": math.inf, "b": [1.0, math.nan], "c": {"d": (2, -math.inf)}}) == {
        "a": None,
        "b": [1.0, None],
        "c": {"d": [2, None]},
    }
