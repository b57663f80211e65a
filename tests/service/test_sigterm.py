"""SIGTERM at random moments under load: one answer each, exit 0 in time; and what happens when something hangs.

Three moments here; `make soak` asks for fifty.
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from rgalign.bench.http_wire import Closed, Cut, Wire, get, post
from rgalign.bench.soak import size, summarise

TRIALS = size(3, 50)
DRAIN_S = 1.0
EXIT_S = 5.0  # the contract; the server's own bound is drain_s + 2
CONNECTIONS = 40
OVER = ("draining", "shutting_down")


async def asking(service: Any, number: int, told: Counter[str], signalled: list[float]) -> None:
    """Asks until it is told that it is over, or the connection ends; every request it sent has one line in ``told``."""
    rng = random.Random(number)
    try:
        wire = await Wire.open(service.host, service.port)
    except ConnectionError:
        told["no connection"] += 1
        return
    async with wire:
        while True:
            sent_before = not signalled
            context = {"ms": rng.choice((0, 5, 50, 500, 3_000)), "note": str(number)}
            try:
                answer = await wire.ask(post("/v1/recommend", {"context": context}))
            except Closed:
                # It was idle when the server ended, and this request was never taken.
                told["lost" if sent_before else "closed"] += 1
                return
            except Cut:
                told["cut"] += 1
                return
            code = "ok" if answer.status == 200 else str(answer.json()["error"]["code"])
            told[code] += 1
            if code in OVER:
                assert answer.headers["connection"] == "close"
                told["second answers"] += len(await asyncio.wait_for(wire.reader.read(), 10))
                return


async def trial(service: Any, seed: int) -> tuple[Counter[str], float]:
    told: Counter[str] = Counter()
    signalled: list[float] = []
    clients = [asyncio.ensure_future(asking(service, seed * 1_000 + n, told, signalled)) for n in range(CONNECTIONS)]
    await asyncio.sleep(random.Random(seed).uniform(0.2, 1.5))
    service.process.send_signal(signal.SIGTERM)
    signalled.append(time.monotonic())
    clients += [asyncio.ensure_future(asking(service, seed * 1_000 + 500 + n, told, signalled)) for n in range(10)]
    await asyncio.gather(*clients)
    code = await asyncio.to_thread(service.process.wait, 30)
    assert code == 0, service.log_text()[-2_000:]
    return told, time.monotonic() - signalled[0]


def test_everything_accepted_is_answered_once(serving: Callable[..., Any]) -> None:
    totals: Counter[str] = Counter()
    slowest_s = 0.0
    for seed in range(TRIALS):
        with serving(drain_s=DRAIN_S) as service:
            told, seconds = asyncio.run(trial(service, seed))
        totals += told
        slowest_s = max(slowest_s, seconds)
        assert told["lost"] == told["cut"] == told["second answers"] == 0, (told, service.log_text()[-2_000:])
        assert seconds <= EXIT_S
    assert totals["ok"] > 10 * TRIALS
    assert totals["shutting_down"] > 0  # of those that would have taken three seconds
    summarise("http_sigterms", trials=TRIALS, drain_s=DRAIN_S, slowest_exit_s=slowest_s, requests=dict(totals))


def test_a_second_signal_ends_it_now(serving: Callable[..., Any]) -> None:
    async def run(service: Any) -> None:
        async with await Wire.open(service.host, service.port) as wire:
            waiting = asyncio.ensure_future(wire.ask(post("/v1/recommend", {"context": {"ms": 60_000}})))
            await until_in_flight(service, 1)
            service.process.send_signal(signal.SIGTERM)
            await until_draining(service)
            began = time.monotonic()
            service.process.send_signal(signal.SIGINT)
            answer = await asyncio.wait_for(waiting, 10)
            assert (answer.status, answer.json()["error"]["code"]) == (503, "shutting_down")
            await asyncio.to_thread(service.process.wait, 30)
            assert time.monotonic() - began < 5  # drain_s is 60

    with serving(drain_s=60.0) as service:
        asyncio.run(run(service))
        assert service.process.returncode in (0, 1)  # 1: the timer was quicker than the listeners' closing


def test_an_event_loop_that_hangs_does_not_keep_the_process(serving: Callable[..., Any]) -> None:
    with serving(drain_s=0.2) as service:
        with socket.create_connection((service.host, service.port)) as client:
            client.sendall(post("/v1/recommend", {"context": {"do": "block"}}))
            time.sleep(0.5)
            began = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(30) == 1
            assert time.monotonic() - began < 5


async def until_in_flight(service: Any, count: int) -> None:
    async with await Wire.open(service.host, service.port) as wire:
        while f"rgalign_http_in_flight {count}.0" not in (await wire.ask(get("/metrics"))).body.decode():
            await asyncio.sleep(0.02)


async def until_draining(service: Any) -> None:
    async with await Wire.open(service.host, service.port) as wire:
        while (await wire.ask(get("/health/ready"))).status == 200:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("name", ["host", "admin_host"])
def test_an_address_that_is_not_ours_is_refused(name: str, fakes: Any) -> None:
    from rgalign.errors import ConfigError
    from rgalign.service.server import serve
    from rgalign.service.settings import ServiceSettings

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"port": port} if name == "host" else {"port": 0, "admin_port": port}
        with pytest.raises(ConfigError, match="free"):
            serve(fakes.FakeRecommender(), ServiceSettings(**ports), "t" * 16)
    with pytest.raises(ConfigError, match="an admin token with an admin port"):
        serve(fakes.FakeRecommender(), ServiceSettings(port=0, admin_port=0), None)
