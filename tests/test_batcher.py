"""The batcher from Python: each request gets its row or the reason why not, exactly once, whatever the model does."""

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rgalign.batcher import (
    Batch,
    BatchBuffers,
    Batcher,
    BatcherClosed,
    BatcherConfig,
    ClientCapReached,
    DeadlineExceeded,
    ModelFault,
    NotAnswered,
    Outcome,
    QueueFull,
    WrongLength,
)

PATIENCE_S = 30.0  # only a failing test waits so long


def rows_of(batch: Batch) -> list[NDArray[np.int32]]:
    """Each request's tokens, read from the buffers as a model reads them."""
    lengths = np.diff(batch.cu_seqlens)
    if batch.token_ids.ndim == 2:
        return [batch.token_ids[r, : lengths[r]] for r in range(batch.num_rows)]
    return [batch.token_ids[begin : begin + n] for begin, n in zip(batch.cu_seqlens, lengths, strict=False)]


def echo(batch: Batch) -> NDArray[np.float64]:
    """[B, 2]: each request's first token, and the sum of all."""
    return np.array([[row[0], row.sum()] for row in rows_of(batch)], np.float64)


class Gate:
    """A model that stays in the batch until it is let go; remembers what it was given."""

    def __init__(self, model: Callable[[Batch], Any] = echo) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.batches: list[list[int]] = []
        self._model = model

    def __call__(self, batch: Batch) -> Any:
        self.batches.append([int(row[0]) for row in rows_of(batch)])
        self.entered.release()
        assert self.opened.wait(PATIENCE_S)
        return self._model(batch)

    def wait_until_busy(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE_S)


@contextmanager
def gated(**settings: Any) -> Iterator[tuple[Batcher, Gate]]:
    """A batcher whose model is busy with request 0."""
    gate = Gate()
    with Batcher(BatcherConfig(**settings), gate) as batcher:
        first = batcher.submit([0], deadline_ms=60_000)
        gate.wait_until_busy()
        try:
            yield batcher, gate
        finally:
            gate.opened.set()
            first.exception(PATIENCE_S)


def outcome_of(future: Future[Any]) -> Outcome:
    error = future.exception(PATIENCE_S)
    assert isinstance(error, NotAnswered), error
    return error.outcome


def assert_nobody_is_lost(batcher: Batcher) -> None:
    counters = batcher.counters()
    assert counters.submitted == sum(counters.answered.values()) + counters.waiting + counters.in_model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"token_buckets": (64, 128, 256), "max_tokens": 256, "max_request_tokens": 40},
        {"layout": "padded", "max_waste": 0.5, "pad_token": 7},
        {"layout": "padded", "token_buckets": (16, 40), "row_buckets": (4, 8), "max_rows": 8, "max_request_tokens": 40},
        {"max_rows": 1, "first_position": 109},
        {"num_workers": 3},
    ],
)
def test_every_request_gets_its_own_row(settings: dict[str, Any]) -> None:
    config = BatcherConfig(max_queue=200, **settings)
    seen: list[Batch] = []

    def model(batch: Batch) -> NDArray[np.float64]:
        computed = batch.token_ids.size
        assert batch.num_rows <= config.max_rows
        assert computed <= config.max_tokens
        assert batch.max_seqlen == max(len(row) for row in rows_of(batch))
        assert batch.num_tokens == batch.cu_seqlens[-1] <= computed
        if config.layout == "padded":
            assert not config.row_buckets or len(batch.token_ids) in config.row_buckets
            assert not config.token_buckets or batch.token_ids.shape[1] in config.token_buckets
            firsts = batch.positions[: batch.num_rows, 0]
        else:
            assert not config.token_buckets or computed in config.token_buckets
            firsts = batch.positions[batch.cu_seqlens[:-1]]
        assert (firsts == config.first_position).all()
        padding = batch.token_ids.sum() - sum(row.sum() for row in rows_of(batch))
        assert padding == config.pad_token * (computed - batch.num_tokens)
        seen.append(batch)
        return echo(batch)

    draw = np.random.default_rng(0)
    requests = [draw.integers(0, 1000, draw.integers(1, 41)).astype(np.int32) for _ in range(200)]
    with Batcher(config, model) as batcher:
        futures = [batcher.submit(request, deadline_ms=60_000) for request in requests]
        for request, future in zip(requests, futures, strict=True):
            assert future.result(PATIENCE_S).tolist() == [request[0], request.sum()]
        counters = batcher.counters()
    assert counters.answered[Outcome.ROW] == counters.rows == 200
    assert counters.batches == len(seen)


