"""The listener as bytes: bounds of size, number and time, and what a client is told when it meets one."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from rgalign.bench.http_wire import Closed, Wire, get, post

BODY = {"context": {"region": "SG"}, "k": 2}


async def code_of(wire: Wire, raw: bytes) -> str:
    answer = await wire.ask(raw)
    return str(answer.json()["error"]["code"]) if answer.status >= 400 else "ok"


async def metrics(service: Any) -> str:
    async with await Wire.open(service.host, service.port) as wire:
        return (await wire.ask(get("/metrics"))).body.decode()


async def open_connections(service: Any) -> float:
    """As its metrics say, the one that asks included."""
    lines = (await metrics(service)).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("rgalign_http_connections "))


def test_pipelined_requests_are_answered_in_order(running: Any) -> None:
    async def run() -> None:
        async with await Wire.open(running.host, running.port) as wire:
            ks = [1, 3, 2, 5, 4]
            wire.writer.write(b"".join(post("/v1/recommend", {**BODY, "k": k}) for k in ks))
            assert [len((await wire.answer()).json()["intents"]) for _ in ks] == ks

    asyncio.run(run())


def test_a_request_that_trickles_in_is_whole_or_refused_in_time(running: Any, hasty: Any) -> None:
    """header_s and body_s are 0.6: a byte now and then does not lengthen them."""

    async def trickle(service: Any, raw: bytes, pause_s: float, *, second: bool = False) -> str:
        async with await Wire.open(service.host, service.port) as wire:
            if second:  # on a connection that is kept alive
                assert (await wire.ask(get("/health/live"))).status == 200
            for byte in raw:
                wire.writer.write(bytes([byte]))
                await asyncio.sleep(pause_s)
                if wire.reader._buffer:  # type: ignore[attr-defined]  # it has been answered
                    break
            answer = await wire.answer()
            return "ok" if answer.status == 200 else str(answer.json()["error"]["code"])

    async def run() -> None:
        raw = post("/v1/recommend", BODY)  # a byte each 0.05 s: all of it would be there after nine
        slow = [trickle(hasty, raw, 0.05, second=number >= 5) for number in range(10)]
        in_body = [trickle_body() for _ in range(5)]
        told = await asyncio.gather(*slow, *in_body)
        assert told == ["request_timeout"] * 15
        assert await trickle(running, raw, 0.0) == "ok"

    async def trickle_body() -> str:
        async with await Wire.open(hasty.host, hasty.port) as wire:
            raw = post("/v1/recommend", BODY)
            wire.writer.write(raw[:-5])
            return str((await wire.answer()).json()["error"]["code"])

    asyncio.run(run())


def test_a_silent_connection_is_closed(hasty: Any) -> None:
    async def run() -> None:
        async with await Wire.open(hasty.host, hasty.port) as silent:
            began = time.monotonic()
            with pytest.raises(Closed):
                await asyncio.wait_for(silent.answer(), 10)
            assert time.monotonic() - began > 0.3  # 0.6 since it was accepted, which was before
        async with await Wire.open(hasty.host, hasty.port) as idle:
            assert (await idle.ask(get("/health/live"))).status == 200
            with pytest.raises(Closed):  # idle_s is 1
                await asyncio.wait_for(idle.answer(), 10)

    asyncio.run(run())


def test_bodies_on_their_way_in_are_bounded_together(running: Any) -> None:
    """max_buffered_bytes is 150,000: there is room for one of 90,000, and again when that one is answered."""

    async def run() -> None:
        raw = post("/v1/recommend_many", b'{"contexts":[{}]' + b" " * 90_000 + b"}")
        async with await Wire.open(running.host, running.port) as first:
            first.writer.write(raw[:-10])
            await first.writer.drain()
            told = []
            while len(told) < 20 and "too_many_connections" not in told:  # until the first one's head is there
                async with await Wire.open(running.host, running.port) as second:
                    told.append(await code_of(second, raw))
            assert told[-1] == "too_many_connections"
            assert await code_of(first, raw[-10:]) == "ok"
        async with await Wire.open(running.host, running.port) as third:
            assert await code_of(third, raw) == "ok"

    asyncio.run(run())


def test_more_connections_than_max_are_told_so_and_the_others_served(running: Any) -> None:
    async def run() -> None:
        wires = [await Wire.open(running.host, running.port) for _ in range(60)]  # max_connections is 40
        answers = await asyncio.gather(*(wire.ask(get("/health/live")) for wire in wires), return_exceptions=True)
        statuses = [getattr(answer, "status", 0) for answer in answers]
        assert statuses.count(200) == 40
        refused = [answer for answer in answers if getattr(answer, "status", 0) == 503]
        assert len(refused) >= 15  # a reset may outrun the answer to a request that was never wanted
        assert {answer.json()["error"]["code"] for answer in refused} == {"too_many_connections"}  # type: ignore[union-attr]
        for wire in wires:
            await wire.close()
        while (await open_connections(running)) > 1:
            await asyncio.sleep(0.05)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"GET /health/live HTTP/1.1\nHost: a\n\n", "malformed_http"),
        (b"GET /health/live HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n", "malformed_http"),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "malformed_http",
        ),
        (
            b"POST /v1/recommend HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20_000,
            "length_required",
        ),
        (post("/v1/recommend", b" " * 200_000), "body_too_large"),
        (post("/v1/recommend", b" " * 20_000), "body_too_large"),  # of this route: max_single_bytes
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 100 + b"\r\n", "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 300_000, "headers_too_large"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\n" * 200, "malformed_http"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "malformed_http"),
    ],
    ids=range(10),
)  # fmt: skip
def test_the_client_sees_why(running: Any, raw: bytes, code: str) -> None:
    """Also while it is still sending: the connection lingers after the answer."""

    async def run() -> None:
        async with await Wire.open(running.host, running.port) as wire:
            assert await code_of(wire, raw) == code

    asyncio.run(run())


def test_nothing_after_a_refusal_is_taken_for_a_request(running: Any) -> None:
    async def run() -> None:
        async with await Wire.open(running.host, running.port) as wire:
            smuggled = b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get("/health/live")
            assert await code_of(wire, smuggled) == "length_required"
            with pytest.raises(Closed):
                await asyncio.wait_for(wire.answer(), 5)

    asyncio.run(run())


def test_expect_continue_gets_one(running: Any) -> None:
    async def run() -> None:
        raw = post("/v1/recommend", BODY, Expect="100-continue")
        head, body = raw.split(b"\r\n\r\n")
        async with await Wire.open(running.host, running.port) as wire:
            wire.writer.write(head + b"\r\n\r\n")
            assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            wire.writer.write(body)
            assert (await wire.answer()).status == 200
            assert (await wire.ask(raw)).status == 200  # the body came with it: no need

    asyncio.run(run())


def test_an_upgrade_is_ignored(running: Any) -> None:
    async def run() -> None:
        raw = get("/health/live", Connection="Upgrade", Upgrade="websocket", Sec_WebSocket_Key="x")
        async with await Wire.open(running.host, running.port) as wire:
            assert (await wire.ask(raw)).status == 200

    asyncio.run(run())


def test_connections_reset_at_any_moment_leave_nothing_behind(running: Any) -> None:
    async def run() -> None:
        raw = post("/v1/recommend", {"context": {"ms": 50}})
        descriptors = Path(f"/proc/{running.process.pid}/fd")
        before = len(list(descriptors.iterdir()))
        for number in range(30):
            cut = (0, 10, len(raw) - 30, len(raw) - 3, len(raw), len(raw))[number % 6]
            wire = await Wire.open(running.host, running.port)
            wire.writer.write(raw[:cut])
            await asyncio.sleep(0.002 * number)
            wire.abort()
        until = time.monotonic() + 10
        while time.monotonic() < until and (await open_connections(running)) > 1:
            await asyncio.sleep(0.05)
        async with await Wire.open(running.host, running.port) as wire:
            text = (await wire.ask(get("/metrics"))).body.decode()
        assert "rgalign_http_in_flight 0.0" in text
        assert "rgalign_http_connections 1.0" in text
        assert 'route="/v1/recommend",status="499"' in text.replace('code="cancelled",', "")
        assert len(list(descriptors.iterdir())) <= before + 1

    asyncio.run(run())


def test_it_listens_where_it_should_and_calls_nobody(running: Any) -> None:
    inodes = set()
    for descriptor in Path(f"/proc/{running.process.pid}/fd").iterdir():
        try:
            inodes.add(descriptor.readlink().name)
        except OSError:
            continue
    mine = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{running.process.pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, remote, state, *rest = line.split()
            if f"socket:[{rest[5]}]" in inodes:
                mine.append((local, remote, state))
    listening = {local for local, _, state in mine if state == "0A"}
    loopback = socket.inet_aton("127.0.0.1")[::-1].hex().upper()
    assert listening == {f"{loopback}:{port:04X}" for port in (running.port, running.admin_port)}
    assert all(local in listening for local, _, _ in mine)  # every connection came to a listener of ours


def test_the_process_has_no_template_engine_and_no_pickles_of_arrow(running: Any) -> None:
    """What could run code that data names is not even loaded in the server's own process."""
    assert "rgalign.service.protocol" in running.modules
    assert not running.modules & {"jinja2", "pyarrow", "torch", "cloudpickle", "dill", "joblib"}
