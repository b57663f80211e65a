"""When a client may ask again: only what has no effect, only while there is time, and never so often that retries keep
an overloaded server overloaded.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import httpx
from pydantic import Field

from rgalign.config import Config

# The server says when to come again; a request that was refused so had no effect.
RETRIED_STATUSES = (429, 503)
# Of what stands before the service, when the service went away: a proxy's own words, not our JSON.
RETRIED_OF_PROXIES = (500, 502, 504)
# It never arrived, or a connection that was kept alive had just been closed. A timeout while waiting is not among them:
# the time is gone.
RETRIED_FAILURES = (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


class RetryPolicy(Config):
    """Each request earns ``share`` of a retry, up to ``saved``; each retry spends one."""

    max_attempts: int = Field(default=3, ge=1, le=10)
    first_pause_s: float = Field(default=0.05, gt=0)
    max_pause_s: float = Field(default=2.0, gt=0)
    share: float = Field(default=0.1, ge=0, le=1)
    saved: float = Field(default=10.0, ge=0)


class Retries:
    """The retries that one client has left."""

    def __init__(self, policy: RetryPolicy, rng: Callable[[], float] = random.random) -> None:
        self.policy = policy
        self._rng = rng
        self._left = policy.saved

    def begin(self) -> float:
        """Once a request; the moment it began."""
        self._left = min(self.policy.saved, self._left + self.policy.share)
        return time.monotonic()

    def pause(self, attempt: int, failure: httpx.Response | httpx.TransportError, time_left_s: float) -> float | None:
        """Seconds until attempt ``attempt + 1``; None: that was the last.

        Args:
            attempt: the one that failed, from 1.
        """
        if attempt >= self.policy.max_attempts or self._left < 1 or not retriable(failure):
            return None
        asked_s = retry_after_s(failure)
        backoff = min(self.policy.max_pause_s, self.policy.first_pause_s * 2 ** (attempt - 1))
        pause: float = max(asked_s, backoff) * (1 + 0.5 * self._rng())  # apart, so that they do not come back together
        if pause >= time_left_s or asked_s > self.policy.max_pause_s:
            return None
        self._left -= 1
        return pause


def retriable(failure: httpx.Response | httpx.TransportError) -> bool:
    if isinstance(failure, httpx.Response):
        ours = failure.headers.get("content-type", "").startswith("application/json")
        return failure.status_code in (RETRIED_STATUSES if ours else RETRIED_STATUSES + RETRIED_OF_PROXIES)
    return isinstance(failure, RETRIED_FAILURES)


def retry_after_s(failure: httpx.Response | httpx.TransportError) -> float:
    """What the body says in milliseconds, which Retry-After rounds up to seconds; 0: nothing."""
    if not isinstance(failure, httpx.Response):
        return 0.0
    try:
        milliseconds = failure.json()["error"]["retry_after_ms"]
    except (ValueError, KeyError, TypeError):
        header = failure.headers.get("retry-after", "")
        return float(header) if header.isdigit() else 0.0
    return float(milliseconds) / 1e3 if isinstance(milliseconds, int | float) else 0.0
