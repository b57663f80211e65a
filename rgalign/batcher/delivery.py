"""The batcher's threads, and who waits for which answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import NamedTuple, TypeAlias

from rgalign import _C
from rgalign.batcher.answers import NotAnswered, Outcome, forked, not_answered
from rgalign.batcher.config import BatcherConfig
from rgalign.batcher.model_call import BatchBuffers, Model, ModelCall, Row


class Answer(Future[Row]):
    """A future that asks the batcher before it is cancelled: whoever comes first gives the one answer."""

    request: tuple[Delivery, int, int] | None = None  # None: refused

    def cancel(self) -> bool:
        if self.request is None:
            return False
        delivery, tag, number = self.request
        if not delivery.cancel(tag, number):
            return self.cancelled()
        super().cancel()
        self.set_running_or_notify_cancel()  # or concurrent.futures.wait would not see it
        return True


class Awaited(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Row]


Resolved: TypeAlias = tuple["asyncio.Future[Row]", Row | None, NotAnswered | None]


class Delivery:
    """What the threads hold: they must not keep the Batcher itself alive."""

    def __init__(self, config: BatcherConfig, model: Model, buffers: Sequence[BatchBuffers]) -> None:
        self.config = config
        self.model = model
        self.pending: dict[int, Answer | Awaited] = {}
        self.tags = itertools.count()
        self.core = _C.Batcher(**config.limits(), pad_token=config.pad_token, first_position=config.first_position)
        self.in_model = [False] * len(buffers)
        # Daemons, for a model that never returns must not keep the process alive.
        self.hearer = threading.Thread(target=self._hear, name="rgalign-batcher-answers", daemon=True)
        self.workers = [
            threading.Thread(
                target=self._work, args=(worker, own), name=f"rgalign-batcher-worker-{worker}", daemon=True
            )
            for worker, own in enumerate(buffers)
        ]
        for thread in (self.hearer, *self.workers):
            thread.start()
        _deliveries.add(self)

    def cancel(self, tag: int, request: int) -> bool:
        won = self.core.cancel(request)
        if won:
            del self.pending[tag]
        return won

    def close(self, drain_ms: float) -> None:
        if self.core.forked:
            return
        self.core.close(drain_ms)
        if self.hearer is not threading.current_thread():
            self.hearer.join()
        for worker, thread in enumerate(self.workers):
            # Who is in the model may be there forever, and has nobody left to answer; the others are handing over.
            while not self.in_model[worker] and thread.is_alive() and thread is not threading.current_thread():
                thread.join(0.01)

    def _hear(self) -> None:
        """Hands over the answers that no model gives: deadlines, closing."""
        while (answers := self.core.wait_answers()) is not None:
            self._hand_over((tag, None, not_answered(Outcome(outcome))) for tag, outcome in answers)

    def _work(self, worker: int, buffers: BatchBuffers) -> None:
        while (taken := self.core.take(worker, *buffers)) is not None:
            tags, shape = taken
            call = ModelCall(self.core, self.config, self.model, worker, buffers, len(tags))
            self.in_model[worker] = True
            call.rows_from(0, shape)
            self.in_model[worker] = False
            won = self.core.finish(worker, call.outcomes)
            self._hand_over(itertools.compress(zip(tags, call.rows, call.errors, strict=True), won))
            del call  # or this batch's rows live until the next

    def _hand_over(self, answers: Iterable[tuple[int, Row | None, NotAnswered | None]]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[Resolved]] = {}
        take = self.pending.pop
        for tag, row, error in answers:
            waiter = take(tag)
            if isinstance(waiter, Awaited):
                loops.setdefault(waiter.loop, []).append((waiter.future, row, error))
            elif error is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(row)  # type: ignore[arg-type]  # a row or an error
        for loop, resolved in loops.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody awaits these
                loop.call_soon_threadsafe(_resolve, resolved)


def _resolve(resolved: Sequence[Resolved]) -> None:
    for future, row, error in resolved:
        if future.done():  # its task was cancelled meanwhile
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(row)  # type: ignore[arg-type]  # a row or an error


_deliveries: weakref.WeakSet[Delivery] = weakref.WeakSet()


def _fail_pending_in_child() -> None:
    """The child's copies of futures would wait for threads that it does not have."""
    for delivery in list(_deliveries):
        for waiter in delivery.pending.values():
            if isinstance(waiter, Answer):
                waiter._condition = threading.Condition()  # its lock may have been held at the fork
                waiter.set_exception(forked())
        delivery.pending.clear()


os.register_at_fork(after_in_child=_fail_pending_in_child)
