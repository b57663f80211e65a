"""Other batchers under the same load as ours: requests of one process, a model that does nothing, windows of 512.

Runs in an environment of its own, for it imports neither rgalign nor what rgalign pins:

    python -m venv /tmp/peers && /tmp/peers/bin/pip install 'ray[serve]' 'bentoml<1.4.40' numpy
    /tmp/peers/bin/python bench/batcher_peers.py PEER REQUESTS WINDOW MAX_ROWS TOKENS      one line of JSON

PEER    asyncio.Queue       the loop that services write by hand: get() one, get_nowait() the rest
        ray serve.batch     Ray Serve's decorator, in this process, batch_wait_timeout_s=0
        bentoml             BentoML's CorkDispatcher, in this process
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

ROW = 16
REPEATS = 3  # after one warm-up


class BatchCount:
    """The model: zeros, as many as there are requests."""

    def __init__(self, max_rows: int) -> None:
        self.batches = self.rows = 0
        self._rows = np.zeros((max_rows, ROW), np.float32)

    def __call__(self, requests: Any) -> list[Any]:
        self.batches += 1
        self.rows += len(requests)
        return list(self._rows[: len(requests)].copy())


Submit = Callable[[Any], Awaitable[Any]]


def asyncio_queue(model: BatchCount, max_rows: int) -> Submit:
    queue: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue()

    async def serve() -> None:
        while True:
            batch = [await queue.get()]
            while len(batch) < max_rows and not queue.empty():
                batch.append(queue.get_nowait())
            for (_, future), row in zip(batch, model([request for request, _ in batch]), strict=True):
                if not future.done():
                    future.set_result(row)

    tasks.append(asyncio.ensure_future(serve()))

    async def submit(request: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        queue.put_nowait((request, future))
        return await future

    return submit


def ray_serve_batch(model: BatchCount, max_rows: int) -> Submit:
    from types import SimpleNamespace

    from ray import serve
    from ray.serve import context

    # The decorator asks its replica how many requests it may have at once; there is none here.
    replica = SimpleNamespace(
        app_name="", deployment="", replica_tag="", _deployment_config=SimpleNamespace(max_ongoing_requests=1 << 20)
    )
    context._INTERNAL_REPLICA_CONTEXT = replica  # type: ignore[assignment, unused-ignore]

    @serve.batch(max_batch_size=max_rows, batch_wait_timeout_s=0)
    async def submit(requests: list[Any]) -> list[Any]:
        return model(requests)

    return submit


def bentoml_dispatcher(model: BatchCount, max_rows: int) -> Submit:
    from bentoml._internal.marshal.dispatcher import CorkDispatcher

    # Latency far above anything met here: the dispatcher sheds load by it.
    dispatcher = CorkDispatcher(
        max_latency_in_ms=10_000, max_batch_size=max_rows, fallback=lambda: None, get_batch_size=lambda request: 1
    )

    async def serve(requests: Any) -> list[Any]:
        return model(requests)

    submit: Submit = dispatcher(serve)
    return submit


PEERS: dict[str, tuple[Callable[[BatchCount, int], Submit], str]] = {
    "asyncio.Queue": (asyncio_queue, ""),
    "ray serve.batch": (ray_serve_batch, "ray"),
    "bentoml": (bentoml_dispatcher, "bentoml"),
}
tasks: list[asyncio.Future[None]] = []  # kept, or they would be collected


async def load(submit: Submit, token_ids: Any, num_requests: int, window: int) -> None:
    """``num_requests`` of which ``window`` are under way at a time."""
    for begin in range(0, num_requests, window):
        await asyncio.gather(*(submit(token_ids) for _ in range(min(window, num_requests - begin))))


async def nothing(_: Any) -> None:
    return None


async def measure(peer: str, num_requests: int, window: int, max_rows: int, num_tokens: int) -> dict[str, Any]:
    make, package = PEERS[peer]
    model = BatchCount(max_rows)
    submit = make(model, max_rows)
    token_ids = np.arange(num_tokens, dtype=np.int32)
    cpu_us, rates = [], []
    await load(submit, token_ids, num_requests, window)
    for _ in range(REPEATS):
        cpu = time.process_time()
        await load(nothing, token_ids, num_requests, window)
        generator = time.process_time() - cpu
        cpu, began = time.process_time(), time.perf_counter()
        await load(submit, token_ids, num_requests, window)
        rates.append(num_requests / (time.perf_counter() - began))
        cpu_us.append((time.process_time() - cpu - generator) / num_requests * 1e6)
    version = importlib.metadata.version(package) if package else sys.version.split()[0]
    return {"cpu_us": cpu_us, "requests_per_s": rates, "rows_per_batch": model.rows / model.batches, "version": version}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1], *map(int, sys.argv[2:])))))
