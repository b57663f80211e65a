"""The public routes, in this process."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from rgalign.service.app import ROUTES, Service, public_app
from rgalign.service.boundary import Boundary
from rgalign.service.errors import ERRORS, ErrorCode
from rgalign.service.settings import ServiceSettings

Client = httpx.AsyncClient
WithService = Callable[..., None]


def expect(response: httpx.Response, code: ErrorCode, field: str | None = None) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert (response.status_code, error["code"], error["message"]) == (ERRORS[code][0], code.value, ERRORS[code][1])
    assert error["field"] == field
    assert error["request_id"] == response.headers["x-request-id"]
    return error


def test_an_answer_has_every_number_of_the_recommenders(with_service: WithService) -> None:
    async def use(client: Client, service: Service, recommender: Any) -> None:
        context = {"region": "SG", "history": ["a", "b"], "note": "é😀\u0000"}
        response = await client.post("/v1/recommend", json={"context": context, "k": 5})
        assert response.status_code == 200
        got, wanted = response.json(), recommender.answer_to(context, 5)
        assert [tuple(intent.values()) for intent in got["intents"]] == [
            (i.id, i.title, i.score, i.user_part, i.query_part, i.probability) for i in wanted.intents
        ]
        assert len({intent["score"] for intent in got["intents"]}) > 1
        assert (got["show"], got["degraded"], got["bundle"], got["generation"]) == (True, None, "b" * 64, 1)
        assert got["timings"]["total_ms"] == 0.7
        assert got["request_id"] == response.headers["x-request-id"]

    with_service(use)


def test_a_batch_answers_each_context_for_itself(with_service: WithService) -> None:
    async def use(client: Client, service: Service, recommender: Any) -> None:
        contexts: list[dict[str, Any]] = [{"region": "SG"}, {"nope": 1}, {"do": "overload"}, {"do": "degraded"}]
        response = await client.post("/v1/recommend_many", json={"contexts": contexts, "k": 2})
        first, unknown, overload, degraded = response.json()["items"]
        assert response.status_code == 200
        single = (await client.post("/v1/recommend", json={"context": contexts[0], "k": 2})).json()
        assert first["recommendation"] == {name: single[name] for name in first["recommendation"]}
        assert unknown["error"]["code"] == "invalid_context"
        assert (overload["error"]["code"], overload["error"]["retry_after_ms"]) == ("overloaded", 1_234.0)
        assert degraded["recommendation"]["degraded"] == "late"
        expect(
            await client.post("/v1/recommend_many", json={"contexts": [{}] * 5}), ErrorCode.INVALID_REQUEST, "contexts"
        )
        expect(await client.post("/v1/recommend_many", json={"contexts": []}), ErrorCode.INVALID_REQUEST, "contexts")

    with_service(use, max_batch=4)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("overload", ErrorCode.OVERLOADED),
        ("cap", ErrorCode.CLIENT_LIMIT),
        ("closed", ErrorCode.SHUTTING_DOWN),
        ("late", ErrorCode.DEADLINE_EXCEEDED),
        ("long", ErrorCode.CONTEXT_TOO_LONG),
        ("model", ErrorCode.UNAVAILABLE),
        ("bug", ErrorCode.INTERNAL),
    ],
)
def test_what_the_recommender_raises_becomes_a_code_without_its_text(
    fault: str, code: ErrorCode, caplog: pytest.LogCaptureFixture, with_service: WithService
) -> None:
    async def use(client: Client, service: Service, recommender: Any) -> None:
        response = await client.post("/v1/recommend", json={"context": {"do": fault, "note": "CANARY"}})
        error = expect(response, code)
        logged = str([vars(record) for record in caplog.records])
        assert "'route': '/v1/recommend'" in logged
        for told in (response.text, str(response.headers), logged, service.meters.text().decode()):
            assert "CANARY" not in told
            assert "deadbeef" not in told
        if code is ErrorCode.OVERLOADED:
            assert (response.headers["retry-after"], error["retry_after_ms"]) == ("2", 1_234.0)

    caplog.set_level(logging.DEBUG)
    with_service(use)


def test_a_wrong_feature_is_named_in_the_schemas_words_only(with_service: WithService) -> None:
    async def use(client: Client, service: Service, recommender: Any) -> None:
        async def refused(context: dict[str, Any], field: str | None) -> str | None:
            response = await client.post("/v1/recommend", json={"context": context})
            assert "CANARY" not in response.text
            required: str | None = expect(response, ErrorCode.INVALID_CONTEXT, field)["required"]
            return required

        assert await refused({"ms": "CANARY"}, "ms") == "a number"
        assert await refused({"history": "CANARY"}, "history") == "a list"
        assert await refused({"CANARY": 1}, "context") == "features of the schema"
        assert await refused({"do": "elsewhere"}, None) is None

    with_service(use)


def test_a_number_that_is_not_finite_is_no_answer(with_service: WithService) -> None:
    async def use(client: Client, service: Service, recommender: Any) -> None:
        response = await client.post("/v1/recommend", json={"context": {"do": "nan"}})
        expect(response, ErrorCode.INTERNAL)

    with_service(use)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-type": "text/plain"}, ErrorCode.UNSUPPORTED_MEDIA_TYPE),
        ({"content-type": ""}, ErrorCode.UNSUPPORTED_MEDIA_TYPE),
        ({"content-type": "application/json; charset=latin-1"}, ErrorCode.UNSUPPORTED_MEDIA_TYPE),
        ({"content-type": "application/x-www-form-urlencoded"}, ErrorCode.UNSUPPORTED_MEDIA_TYPE),
        ({"content-encoding": "gzip"}, ErrorCode.UNSUPPORTED_ENCODING),
        ({"content-encoding": "identity, gzip"}, ErrorCode.UNSUPPORTED_ENCODING),
        ({"content-type": 'application/JSON; charset="UTF-8"', "content-encoding": "identity"}, None),
    ],
)
def test_media_types_and_encodings(headers: dict[str, str], code: ErrorCode | None, with_service: WithService) -> None:
    async def use(client: Client, service: Service, recommender: Any) -> None:
        headers_sent = {"content-type": "application/json", **headers}
        response = await client.post("/v1/recommend", content=b'{"context":{}}', headers=headers_sent)
        if code is None:
            assert response.status_code == 200
        else:
            expect(response, code)

    with_service(use)


def test_routes_that_there_are_not(with_service: WithService) -> None:
    async def use(client: Client, service: Service, recommender: Any) -> None:
        paths = ("/", "/v1/recommend/", "/V1/recommend", "//v1/recommend", "/v1/../v1/recommend%00", "/admin/status")
        for path in (*paths, "/docs", "/redoc", "/v1/recommend/{x}"):
            expect(await client.get(path), ErrorCode.NOT_FOUND)
        for method in ("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW"):
            response = await client.request(method, "/v1/recommend")
            assert response.status_code == 405, method
        assert 'route="unmatched"' in service.meters.text().decode()
        assert "admin" not in service.meters.text().decode()

    with_service(use)


def test_request_ids_are_kept_when_they_are_plain(with_service: WithService) -> None:
    async def use(client: Client, service: Service, recommender: Any) -> None:
        async def told(given: bytes) -> str:
            response = await client.get("/health/live", headers=[(b"x-request-id", given)])
            return str(response.headers["x-request-id"])

        assert await told(b"abc-1._Z") == "abc-1._Z"
        fresh = {await told(given) for given in (b"", b"a" * 65, b"a b", b"\xc3\xa9", b'"', b"<script>")}
        assert len(fresh) == 6
        assert all(len(each) == 32 for each in fresh)

    with_service(use)


def test_health_tells_ready_degraded_and_draining_apart(with_service: WithService) -> None:
    async def use(client: Client, service: Service, recommender: Any) -> None:
        async def statuses() -> list[int]:
            return [(await client.get(f"/health/{name}")).status_code for name in ("live", "ready", "degraded")]

        assert await statuses() == [200, 200, 200]
        recommender.state = replace(recommender.state, degraded=True, breaker="open")
        assert await statuses() == [200, 200, 503]
        assert 'rgalign_breaker{state="open"} 1.0' in service.meters.text().decode()
        recommender.state = replace(recommender.state, degraded=False, ready=False)
        assert await statuses() == [200, 503, 200]
        recommender.state = replace(recommender.state, ready=True)
        assert await service.lifecycle.drained(0.1)
        assert await statuses() == [200, 503, 200]
        response = await client.post("/v1/recommend", json={"context": {}})
        expect(response, ErrorCode.DRAINING)
        assert response.headers["connection"] == "close"
        assert recommender.asked == 0

    with_service(use)


def test_intents_come_in_pages(with_service: WithService) -> None:
    async def use(client: Client, service: Service, recommender: Any) -> None:
        first = (await client.get("/v1/intents?limit=20")).json()
        second = (await client.get("/v1/intents", params={"limit": 20, "after": first["next"]})).json()
        ids = [intent["id"] for intent in first["intents"] + second["intents"]]
        assert ids == [intent.id for intent in recommender.catalogue]
        assert (first["total"], second["next"], len(second["intents"])) == (30, None, 10)
        assert (await client.get("/v1/intents?after=zzz")).json()["intents"] == []
        for limit in ("0", "1001", "-1", "1e2", "²", ""):
            expect(await client.get("/v1/intents", params={"limit": limit}), ErrorCode.INVALID_REQUEST, "limit")

    with_service(use)


def test_the_end_of_the_service_answers_who_is_left_and_cancels_the_work(with_service: WithService) -> None:
    async def use(client: Client, service: Service, recommender: Any) -> None:
        waiting = asyncio.ensure_future(client.post("/v1/recommend", json={"context": {"ms": 60_000}}))
        while service.lifecycle.in_flight == 0:
            await asyncio.sleep(0.01)
        assert not await service.lifecycle.drained(0.01)
        await service.lifecycle.end()
        expect(await waiting, ErrorCode.SHUTTING_DOWN)
        await asyncio.sleep(0)
        assert recommender.cancelled == 1

    with_service(use)


def test_a_recommender_that_keeps_no_deadline_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, with_service: WithService
) -> None:
    async def use(client: Client, service: Service, recommender: Any) -> None:
        response = await client.post("/v1/recommend", json={"context": {"ms": 60_000}, "deadline_ms": 20})
        expect(response, ErrorCode.DEADLINE_EXCEEDED)
        too_long = await client.post("/v1/recommend", json={"context": {}, "deadline_ms": 1e6})
        expect(too_long, ErrorCode.INVALID_REQUEST, "deadline_ms")
        await asyncio.sleep(0)
        assert recommender.cancelled == 1

    monkeypatch.setattr("rgalign.service.app.GRACE_S", 0.05)
    with_service(use)


def test_a_client_that_leaves_takes_its_request_along(fakes: Any) -> None:
    async def run() -> None:
        recommender = fakes.FakeRecommender()
        service = Service.of(recommender, ServiceSettings())
        left = asyncio.Event()
        body = b'{"context":{"ms":60000}}'
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            for message in messages:
                return message
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        sent: list[Any] = []
        headers = [(b"content-type", b"application/json"), (b"host", b"a")]
        scope = {"type": "http", "method": "POST", "path": "/v1/recommend", "headers": headers, "query_string": b""}
        task = asyncio.ensure_future(public_app(service)(scope, receive, send))
        while service.lifecycle.in_flight == 0:
            await asyncio.sleep(0.01)
        left.set()
        await asyncio.wait_for(task, 5)
        await asyncio.sleep(0)
        assert (recommender.cancelled, sent[0]["status"]) == (1, 499)

    asyncio.run(run())


def test_openapi_describes_every_route_and_its_examples_are_true(with_service: WithService) -> None:
    async def use(client: Client, service: Service, recommender: Any) -> None:
        document = (await client.get("/openapi.json")).json()
        assert set(document["paths"]) == set(ROUTES) - {"/metrics", "/openapi.json"}
        recommend = document["paths"]["/v1/recommend"]["post"]
        content = recommend["requestBody"]["content"]["application/json"]
        assert set(content["schema"]["properties"]) == {"context", "k", "deadline_ms", "client", "priority"}
        assert {"200", "400", "413", "415", "422", "429", "503"} <= set(recommend["responses"])
        example = {**content["example"], "context": {}}  # the example's features are of another schema
        assert (await client.post("/v1/recommend", json=example)).status_code == 200
        shown = recommend["responses"]["200"]["content"]["application/json"]["example"]
        told = (await client.post("/v1/recommend", json={"context": {}, "k": 1})).json()
        assert json.dumps(shape(shown)) == json.dumps(shape(told))

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            # FastAPI leaves nulls out of examples
            return {name: shape(value[name]) for name in sorted(value) if value[name] is not None}
        return [shape(value[0])] if isinstance(value, list) else type(value).__name__

    with_service(use)


def test_a_fault_outside_every_route_is_still_answered(fakes: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("CANARY at 0x7f00deadbeef")

    async def run() -> None:
        service = Service.of(fakes.FakeRecommender(), ServiceSettings())
        transport = httpx.ASGITransport(Boundary(broken, service.meters, ROUTES))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            response = await client.get("/health/live")
        expect(response, ErrorCode.INTERNAL)
        logged = str([vars(record) for record in caplog.records])
        assert "'error': 'RuntimeError'" in logged
        assert "CANARY" not in response.text + logged

    caplog.set_level(logging.DEBUG)
    asyncio.run(run())
