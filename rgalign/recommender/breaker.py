"""Circuit breaker: after so many failures in a row the reasoner is left alone, and then probed until it is well.

    closed --failures in a row--> open --cooldown--> half_open (one probe under way) --answer--> closed
                                    ^------------------- no answer ---------------'

Probes are prompts of its own, so that no user waits for a reasoner that is known to be ill.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rgalign.recommender.answer import BreakerState
from rgalign.recommender.config import BreakerConfig


class Breaker:
    """Thread-safe.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, config: BreakerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0  # in a row
        self._state: BreakerState = "closed"
        self._tried = 0.0  # when it opened, or the last probe began

    @property
    def state(self) -> BreakerState:
        return self._state

    def succeeded(self) -> None:
        """The reasoner gave a row."""
        with self._lock:
            self._failures, self._state = 0, "closed"

    def failed(self) -> None:
        """It raised, or gave NaN, another shape, or nothing in time."""
        with self._lock:
            self._failures += 1
            if self._state == "half_open" or (self._state == "closed" and self._failures >= self._config.failures):
                self._state, self._tried = "open", self._clock()

    def may_probe(self) -> bool:
        """True once a cooldown, to the caller who must then probe and report."""
        with self._lock:
            due = self._state == "open" and self._clock() - self._tried >= self._config.cooldown_ms / 1_000
            if due:
                self._state, self._tried = "half_open", self._clock()
            return due
