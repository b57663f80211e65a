"""Mutated requests over keep-alive connections: no 500, no leak, and an undisturbed answer now and then meanwhile.

Half of the mutations are of bytes, half know JSON's and HTTP's grammar, so that they get past the parser. 1,000 here;
`make soak` asks for 100,000.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from typing import Any

from rgalign.bench.http_wire import Answer, Closed, Wire, get, post
from rgalign.bench.soak import size, summarise
from rgalign.service.errors import ERRORS, ErrorCode

COUNT = size(1_000, 100_000)
CONNECTIONS = 8
PATIENCE_S = 0.3  # for a request that says it has more bytes than it has; rarely drawn
CANARY = "CANARY-3f9a"
LEAK = re.compile(rb"0x[0-9a-f]{6,}|/(home|tmp|usr|root|work|proc)\b|Traceback|File \"|" + CANARY.encode())
ERROR_KEYS = {"code", "message", "field", "required", "retry_after_ms", "request_id"}
CONTEXTS: list[dict[str, Any]] = [
    {},
    {"region": "SG"},
    {"region": CANARY, "history": ["a", CANARY, "c"], "note": CANARY},
    {"note": "é😀\u0000\u202e" + CANARY, "history": []},
    {"ms": 1, "region": "MY", "history": ["x"] * 50},
]
LITERALS = [
    b"null", b"true", b"0", b"-1", b"1.5", b"1e999", b"NaN", b"-Infinity", b"9223372036854775808", b'""', b"[]", b"{}",
    b"[[1]]", b'{"a":1}', b'"\\ud800"', b'"\\u0000"', b'"' + b"a" * 300 + b'"', b"[" * 20 + b"]" * 20, b"01", b"'a'",
    b'"' + CANARY.encode() + b'"',
]  # fmt: skip
HEADERS = [
    "Content-Encoding: gzip", "Transfer-Encoding: chunked", "Content-Length: 3", "Content-Length: 99999999999999",
    "Content-Type: text/plain", "Expect: 100-continue", "Expect: x", "Connection: close", "Connection: keep-alive, x",
    "Upgrade: h2c", "X: " + "y" * 20_000, "X : y", " X: y", "Host: other", f"Authorization: Bearer {CANARY}", "X: \x01",
    f"Traceparent: {CANARY}", f"X-Request-Id: {CANARY}/", f"Cookie: {CANARY}", f"X-Forwarded-For: {CANARY}", "\xc9: y",
]  # fmt: skip
TARGETS = ["/", "/v1/recommend_many", "/v1/intents?limit=5", "/v1/recommend?x=" + CANARY, "/admin/drain", "/metrics",
           "/v1/%72ecommend", "/health/ready", "/" + CANARY, "/v1/intents?limit=" + CANARY]  # fmt: skip


def body(rng: random.Random) -> bytes:
    contexts = rng.choices(CONTEXTS, k=rng.randrange(1, 5))
    value = {"context": contexts[0], "k": rng.randrange(1, 65)} | rng.choice(
        [{}, {"client": "c"}, {"priority": "bulk"}]
    )
    return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode()


def mutated_bytes(rng: random.Random, raw: bytes) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1) if data else 0
        match rng.randrange(4):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                data[at:at] = rng.choice((b'"', b"\\", b"[", b"}", b",", b"\xff", b"\x00", b"\r\n"))
            case 2:
                del data[at : at + rng.randrange(1, 9)]
            case _:
                data[at:at] = data[at : at + rng.randrange(1, 30)]
    return bytes(data)


def mutated_json(rng: random.Random, raw: bytes) -> bytes:
    """Another value, key or nesting in a place where one was."""
    places = [m.span() for m in re.finditer(rb'"[^"\\]*"|\d+|\[[^\[\]]*\]|\{[^{}]*\}', raw)]
    begin, end = rng.choice(places)
    match rng.randrange(5):
        case 0 | 1:
            return raw[:begin] + rng.choice(LITERALS) + raw[end:]
        case 2:
            return raw[:-1] + b', "' + rng.choice((b"k", b"context", b"deadline_ms", CANARY.encode())) + b'": 5}'
        case 3:
            return raw[:begin] + b"[" + raw[begin:end] + b"]" + raw[end:]
        case _:
            return raw + b" " * rng.choice((1, 100, 20_000))


def mutated_head(rng: random.Random, raw: bytes) -> bytes:
    head, _, payload = raw.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    match rng.randrange(4):
        case 0:
            lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(HEADERS).encode("latin-1"))
        case 1:
            lines[0] = lines[0].replace(b"/v1/recommend", rng.choice(TARGETS).encode(), 1)
        case 2:
            lines[0] = rng.choice((b"GET", b"PUT", b"BREW", b"post", b"")) + lines[0].removeprefix(b"POST")
        case _:
            place = rng.randrange(len(lines))
            lines[place] = mutated_bytes(rng, lines[place])
    return b"\r\n".join(lines) + b"\r\n\r\n" + payload


def request(rng: random.Random) -> bytes:
    match rng.randrange(10):
        case 0:
            return post("/v1/recommend", body(rng))
        case 1 | 2 | 3:
            return post("/v1/recommend", mutated_bytes(rng, body(rng)))
        case 4 | 5 | 6:
            return post("/v1/recommend", mutated_json(rng, body(rng)))
        case 7:
            many = b'{"contexts": [' + b", ".join(json.dumps(c).encode() for c in CONTEXTS) + b'], "k": 2}'
            return post("/v1/recommend_many", mutated_json(rng, many))
        case _:
            return mutated_head(rng, post("/v1/recommend", body(rng)))


def check(raw: bytes, answer: Answer) -> str:
    """The answer's code; fails where it is none of ours, or tells what it must not."""
    assert not LEAK.search(answer.body + repr(answer.headers).encode()), (raw, answer)
    assert "x-request-id" in answer.headers
    if answer.status == 200:
        if answer.headers["content-type"] == "application/json":
            json.loads(answer.body, parse_constant=lambda name: 1 / 0)
        return "ok"
    error = answer.json()["error"]
    assert set(error) == ERROR_KEYS, (raw, answer)
    code = ErrorCode(error["code"])
    assert (answer.status, error["message"]) == ERRORS[code], (raw, answer)
    assert code not in (ErrorCode.INTERNAL, ErrorCode.CANCELLED), (raw, answer)
    return code.value