@pytest.mark.parametrize("token_ids", [[5, 6], (5, 6), np.array([5, 6]), np.array([5, 0, 6, 0], np.int32)[::2]])
def test_any_integers_are_token_ids(token_ids: Any) -> None:
    with Batcher(BatcherConfig(), echo) as batcher:
        assert batcher.submit(token_ids).result(PATIENCE_S).tolist() == [5, 11]


def test_an_idle_model_takes_at_once_and_a_busy_one_lets_the_queue_grow() -> None:
    with gated(max_rows=8) as (batcher, gate):
        futures = [batcher.submit([i]) for i in range(1, 12)]
        gate.opened.set()
        wait(futures, PATIENCE_S)
        assert gate.batches == [[0], [1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11]]


def test_results_are_copied_out_of_the_models_memory() -> None:
    memory = np.zeros((32, 1))

    def model(batch: Batch) -> NDArray[np.float64]:
        memory[: batch.num_rows, 0] = [row[0] for row in rows_of(batch)]
        return memory[: batch.num_rows]

    with Batcher(BatcherConfig(), model) as batcher:
        first = batcher.submit([1]).result(PATIENCE_S)
        batcher.submit([2]).result(PATIENCE_S)
        assert first.tolist() == [1]


def test_batches_are_packed_into_the_callers_buffers() -> None:
    config = BatcherConfig(max_rows=4, max_tokens=64, max_request_tokens=16)
    own = BatchBuffers(*(np.full(size, -1, np.int32) for size in (64, 64, 5)))
    with Batcher(config, echo, buffers=[own]) as batcher:
        batcher.submit([3, 4, 5]).result(PATIENCE_S)
    assert own.token_ids[:4].tolist() == [3, 4, 5, -1]
    assert own.positions[:4].tolist() == [0, 1, 2, -1]
    assert own.cu_seqlens.tolist() == [0, 3, 3, 3, 3]


def test_deadlines_are_kept_while_the_model_hangs() -> None:
    with gated() as (batcher, gate):
        hung = batcher.submit([1], deadline_ms=30)
        assert outcome_of(hung) == Outcome.DEADLINE_QUEUED
        with pytest.raises(TimeoutError, match="the deadline came in the queue"):
            hung.result()
        assert not gate.opened.is_set()
    gate = Gate()
    with Batcher(BatcherConfig(), gate) as batcher:
        running = batcher.submit([1], deadline_ms=500)
        gate.wait_until_busy()
        with pytest.raises(DeadlineExceeded, match="the deadline came in the model"):
            running.result(PATIENCE_S)
        gate.opened.set()
        assert batcher.submit([2], deadline_ms=60_000).result(PATIENCE_S).tolist() == [2, 2]
        assert batcher.counters().late_rows == 1
        assert outcome_of(batcher.submit([1], deadline_ms=0)) == Outcome.DEADLINE_QUEUED


def test_a_cancelled_request_never_reaches_the_model() -> None:
    with gated() as (batcher, gate):
        gone, stays = batcher.submit([1]), batcher.submit([2], deadline_ms=60_000)
        called: list[Future[Any]] = []
        gone.add_done_callback(called.append)
        assert gone.cancel()
        assert gone.cancelled()
        assert called == [gone]
        assert gone.cancel()  # as futures do
        with pytest.raises(CancelledError):
            gone.result()
        assert wait([gone], PATIENCE_S).done == {gone}
        gate.opened.set()
        assert stays.result(PATIENCE_S).tolist() == [2, 2]
        assert not stays.cancel()
        assert gate.batches == [[0], [2]]
        assert batcher.counters().answered[Outcome.CANCELLED] == 1


