"""From serving to ended: what is under way, whether more is taken, and when those left are told that it is over."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from rgalign.service.errors import ErrorCode, ServiceFault


class Lifecycle:
    """Of one service, on one event loop.

    Attributes:
        draining: takes no new work; not ready.
        over: done when those that are still under way are answered ``shutting_down``.
        in_flight: accepted and not answered.
    """

    def __init__(self) -> None:
        self.draining = False
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def accepted(self) -> Iterator[None]:
        """Round a request that is worked on.

        Raises:
            ServiceFault: ``draining``, before anything is done.
        """
        if self.draining:
            raise ServiceFault(ErrorCode.DRAINING, retry_after_ms=1_000, closes=True)
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()

    async def drained(self, timeout_s: float) -> bool:
        """Takes no more from now on; whether all that was accepted is answered within ``timeout_s``."""
        self.draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def end(self) -> None:
        """Answers who is left ``shutting_down``."""
        self.draining = True
        if not self.over.done():
            self.over.set_result(None)
        await self._idle.wait()
