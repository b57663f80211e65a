"""Curated requests, each with the answer it must get: every hostile literal in every field, and HTTP's odd corners.

At least 800, over one listener; no answer but the expected one, none with a path, an address or what was sent.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rgalign.bench.http_wire import Answer, Wire, get, post
from rgalign.bench.soak import summarise
from rgalign.service.errors import ERRORS, ErrorCode

Case = tuple[str, bytes, str]  # name, request, code or "ok"
CANARY = "CANARY-3f9a"
LEAK = re.compile(rb"0x[0-9a-f]{6,}|/(home|tmp|usr|root|work|proc)\b|Traceback|File \"|" + CANARY.encode())
MALFORMED = [
    "NaN", "Infinity", "-Infinity", "nan", "inf", "1e999", "-1e999", "01", "-01", "+1", ".5", "5.", "1e", "1e+", "0x10",
    "0b1", "0o7", "1_000", "9223372036854775808", "-9223372036854775809", "9" * 41, "1" * 4_400, "1." + "0" * 41,
    "True", "False", "None", "undefined", "nul", "'a'", '"a', '"\\x41"', '"\\u12"', '"\\ud800"', '"\\udc00"',
    '"\\ude00\\ud83d"', '"\t"', '"\n"', '"\x00"', "[1,]", "[,1]", "[1 2]", "[1", "1]", "{,}", "{1:2}", '{"a"}',
    '{"a":1,}', '{"a":1,"a":1}', '{"a":1,"\\u0061":2}', '[{"b":[{"x":1,"x":2}]}]', "1 2", "/*c*/1", "1//c", "#1",
    "[" * 17 + "]" * 17, '{"a":' * 17 + "1" + "}" * 17, "[" * 5_000, "",
]  # fmt: skip
FIELDS = ("context", "k", "deadline_ms", "client", "priority")
WRONG: dict[str, list[Any]] = {
    "context": [None, True, 1, 1.5, "", "{}", [], [{}], [["region", "SG"]]],
    "k": [None, True, False, 0, -1, 65, 1.0, 1.5, "3", "", [], {}, [3], 2**31, 2**63 - 1, -(2**63), 1e3],
    "deadline_ms": [True, 0, -1, -0.0, "100", [], {}, 10_001, 1e18, 1e300, 2**63 - 1, -1e-300],
    "client": [None, True, 1, 1.5, [], {}, ["a"], "a" * 65, "é" * 65],
    "priority": [None, True, 1, "", "Interactive", "BULK", "bulk ", "urgent", "interactive\u0000", [], {}, ["bulk"]],
}
NESTED = [{"a": 1}, {}, [[1]], [{}], [[]], [1, [2]], ["a", {"b": 1}], [[[["deep"]]]], [None, {"x": None}]]
TEXTS = [
    "", " ", "\u0000", "\ufeff", "\u202e", "\u200d", "é", "e\u0301", "😀", "\U0010ffff", "\ufffe", "ⅷ", "ﬀ", "İ",
    "<script>", "{{7*7}}", "{% for x in y %}", "${jndi:ldap://x}", "' OR 1=1 --", "%s%n%x", "__class__", "../../etc",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "</s>", "\r\nX: y", "a" * 10_000, "\u0301" * 2_000, "\x7f\x1b[2J",
]  # fmt: skip
TARGETS = [
    "/", "//", "/v1", "/v1/", "/v1/recommend/", "/V1/recommend", "/v1/Recommend", "//v1/recommend", "/v1//recommend",
    "/./v1/recommend", "/v1/../v1/recommend", "/v1%2frecommend", "/v1/recommend;a", "/v1/recommend%00",
    "/v1/recommend%20", "/v1/recommend.json", "/v2/recommend", "/admin/swap_index", "/admin/swap_bundle",
    "/admin/drain", "/admin/status", "/admin", "/docs", "/redoc", "/docs/oauth2-redirect", "/.env", "/etc/passwd",
    "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/static/../app.py", "/health", "/healthz", "/ready",
    "/metrics/", "/openapi.yaml", "/" + "a" * 4_000, "/%", "/%zz", "/%ff%fe", "/?" + "a" * 4_000, "/~root", "/*",
]  # fmt: skip
METHODS = ("PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "BREW", "PROPFIND", "A")


def literal_cases() -> Iterator[Case]:
    """Hostile JSON in the place of each field, and of a feature."""
    for place, literal in enumerate(MALFORMED):
        for field in FIELDS:
            yield (
                f"{field} literal {place}",
                post("/v1/recommend", f'{{"{field}":{literal}}}'.encode()),
                "malformed_json",
            )
        inside = f'{{"region":{literal}}}'
        yield f"feature literal {place}", post("/v1/recommend", f'{{"context":{inside}}}'.encode()), "malformed_json"
        if literal:
            listed = f'{{"context":{{"history":["a",{literal}]}}}}'
            yield f"listed literal {place}", post("/v1/recommend", listed.encode()), "malformed_json"
        many = f'{{"contexts":[{{}},{inside}]}}'
        yield f"second context literal {place}", post("/v1/recommend_many", many.encode()), "malformed_json"


def field_cases() -> Iterator[Case]:
    whole: dict[str, Any] = {"context": {"region": "SG"}, "k": 3}
    for field, values in WRONG.items():
        for place, value in enumerate(values):
            yield f"{field} wrong {place}", post("/v1/recommend", {**whole, field: value}), "invalid_request"
    for place, value in enumerate(NESTED):
        yield f"nested {place}", post("/v1/recommend", {"context": {"region": value}}), "invalid_request"
        many = {"contexts": [{"region": "SG"}, {"region": value}]}
        yield f"nested many {place}", post("/v1/recommend_many", many), "invalid_request"
    for name in (
        "Context",
        "context ",
        "contexts",
        "K",
        "prompt_embeds",
        "__class__",
        "url",
        "path",
        "",
        "\u0000",
        CANARY,
    ):
        yield f"unknown {name!r}", post("/v1/recommend", {**whole, name: 1}), "invalid_request"
    for value in ({}, {"k": 3}, {"contexts": []}, {"contexts": [{}] * 65}, {"contexts": [{}, None]}, {"contexts": {}}):
        yield f"contexts {value!r:.30}", post("/v1/recommend_many", value), "invalid_request"
    for place, value in enumerate([None, True, 1, [1], 1.5, CANARY]):
        code = "ok" if isinstance(value, str) else "invalid_context"
        yield f"feature {place}", post("/v1/recommend", {"context": {"region": value}}), code
        yield f"unknown feature {place}", post("/v1/recommend", {"context": {CANARY: value}}), "invalid_context"
    for place, text in enumerate(TEXTS):
        yield f"text {place}", post("/v1/recommend", {"context": {"note": text, "region": CANARY}}), "ok"
        utf8 = json.dumps({"context": {"history": [text, text]}}, ensure_ascii=False).encode()
        yield f"texts {place}", post("/v1/recommend", utf8), "ok" if len(utf8) < 16_384 else "body_too_large"
    for k, milliseconds in itertools.product((1, 2, 30, 31, 64), (None, 1, 0.5, 9_999, 10_000)):
        if milliseconds is None or milliseconds > 100:  # the fake keeps no deadline, so short ones say nothing
            body = {**whole, "k": k, "deadline_ms": milliseconds, "priority": "bulk", "client": "a" * 64}
            yield f"bounds {k} {milliseconds}", post("/v1/recommend", body), "ok"


def body_cases() -> Iterator[Case]:
    good = b'{"context":{}}'
    for place, body in enumerate(
        [b"", b" ", b"1", b"[]", b'"a"', b"null", b"true", b"\xef\xbb\xbf" + good, '{"context":{}}'.encode("utf-16"),
         b'{"context":{"note":"\xff"}}', b'{"context":{"note":"\xc0\xaf"}}', b'{"context":{"note":"\xed\xa0\x80"}}',
         b'{"context":{"\xf4\x90\x80\x80":1}}', good + good, good + b"x", good + b"\x00", b"\x00" + good, good[:-1],
         good[1:], b"context=1", b"<context/>", b"\x1f\x8b\x08\x00", b"PK\x03\x04", b"\x80\x04\x95", b"--- {}", b"{}{}"]
    ):  # fmt: skip
        yield f"body {place}", post("/v1/recommend", body), "malformed_json"
    yield "body of spaces", post("/v1/recommend", b" " * 1_000 + good + b"\r\n\t "), "ok"
    yield "body at the bound", post("/v1/recommend", good + b" " * (16_384 - len(good))), "ok"
    yield "body over the bound", post("/v1/recommend", good + b" " * (16_385 - len(good))), "body_too_large"
    for value in ("gzip", "br", "deflate", "identity, gzip", "zstd", "x", ","):
        yield f"encoding {value}", post("/v1/recommend", good, Content_Encoding=value), "unsupported_encoding"
    for value in ("identity", "Identity", "  identity  "):
        yield f"encoding {value!r}", post("/v1/recommend", good, Content_Encoding=value), "ok"
    typed = good_with_type
    for value in ("text/plain", "", "application/xml", "application/x-www-form-urlencoded", "multipart/form-data",
                  "application/json; charset=utf-16", "application/json, text/plain", "application/jsonp", "*/*",
                  "application/octet-stream", "application/json;charset=utf-8;x=y", "application/pickle"):  # fmt: skip
        yield f"type {value!r}", typed(value), "unsupported_media_type"
    for value in (
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
    ):
        yield f"type {value!r}", typed(value), "ok"


def good_with_type(value: str) -> bytes:
    return post("/v1/recommend", b'{"context":{}}').replace(b": application/json\r\n", f": {value}\r\n".encode())


def route_cases() -> Iterator[Case]:
    for target, method in itertools.product(TARGETS, ("GET", "POST")):
        raw = get(target) if method == "GET" else post(target, {"context": {}})
        yield f"{method} {target:.30}", raw, "not_found"
    for method, route in itertools.product(METHODS, ("/v1/recommend", "/v1/recommend_many")):
        yield f"{method} {route}", get(route).replace(b"GET", method.encode()), "method_not_allowed"
    for route in ("/v1/recommend", "/v1/recommend_many"):
        yield f"GET {route}", get(route), "method_not_allowed"
    for route in ("/v1/intents", "/health/live", "/health/ready", "/health/degraded", "/metrics"):
        yield f"POST {route}", post(route, {}), "method_not_allowed"
        yield f"GET {route}", get(route), "ok"
    for value in (
        "0",
        "1001",
        "-1",
        "+1",
        "1e2",
        "1.0",
        "",
        "x",
        "0x1",
        "%D9%A1",
        "%00",
        "1%201",
        "99999",
        "NaN",
        "1_0",
    ):
        yield f"limit {value}", get(f"/v1/intents?limit={value}"), "invalid_request"
    for value in ("", "a", "%00", "%ff", CANARY, "..%2f..", "a" * 3_000, "%F0%9F%98%80"):
        yield f"after {value:.20}", get(f"/v1/intents?after={value}&limit=3"), "ok"
    for value in ("a b", "<x>", '"', "a" * 65, CANARY + "/", "é"):
        yield f"request id {value:.10}", get("/health/live", X_Request_Id=value), "ok"
    for name in ("X-Forwarded-For", "X-Forwarded-Host", "X-HTTP-Method-Override", "X-Original-URL", "Authorization"):
        yield name, get("/health/live", **{name: CANARY}), "ok"


def cases() -> list[Case]:
    return [*literal_cases(), *field_cases(), *body_cases(), *route_cases()]


def faults(name: str, raw: bytes, wanted: str, answer: Answer) -> Iterator[str]:
    if not raw.startswith(b"HEAD "):  # whose answers have no body
        got = "ok" if answer.status == 200 else str(answer.json()["error"]["code"])
        if got != wanted:
            yield f"{name}: {got} instead of {wanted}: {answer.body!r:.300}"
    status = 200 if wanted == "ok" else ERRORS[ErrorCode(wanted)][0]
    if answer.status != status or "x-request-id" not in answer.headers:
        yield f"{name}: {answer.status} instead of {status}, {answer.headers}"
    if LEAK.search(answer.body + repr(answer.headers).encode()):
        yield f"{name}: leaks {answer.body!r:.300}, {answer.headers}"


def test_every_curated_request_gets_the_answer_it_must(running: Any) -> None:
    async def run(chosen: list[Case]) -> None:
        wire = await Wire.open(running.host, running.port)
        for name, raw, wanted in chosen:
            answer = await wire.ask(raw)
            wrong.extend(faults(name, raw, wanted, answer))
            if answer.headers.get("connection") == "close":
                await wire.close()
                wire = await Wire.open(running.host, running.port)
        await wire.close()

    wrong: list[str] = []
    curated = cases()
    assert len(curated) >= 800
    assert len({name for name, _, _ in curated}) == len(curated)
    asyncio.run(run(curated))
    assert wrong == []
    assert running.process.poll() is None
    log = running.log_text()
    assert CANARY not in log
    assert all(isinstance(json.loads(line), dict) for line in log.splitlines())
    summarise("http_curated", requests=len(curated), wrong=0, answers=dict(Counter(wanted for _, _, wanted in curated)))
