"""RateLimit: requests and tokens a minute, as a server's quota counts them.

Two buckets that refill steadily and hold what one second brings, but at least one request: a run starts slowly instead
of spending a minute's quota at once. A call costs its expected tokens when it starts and is corrected when the server
has counted them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

RESOLUTION_S = 1e-6  # shorter waits are none: a sum of float rounding, not of time

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


class _Bucket:
    """``rate`` a second. The level may fall below zero: then the next call waits until it is back."""

    def __init__(self, per_minute: float, now: float) -> None:
        self.rate = per_minute / 60
        self.room = max(1.0, self.rate)
        self.level = self.room
        self.time = now

    def refill(self, now: float) -> None:
        self.level = min(self.room, self.level + (now - self.time) * self.rate)
        self.time = now

    def wait_s(self, amount: float) -> float:
        """Until the bucket holds the amount, or is full: a call larger than the bucket goes when it is full."""
        return max(0.0, (min(amount, self.room) - self.level) / self.rate)


class RateLimit:
    """Keeps calls under both limits. For one event loop.

    Args:
        requests_per_minute, tokens_per_minute: None is no limit.
        clock, sleep: of the event loop; others in tests.
    """

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        *,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        now = clock()
        self._requests = None if requests_per_minute is None else _Bucket(requests_per_minute, now)
        self._tokens = None if tokens_per_minute is None else _Bucket(tokens_per_minute, now)
        self._paused_until = now
        self._turn = asyncio.Lock()

    async def acquire(self, tokens: float) -> None:
        """Waits until one call of about so many tokens may start; calls go in the order they came."""
        async with self._turn:
            while (wait := self._wait_s(tokens)) > RESOLUTION_S:
                await self._sleep(wait)
            for bucket, amount in ((self._requests, 1.0), (self._tokens, tokens)):
                if bucket is not None:
                    bucket.level -= amount

    def correct(self, expected_tokens: float, tokens: float) -> None:
        """A call's tokens as the server counted them."""
        if self._tokens is not None:
            self._tokens.level += expected_tokens - tokens

    def pause(self, seconds: float) -> None:
        """No call starts for so long: the server said when to come back."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def _wait_s(self, tokens: float) -> float:
        now = self._clock()
        waits = [self._paused_until - now]
        for bucket, amount in ((self._requests, 1.0), (self._tokens, tokens)):
            if bucket is not None:
                bucket.refill(now)
                waits.append(bucket.wait_s(amount))
        return max(waits)
