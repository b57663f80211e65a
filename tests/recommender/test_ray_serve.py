"""Two replicas in a local Ray cluster: load is spread; neither another bundle nor a killed replica loses a request."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="Ray is not installed (the extra `ray-serve`)")
pytest.importorskip("grpc_reflection", reason="Ray Serve is not installed (the extra `ray-serve`)")

import ray
from pydantic import ValidationError
from ray import serve

from rgalign.bench.soak import size, summarise
from rgalign.service.client import Client
from rgalign.service.ray_serve import RayServeSettings, Replica, application
from rgalign.service.retries import RetryPolicy

PATIENCE_S = 60.0
CALLERS = 4
HOLD_S = size(2, 20)  # of load in each state


def settings(bundle: Path) -> RayServeSettings:
    return RayServeSettings.model_validate(
        {
            "bundle": bundle,
            "min_replicas": 2,
            "max_replicas": 2,
            "cpus": 0.5,
            "health_check_s": 1.0,
            "recommender": {"deadline_ms": 30_000.0},
            "service": {"max_deadline_ms": 30_000.0},
        }
    )


@pytest.fixture
def url() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


class Load:
    """Callers that ask without a pause until they are told to stop; ``answers`` counts by bundle."""

    def __init__(self, url: str) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[Exception] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(url,)) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def _ask(self, url: str) -> None:
        with Client(url, timeout_s=30.0, retry=RetryPolicy(max_attempts=6)) as client:
            while not self._stop.is_set():
                try:
                    answer = client.recommend({"page": "orders"}, deadline_ms=20_000)
                    assert answer.degraded is None
                    self.answers[answer.bundle] += 1
                except Exception as error:
                    self.failures.append(error)

    def until_answered_by(self, bundle: str, more: int = 20) -> None:
        wanted, until = self.answers[bundle] + more, time.monotonic() + PATIENCE_S
        while self.answers[bundle] < wanted and time.monotonic() < until:
            time.sleep(0.05)
        assert self.answers[bundle] >= wanted

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def status_of_both(handle: Any) -> dict[int, dict[str, Any]]:
    """By process. Requests go to either of two replicas, so some are enough to have met both."""
    found: dict[int, dict[str, Any]] = {}
    until = time.monotonic() + PATIENCE_S
    while len(found) < 2 and time.monotonic() < until:
        status = handle.status.remote().result()
        found[status["pid"]] = status
    assert len(found) == 2
    return found


def test_load_is_spread_and_nothing_is_lost(url: str, bundle_dir: Path, other_bundle_dir: Path) -> None:
    handle = serve.run(application(settings(bundle_dir)), name="rgalign")
    assert httpx.get(f"{url}/health/ready", trust_env=False).json()["ready"] is True
    (first,) = {status["bundle"] for status in status_of_both(handle).values()}
    load = Load(url)
    try:
        load.until_answered_by(first)
        time.sleep(HOLD_S)
        # The routes are ours: each replica counts what it answered, and both did.
        counted = set()
        until = time.monotonic() + PATIENCE_S
        while len(counted) < 2 and time.monotonic() < until:
            text = httpx.get(f"{url}/metrics", trust_env=False).text
            counted.add(next(line for line in text.splitlines() if "rgalign_http_requests_total{" in line))
        assert len(counted) == 2

        serve.run(application(settings(other_bundle_dir)), name="rgalign")
        (second,) = {status["bundle"] for status in status_of_both(handle).values()}
        assert second != first
        load.until_answered_by(second)
        time.sleep(HOLD_S)

        killed = next(iter(status_of_both(handle)))
        os.kill(killed, signal.SIGKILL)
        load.until_answered_by(second, 50)
        until = time.monotonic() + PATIENCE_S
        while killed in (now := status_of_both(handle)) and time.monotonic() < until:
            time.sleep(0.1)
        assert killed not in now
        time.sleep(HOLD_S)
    finally:
        load.stop()
    assert load.failures == []
    assert set(load.answers) == {first, second}
    answers = sum(load.answers.values())
    summarise("ray_serve", replicas=2, answers=answers, updates=1, killed=1, lost=0, by_bundle=[*load.answers.values()])


def test_another_bundle_is_swapped_in_place(bundle_dir: Path, other_bundle_dir: Path, tmp_path: Path) -> None:
    """What Ray calls where only ``user_config`` changes, without Ray."""
    plain = Replica.__mro__[1]

    async def run() -> None:
        values = settings(bundle_dir).model_dump(mode="json")
        replica = plain(values["recommender"], values["service"])
        await replica.check_health()
        await replica.reconfigure({"bundle": str(bundle_dir)})
        recommender, first = replica._recommender, (await replica.status())["bundle"]
        transport = httpx.ASGITransport(replica.__serve_build_asgi_app__())
        async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
            assert (await client.post("/v1/recommend", json={"context": {}})).json()["bundle"] == first
            await replica.reconfigure({"bundle": str(other_bundle_dir)})
            second = (await replica.status())["bundle"]
            assert second != first
            assert replica._recommender is recommender
            with pytest.raises(ValueError, match="manifest"):
                await replica.reconfigure({"bundle": str(tmp_path)})
            assert (await client.post("/v1/recommend", json={"context": {}})).json()["bundle"] == second
        await replica.check_health()
        recommender.drain(1.0)
        with pytest.raises(RuntimeError, match="not ready"):
            await replica.check_health()

    asyncio.run(run())


def test_settings_that_are_refused(bundle_dir: Path) -> None:
    with pytest.raises(ValidationError, match="max_replicas is less than min_replicas"):
        RayServeSettings(bundle=bundle_dir, min_replicas=2)
    with pytest.raises(ValidationError, match="replicas"):
        RayServeSettings.model_validate({"bundle": bundle_dir, "replicas": 2})
