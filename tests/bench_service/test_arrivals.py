"""Arrivals: of the asked rate, in order, fixed by the seed, and as uneven as they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rgalign.errors import ConfigError, DataError
from rgalign.planner.arrivals import Arrivals, Bursts, bursty, dispersion, poisson, read_trace, replayed


@pytest.mark.parametrize("kind", ["poisson", "bursty"])
def test_arrivals_are_in_order_of_the_asked_rate_and_fixed_by_the_seed(kind: str) -> None:
    arrivals = Arrivals(kind)  # type: ignore[arg-type]
    times = np.asarray(arrivals.at(50.0, 200.0, 3))
    assert arrivals.at(50.0, 200.0, 3) == times.tolist() != arrivals.at(50.0, 200.0, 4)
    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times < 200)).all()
    assert times[0] < 2 < 198 < times[-1]
    assert len(times) == pytest.approx(10_000, abs=5 * 10_000**0.5)


def test_bursts_are_uneven_and_poisson_arrivals_are_not() -> None:
    even, uneven = (dispersion(make(50.0, 400.0, 0), 400.0) for make in (poisson, bursty))
    assert even == pytest.approx(1.0, abs=0.3)
    assert uneven is not None
    assert uneven > 5
    assert dispersion([0.1], 1.9) is None


def test_a_burst_has_the_rate_and_the_share_of_time_that_it_says() -> None:
    bursts = Bursts(factor=5.0, share=0.1, seconds=2.0)
    times = np.asarray(bursty(1_000.0, 2_000.0, 1, bursts))
    counts = np.bincount((times * 10).astype(int), minlength=20_000)  # of 0.1 s
    calm, burst = 100 * (1 - 0.5) / 0.9, 500
    in_burst = counts > (calm + burst) / 2
    assert in_burst.mean() == pytest.approx(0.1, abs=0.03)
    # the path of states decides the scale, so the ratio of the rates is what holds
    assert np.median(counts[in_burst]) / np.median(counts[~in_burst]) == pytest.approx(burst / calm, rel=0.1)


@pytest.mark.parametrize("wrong", [{"factor": 1.0}, {"share": 0.0}, {"factor": 10.0, "share": 0.1}, {"seconds": 0.0}])
def test_bursts_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="bursts: required factor above 1"):
        Bursts(**wrong)


def test_a_trace_keeps_its_gaps_at_another_rate_and_starts_over() -> None:
    trace = [100.0, 101.0, 101.0, 104.0]  # four in 4 s and a mean gap of 4/3
    times = replayed(trace, 4.0, 2.5)
    assert len(times) == pytest.approx(10, abs=1)
    first = np.asarray(times[:4])
    assert np.diff(first) / np.diff(first)[0] == pytest.approx([1, 0, 3])
    assert times[4] == pytest.approx(1.0)  # four at 4 a second
    assert np.diff(times[4:8]) == pytest.approx(np.diff(first))


def test_a_trace_is_read_with_and_without_contexts(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("3\n3.5\n9\n")
    assert read_trace(path) == ([3.0, 3.5, 9.0], [])
    path.write_text('{"at": 1, "context": {"a": 1}}\n{"at": 2, "context": {}}\n')
    assert read_trace(path) == ([1.0, 2.0], [{"a": 1}, {}])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1\n0.5\n", "trace:2: required a time from 1 on"),
        ("1\nx\n", "trace:2: required a number or"),
        ("1\nNaN\n", "trace:2: required seconds"),
        ("1\ntrue\n", "trace:2: required seconds"),
        ("1\n1\n", "required two arrivals at different times"),
        ("1\n", "required two arrivals at different times"),
        ('{"at": 1, "context": {}}\n2\n', "required a context on every line, or on none; received 1 of 2"),
    ],
)
def test_a_trace_that_is_none_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "trace").write_text(text)
    with pytest.raises(DataError, match=complaint):
        read_trace(tmp_path / "trace")


def test_no_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_trace(tmp_path / "none")
