"""Rate limits, on a clock that only sleeping moves."""

from __future__ import annotations

import asyncio

import pytest

from rgalign.training.teachers.rate_limit import RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def starts(limit: RateLimit, clock: Clock, tokens: list[float]) -> list[float]:
    """When each call started."""

    async def run() -> list[float]:
        times = []
        for each in tokens:
            await limit.acquire(each)
            times.append(clock() - 100.0)
        return times

    return asyncio.run(run())


def test_requests_a_minute() -> None:
    clock = Clock()
    limit = RateLimit(120, None, clock=clock, sleep=clock.sleep)
    times = starts(limit, clock, [1.0] * 8)
    assert times == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0])  # a second's worth at once, then steadily


def test_slow_limits_start_with_one_request() -> None:
    clock = Clock()
    limit = RateLimit(6, None, clock=clock, sleep=clock.sleep)
    assert starts(limit, clock, [1.0] * 3) == pytest.approx([0.0, 10.0, 20.0])


def test_tokens_a_minute_and_calls_larger_than_a_second() -> None:
    clock = Clock()
    limit = RateLimit(None, 600, clock=clock, sleep=clock.sleep)
    assert starts(limit, clock, [100.0] * 4) == pytest.approx([0.0, 10.0, 20.0, 30.0])


def test_the_servers_count_corrects_the_guess() -> None:
    clock = Clock()
    limit = RateLimit(None, 600, clock=clock, sleep=clock.sleep)
    starts(limit, clock, [100.0])
    limit.correct(100.0, 40.0)
    assert starts(limit, clock, [100.0])[0] == pytest.approx(4.0)


def test_a_pause_holds_every_call() -> None:
    clock = Clock()
    limit = RateLimit(None, None, clock=clock, sleep=clock.sleep)
    limit.pause(7.0)
    limit.pause(3.0)
    assert starts(limit, clock, [1.0, 1.0]) == pytest.approx([7.0, 7.0])


def test_no_limit_never_waits() -> None:
    clock = Clock()
    assert starts(RateLimit(None, None, clock=clock, sleep=clock.sleep), clock, [1e9] * 3) == [0.0, 0.0, 0.0]
