"""The open loop, and what it can ask: the HTTP service, a Recommender in this process.

Requests are sent at their scheduled times however many are unanswered, and latency counts from those times: what waits
because the server, or this generator, is late is in it (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from rgalign.bench.http_wire import Answer, Closed, Cut, Wire, get, post
from rgalign.bench.loadgen_ledger import DEGRADED, LOST, TIMED, WHOLE, Ended, Ledger, Reply

PATIENCE_S = 30.0  # beyond every deadline: who gets no answer by then is lost
ROUTE = "/v1/recommend"
HEALTH = "/health/live"
WARM_S = 10.0
SERIES = "rgalign_http_requests_total"

Context = Mapping[str, Any]
Ask = Callable[[Context], Awaitable[Reply]]


async def open_loop(
    ask: Ask,
    contexts: Sequence[Context],
    arrivals: Sequence[tuple[int, float]],
    *,
    began: float | None = None,
    patience_s: float = PATIENCE_S,
) -> Ledger:
    """Asks for each of ``arrivals`` (its number, seconds from ``began``) and waits for all answers.

    Args:
        contexts: request n asks with the n-th, over again from the first.
        began: of ``time.perf_counter``, which processes of one machine share; None: now.
    """
    ledger = Ledger()
    start = time.perf_counter() if began is None else began
    cpu_before = time.process_time()

    async def one(number: int, at: float) -> None:
        late_ms = (time.perf_counter() - start - at) * 1e3
        try:
            reply = await asyncio.wait_for(ask(contexts[number % len(contexts)]), patience_s)
        except TimeoutError:
            reply = Reply(LOST)
        latency_ms = (time.perf_counter() - start - at) * 1e3
        ledger.ended.append(Ended(number, at, late_ms, latency_ms, reply.outcome, reply.timings))

    waiting = set()
    for number, at in arrivals:
        if (pause := start + at - time.perf_counter()) > 0:
            await asyncio.sleep(pause)
        task = asyncio.ensure_future(one(number, at))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    await asyncio.gather(*waiting)
    ledger.cpu_s = time.process_time() - cpu_before
    ledger.wall_s = time.perf_counter() - start
    return ledger


class HttpTarget:
    """Idle keep-alive connections are used first; a request that finds none opens another, in its own time."""

    def __init__(self, host: str, port: int, k: int, deadline_ms: float | None) -> None:
        self.host, self.port = host, port
        self.asked = {"k": k, "deadline_ms": deadline_ms}
        self._idle: list[Wire] = []

    async def ask(self, context: Context) -> Reply:
        answer = await self._post(context)
        return answer if isinstance(answer, Reply) else reply_of(answer)

    async def answer(self, context: Context) -> Any:
        """The body of the answer to one context.

        Raises:
            ConnectionError: there was none, or none with status 200.
        """
        answer = await self._post(context)
        if isinstance(answer, Reply) or answer.status != 200:
            shown = answer.outcome if isinstance(answer, Reply) else f"status {answer.status}"
            raise ConnectionError(f"{self.host}:{self.port}: {shown}")
        return answer.json()

    async def _post(self, context: Context) -> Answer | Reply:
        return await self._send(post(ROUTE, {"context": context, **self.asked}))

    async def _send(self, request: bytes) -> Answer | Reply:
        while self._idle and self._idle[-1].ended:
            await self._idle.pop().close()
        try:
            wire = self._idle.pop() if self._idle else await Wire.open(self.host, self.port)
        except OSError:
            return Reply("no connection")
        try:
            answer = await wire.ask(request)
        except (Closed, Cut):
            return Reply("closed")
        except asyncio.CancelledError:
            wire.abort()
            raise
        if answer.headers.get("connection") == "close":
            await wire.close()
        else:
            self._idle.append(wire)
        return answer

    async def warm(self, contexts: Sequence[Context], count: int) -> None:
        """Opens ``count`` connections, uses each once, for no work of the model's, and waits for a whole answer."""
        await asyncio.gather(*(self._send(get(HEALTH)) for _ in range(count)))
        await until_whole(self.ask, contexts)

    async def counted(self) -> int | None:
        """Requests of the route that the server says it has answered; None of a target without our metrics."""
        try:
            async with await Wire.open(self.host, self.port) as wire:
                answer = await wire.ask(get("/metrics"))
        except (OSError, Closed, Cut):
            return None
        text = answer.body.decode()
        if answer.status != 200 or SERIES not in text:
            return None
        lines = [line for line in text.splitlines() if line.startswith(SERIES + "{") and f'"{ROUTE}"' in line]
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines)

    async def close(self) -> None:
        for wire in self._idle:
            await wire.close()
        self._idle.clear()


async def until_whole(ask: Ask, contexts: Sequence[Context], seconds: float = WARM_S) -> None:
    """One request at a time until an answer is whole (the breaker of an earlier run has closed), or for so long."""
    ends = time.perf_counter() + seconds
    for context in itertools.cycle(contexts):
        if (await ask(context)).outcome == WHOLE or time.perf_counter() > ends:
            return
        await asyncio.sleep(0.1)


def reply_of(answer: Answer) -> Reply:
    """Our service's answers and errors; another's error is ``status N``."""
    body = answer.json() if answer.body else {}
    if answer.status != 200:
        error = body.get("error") if isinstance(body, Mapping) else None
        return Reply(str(error["code"]) if isinstance(error, Mapping) else f"status {answer.status}")
    timings = body.get("timings")
    times = None if timings is None else tuple(float(timings[name]) for name in TIMED)
    return Reply(WHOLE if body["degraded"] is None else DEGRADED, times)


def library_ask(recommender: Any, k: int, deadline_ms: float | None) -> Ask:
    """The same without HTTP, on this event loop: a ``rgalign.service.face.Recommender``."""
    from rgalign.service.errors import fault_of

    async def ask(context: Context) -> Reply:
        try:
            answer = await recommender.arecommend(context, k, deadline_ms=deadline_ms)
        except Exception as error:
            return Reply(fault_of(error).code.value)
        timings = tuple(float(getattr(answer.timings, name)) for name in TIMED)
        return Reply(WHOLE if answer.degraded is None else DEGRADED, timings)

    return ask
