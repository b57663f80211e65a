"""Batcher: requests in, futures out."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rgalign.batcher.answers import NotAnswered, Outcome, forked, not_answered
from rgalign.batcher.config import BatcherConfig
from rgalign.batcher.delivery import Answer, Awaited, Delivery
from rgalign.batcher.model_call import BatchBuffers, Model, Row, checked_buffers
from rgalign.errors import DataError

Priority: TypeAlias = Literal["interactive", "bulk"]
PRIORITIES = ("interactive", "bulk")
INT32_RANGE = np.iinfo(np.int32)
HASH_BITS = (1 << 64) - 1


@dataclass(frozen=True)
class BatcherCounters:
    """``submitted == sum(answered.values()) + waiting + in_model``, at any moment."""

    submitted: int
    answered: dict[Outcome, int]
    waiting: int
    in_model: int
    most_waiting: int
    batches: int
    rows: int
    tokens: int
    computed_tokens: int
    late_rows: int  # left the model after their request was answered otherwise; dropped
    queue_cap: int
    rows_per_second: float  # capacity measured; 0: nothing yet


class Batcher:
    """Groups requests of any threads and event loops into batches for a model.

    Args:
        config: budgets and bounds.
        model: called with a ``Batch`` on a worker thread, from ``num_workers`` threads at a time; returns [B, …]
            floats, which are copied.
        buffers: one for each worker; None: made here.

    Raises:
        DataError: buffers of another number, size, dtype or layout.
    """

    def __init__(self, config: BatcherConfig, model: Model, *, buffers: Sequence[BatchBuffers] | None = None) -> None:
        self.config = config
        self._delivery = Delivery(config, model, checked_buffers(config, buffers))
        self._finalizer = weakref.finalize(self, self._delivery.close, 0.0)

    def submit(
        self,
        token_ids: ArrayLike,
        *,
        deadline_ms: float | None = None,
        client: Hashable = None,
        priority: Priority = "interactive",
    ) -> Future[Row]:
        """Never waits. The future ends in the request's row, one of ``NotAnswered``, or CancelledError.

        Args:
            token_ids: [L] integers; fastest as a C-contiguous int32 array. Copied.
            deadline_ms: from now; None: the configuration's.
            client: who asks, for ``max_per_client``; told from others by its hash. None: nobody in particular.
            priority: bulk goes when no interactive request waits, and at least every ``bulk_every`` batches.

        Raises:
            DataError: not [L] integers of 32 bits, or a deadline that is no number.
            ForkedError: this is a forked child.
        """
        future = Answer()
        entered = self._enter(future, token_ids, deadline_ms, client, priority)
        if isinstance(entered, NotAnswered):
            future.set_exception(entered)
        else:
            future.request = entered
        return future

    async def asubmit(
        self,
        token_ids: ArrayLike,
        *,
        deadline_ms: float | None = None,
        client: Hashable = None,
        priority: Priority = "interactive",
    ) -> Row:
        """``submit`` for coroutines: one wake-up of the event loop for all the rows of a batch that belong to it.

        Cancelling the task cancels the request.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Row] = loop.create_future()
        entered = self._enter(Awaited(loop, future), token_ids, deadline_ms, client, priority)
        if isinstance(entered, NotAnswered):
            raise entered
        try:
            return await future
        except asyncio.CancelledError:
            delivery, tag, number = entered
            delivery.cancel(tag, number)
            raise

    def counters(self) -> BatcherCounters:
        """Of all requests since the beginning."""
        values = self._delivery.core.counters()
        answered = {Outcome(i): count for i, count in enumerate(values.pop("answered"))}
        return BatcherCounters(answered=answered, **values)

    def close(self, drain_ms: float = 5_000.0) -> None:
        """Refuses new requests, serves those that wait for at most ``drain_ms``, answers the rest ``BatcherClosed``.

        Returns when everyone is answered; a model that hangs is left behind on its daemon thread.
        """
        self._delivery.close(drain_ms)
        self._finalizer.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _enter(
        self,
        waiter: Answer | Awaited,
        token_ids: ArrayLike,
        deadline_ms: float | None,
        client: Hashable,
        priority: Priority,
    ) -> tuple[Delivery, int, int] | NotAnswered:
        """What Delivery.cancel wants, or the refusal."""
        if deadline_ms is None:
            deadline_ms = self.config.deadline_ms
        elif not math.isfinite(deadline_ms):
            raise DataError(where="submit deadline_ms", required="a number of milliseconds", received=str(deadline_ms))
        if priority not in PRIORITIES:
            raise DataError(where="submit priority", required="interactive or bulk", received=repr(priority))
        who = 0 if client is None else hash(client) & HASH_BITS or 1
        delivery = self._delivery
        tag = next(delivery.tags)
        delivery.pending[tag] = waiter  # before the core can answer
        try:
            number = delivery.core.submit(tag, token_ids, deadline_ms, who, priority == "bulk")
        except (
            TypeError
        ):  # not the array that needs no copy: checked only here, for this call is counted in microseconds
            delivery.pending.pop(tag)
            return self._enter(waiter, _token_ids(token_ids), deadline_ms, client, priority)
        if isinstance(number, int):
            return delivery, tag, number
        del delivery.pending[tag]
        if number is None:
            raise forked()
        outcome, retry_after_ms = number
        return not_answered(Outcome(outcome), retry_after_ms=retry_after_ms)


def _token_ids(value: ArrayLike) -> NDArray[np.int32]:
    """[L] int32, C-contiguous."""
    array = np.asarray(value)
    if array.size == 0 and array.ndim == 1:
        return np.empty(0, np.int32)
    inside = array.dtype.kind in "iu" and array.ndim == 1
    if not (inside and array.min() >= INT32_RANGE.min and array.max() <= INT32_RANGE.max):
        received = f"{array.dtype} of shape {array.shape}"
        raise DataError(where="submit token_ids", required="[L] integers of 32 bits", received=received)
    return np.ascontiguousarray(array, np.int32)