def test_a_full_queue_says_when_to_come_again() -> None:
    with gated(max_queue=2) as (batcher, _):
        waiting = [batcher.submit([i], deadline_ms=60_000) for i in (1, 2)]
        error = batcher.submit([3]).exception(0)
        assert isinstance(error, QueueFull)
        assert error.retry_after_ms > 0
        assert batcher.counters().most_waiting == 2
        assert waiting[0].cancel()
        assert batcher.submit([4], deadline_ms=60_000).running() is False  # there is room again
        assert_nobody_is_lost(batcher)


def test_a_client_has_its_cap() -> None:
    with gated(max_per_client=2) as (batcher, gate):
        own = [batcher.submit([i], client="a", deadline_ms=60_000) for i in (1, 2)]
        assert isinstance(batcher.submit([3], client="a").exception(0), ClientCapReached)
        others = [batcher.submit([4], client="b", deadline_ms=60_000), batcher.submit([5], deadline_ms=60_000)]
        assert own[0].cancel()
        own.append(batcher.submit([6], client="a", deadline_ms=60_000))
        gate.opened.set()
        for future in (*own[1:], *others):
            future.result(PATIENCE_S)


def test_interactive_goes_first_and_bulk_does_not_starve() -> None:
    with gated(max_rows=1, bulk_every=2) as (batcher, gate):
        futures = [batcher.submit([i], priority="bulk", deadline_ms=60_000) for i in (100, 101)]
        futures += [batcher.submit([i], deadline_ms=60_000) for i in range(1, 6)]
        gate.opened.set()
        wait(futures, PATIENCE_S)
    assert gate.batches == [[0], [1], [2], [100], [3], [4], [101], [5]]


@pytest.mark.parametrize("length", [0, 41])
def test_a_request_that_no_batch_can_hold_is_refused(length: int) -> None:
    with Batcher(BatcherConfig(max_request_tokens=40), echo) as batcher:
        with pytest.raises(WrongLength):
            batcher.submit([1] * length).result(0)


def broken(batch: Batch) -> Any:
    """Faults by token: 13 raises, 14 gives NaN, 15 infinity."""
    firsts = np.array([row[0] for row in rows_of(batch)], np.float64)
    if (firsts == 13).any():
        raise ValueError("unlucky")
    firsts[firsts == 14] = np.nan
    firsts[firsts == 15] = np.inf
    return firsts[:, None]


def test_only_the_rows_at_fault_fail() -> None:
    gate = Gate(broken)
    with Batcher(BatcherConfig(), gate) as batcher:
        first = batcher.submit([1])
        gate.wait_until_busy()
        futures = {i: batcher.submit([i, i], deadline_ms=60_000) for i in range(2, 20)}
        gate.opened.set()
        for i, future in futures.items():
            if i not in (13, 14, 15):
                assert future.result(PATIENCE_S).tolist() == [i]
        assert first.result(PATIENCE_S).tolist() == [1]
        assert [outcome_of(futures[i]) for i in (13, 14, 15)] == [
            Outcome.MODEL_RAISED, Outcome.MODEL_NOT_FINITE, Outcome.MODEL_NOT_FINITE,
        ]  # fmt: skip
        error = futures[13].exception()
        assert isinstance(error, ModelFault)
        assert isinstance(error.__cause__, ValueError)
        assert "unlucky" in str(error)
    # One batch of eighteen, halved until the thirteenth stood alone: two calls a level, five levels at most.
    assert 2 + 4 <= len(gate.batches) <= 2 + 10
    assert gate.batches[1] == list(range(2, 20))
    assert [13] in gate.batches