def undisturbed(answer: Answer) -> Any:
    value = answer.json()
    return answer.status, {name: value[name] for name in value if name not in ("timings", "request_id")}


async def mutate(service: Any, worker: int, count: int, told: Counter[str]) -> None:
    rng = random.Random(f"{COUNT} {worker}")
    canary = post("/v1/recommend", {"context": {"region": "SG", "note": CANARY}, "k": 9})
    wire = await Wire.open(service.host, service.port)
    first = undisturbed(await wire.ask(canary))
    for number in range(count):
        raw = request(rng)
        try:
            answer = await asyncio.wait_for(wire.ask(raw), PATIENCE_S if cut_short(raw) else 60)
            told[check(raw, answer)] += 1
            again = answer.headers.get("connection") == "close"
        except Closed:
            told["closed"] += 1
            again = True
        except TimeoutError:
            told["waits for more" if cut_short(raw) else "not answered"] += 1
            again = True
        if again or surplus(raw):
            wire.abort()
            wire = await Wire.open(service.host, service.port)
        if number % 100 == 99:
            assert undisturbed(await wire.ask(canary)) == first
    await wire.close()


def length_of(raw: bytes) -> tuple[int, int]:
    """(what the first Content-Length says, what follows the head)."""
    head, separator, payload = raw.partition(b"\r\n\r\n")
    found = re.search(rb"\r\ncontent-length:[ \t]*(\d+)", head, re.IGNORECASE)
    return int(found.group(1)) if found else 0, len(payload) if separator else -1


def cut_short(raw: bytes) -> bool:
    said, came = length_of(raw)
    return came < said


def surplus(raw: bytes) -> bool:
    said, came = length_of(raw)
    return came > said


def test_mutated_requests_get_an_error_of_ours_or_an_answer(running: Any) -> None:
    async def run() -> Counter[str]:
        told: Counter[str] = Counter()
        await asyncio.gather(*(mutate(running, n, COUNT // CONNECTIONS, told) for n in range(CONNECTIONS)))
        async with await Wire.open(running.host, running.port) as wire:
            until = time.monotonic() + 30
            while "rgalign_http_connections 1.0" not in (await wire.ask(get("/metrics"))).body.decode():
                assert time.monotonic() < until
                await asyncio.sleep(0.05)
        return told

    told = asyncio.run(run())
    assert running.process.poll() is None
    log = running.log_text()
    assert CANARY not in log
    assert '"level": "error"' not in log
    total = sum(told.values())
    print(told)
    # What was refused was refused for many reasons, and enough got through: else nothing has been shown.
    assert told["ok"] > 0.1 * total
    assert sum(told[code] for code in ("invalid_request", "invalid_context")) > 0.05 * total
    assert len(told) >= 10, told
    assert told["not answered"] == 0
    assert told["closed"] + told["waits for more"] < 0.05 * total, told
    summarise("http_mutated", requests=total, internal_errors=0, leaks=0, answers=dict(told))