def test_without_isolation_the_whole_batch_fails_once() -> None:
    gate = Gate(broken)
    with Batcher(BatcherConfig(isolate_faults=False), gate) as batcher:
        batcher.submit([1])
        gate.wait_until_busy()
        futures = [batcher.submit([i], deadline_ms=60_000) for i in (2, 13)]
        gate.opened.set()
        assert [outcome_of(future) for future in futures] == [Outcome.MODEL_RAISED] * 2
    assert gate.batches == [[1], [2, 13]]


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        (lambda batch: np.zeros((batch.num_rows + 1, 2)), Outcome.MODEL_SHAPE),
        (lambda batch: np.zeros((batch.num_rows, 3)), Outcome.MODEL_SHAPE),
        (lambda batch: np.zeros((batch.num_rows, 2), np.int64), Outcome.MODEL_SHAPE),
        (lambda batch: np.float64(1), Outcome.MODEL_SHAPE),
        (lambda batch: None, Outcome.MODEL_SHAPE),
        (lambda batch: [[1.0, 2.0], [1.0]], Outcome.MODEL_RAISED),  # NumPy cannot make an array of it
        (lambda batch: np.full((batch.num_rows, 2), np.nan, np.float32), Outcome.MODEL_NOT_FINITE),
        (lambda batch: exec_exit(), Outcome.MODEL_RAISED),
    ],
)
def test_a_fault_is_named_and_the_next_batch_is_served(result: Callable[[Batch], Any], outcome: Outcome) -> None:
    faults = [result]
    with Batcher(
        BatcherConfig(row_shape=(2,)), lambda batch: faults.pop()(batch) if faults else echo(batch)
    ) as batcher:
        future = batcher.submit([1])
        assert isinstance(future.exception(PATIENCE_S), ModelFault)
        assert outcome_of(future) == outcome
        assert batcher.submit([2]).result(PATIENCE_S).tolist() == [2, 2]
        assert batcher.counters().answered[outcome] == 1


def exec_exit() -> None:
    raise SystemExit(3)


def test_coroutines_are_woken_once_a_batch() -> None:
    async def ask() -> tuple[list[Any], int]:
        loop = asyncio.get_running_loop()
        wake_ups = 0
        wake = loop.call_soon_threadsafe

        def counted(callback: Callable[..., Any], *arguments: Any, **options: Any) -> asyncio.Handle:
            nonlocal wake_ups
            wake_ups += 1
            return wake(callback, *arguments, **options)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        tasks = [asyncio.ensure_future(batcher.asubmit([i], deadline_ms=60_000)) for i in range(1, 21)]
        await asyncio.sleep(0)  # all have submitted
        gate.opened.set()
        return [row.tolist() for row in await asyncio.gather(*tasks)], wake_ups

    with gated(max_rows=10) as (batcher, gate):
        rows, wake_ups = asyncio.run(ask())
    assert rows == [[i, i] for i in range(1, 21)]
    assert wake_ups == 2  # batches of ten


def test_a_cancelled_task_cancels_its_request_and_errors_are_raised_in_coroutines() -> None:
    async def ask() -> None:
        task = asyncio.ensure_future(batcher.asubmit([1], deadline_ms=60_000))
        await asyncio.sleep(0)
        assert batcher.counters().waiting == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert batcher.counters().answered[Outcome.CANCELLED] == 1
        with pytest.raises(DeadlineExceeded):
            await batcher.asubmit([2], deadline_ms=20)
        with pytest.raises(WrongLength):
            await batcher.asubmit([])

    with gated() as (batcher, gate):
        asyncio.run(ask())
        assert gate.batches == [[0]]


def test_an_event_loop_that_is_gone_does_not_stop_the_others() -> None:
    with gated() as (batcher, gate):
        loop = asyncio.new_event_loop()
        orphan = loop.create_task(batcher.asubmit([1], deadline_ms=60_000))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        other = batcher.submit([2], deadline_ms=60_000)
        gate.opened.set()
        assert other.result(PATIENCE_S).tolist() == [2, 2]
        orphan._log_destroy_pending = False  # type: ignore[attr-defined]


def test_closing_serves_who_waits_and_refuses_who_comes() -> None:
    with gated(max_rows=2) as (batcher, gate):
        waiting = [batcher.submit([i], deadline_ms=60_000) for i in range(1, 6)]
        closer = threading.Thread(target=batcher.close, args=(60_000.0,))
        closer.start()
        while not isinstance(batcher.submit([]).exception(0), BatcherClosed):  # WrongLength until it closes
            time.sleep(0.001)
        gate.opened.set()
        closer.join(PATIENCE_S)
        assert not closer.is_alive()
        assert all(future.done() for future in waiting)
        assert [future.result()[0] for future in waiting] == [1, 2, 3, 4, 5]
        batcher.close()  # again is nothing new
        assert_nobody_is_lost(batcher)


def test_closing_does_not_wait_for_a_hung_model() -> None:
    with gated() as (batcher, gate):
        waiting = batcher.submit([1], deadline_ms=60_000)
        batcher.close(drain_ms=20)
        assert isinstance(waiting.exception(0), BatcherClosed)
        assert not gate.opened.is_set()


def test_a_callback_may_close_the_batcher() -> None:
    batcher = Batcher(BatcherConfig(), echo)
    closed = threading.Event()

    def close(_: Future[Any]) -> None:
        batcher.close()
        closed.set()

    batcher.submit([1]).add_done_callback(close)
    assert closed.wait(PATIENCE_S)


def test_a_batcher_that_is_dropped_answers_everyone_and_leaves_no_thread() -> None:
    gate = Gate()
    batcher = Batcher(BatcherConfig(), gate)
    futures = [batcher.submit([0], deadline_ms=60_000)]
    gate.wait_until_busy()
    futures += [batcher.submit([i], deadline_ms=60_000) for i in range(1, 51)]
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("rgalign-batcher")]
    assert len(threads) >= 2
    del batcher
    gc.collect()
    assert {outcome_of(future) for future in futures} == {Outcome.CLOSED}
    gate.opened.set()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_the_queue_is_sized_by_what_the_model_can_do() -> None:
    def slow(batch: Batch) -> NDArray[np.float64]:
        time.sleep(0.02)
        return echo(batch)

    config = BatcherConfig(max_rows=2, deadline_ms=200, slack_ms=20)
    with Batcher(config, slow) as batcher:
        assert batcher.counters().queue_cap == 64
        wait([batcher.submit([i], deadline_ms=60_000) for i in range(40)], PATIENCE_S)
        counters = batcher.counters()
        # 2 rows in 20 ms or more; (0.2 - 0.02 - 0.02) s of that are 16 or fewer.
        assert 0 < counters.rows_per_second <= 100
        assert 2 <= counters.queue_cap <= 16


def test_eight_threads_and_a_ledger() -> None:
    """Every submission is answered once and as counted; no kind of answer may be missing, or this showed nothing."""
    told: list[Outcome] = []
    lock = threading.Lock()
    shake = random.Random(1)

    def model(batch: Batch) -> NDArray[np.float64]:
        time.sleep(shake.choice((0.0, 0.0005, 0.003)))
        return broken(batch)  # type: ignore[no-any-return]

    def client(seed: int) -> None:
        draw = random.Random(seed)
        futures: list[Future[Any]] = []
        for _ in range(250):
            length = draw.choice((0, 1, 2, 3, 17))
            deadline_ms = draw.choice((0.5, 5.0, 10_000.0))
            futures.append(
                batcher.submit([draw.randrange(1, 30)] * length, deadline_ms=deadline_ms, client=draw.randrange(6))
            )
            if draw.random() < 0.2:
                draw.choice(futures[-3:]).cancel()
            if draw.random() < 0.1:
                time.sleep(0.002)
        for future in futures:
            with lock:
                told.append(Outcome.CANCELLED if future.cancelled() else answer_of(future))

    def answer_of(future: Future[Any]) -> Outcome:
        return Outcome.ROW if future.exception(PATIENCE_S) is None else outcome_of(future)

    config = BatcherConfig(max_rows=4, max_queue=10, max_per_client=3, max_request_tokens=16, num_workers=2)
    with Batcher(config, model) as batcher:
        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        counters = batcher.counters()
    assert len(told) == 8 * 250 == counters.submitted
    assert {outcome: told.count(outcome) for outcome in Outcome} == counters.answered
    missing = {outcome for outcome, count in counters.answered.items() if not count}
    assert missing <= {Outcome.CLOSED, Outcome.MODEL_SHAPE, Outcome.DEADLINE_RUNNING}
    assert counters.most_waiting <= 10
