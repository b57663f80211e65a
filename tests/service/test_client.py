"""The typed clients: what they return and raise, and when they ask again."""

from __future__ import annotations

import ast
import asyncio
import inspect
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from rgalign.service.app import Service, public_app
from rgalign.service.client import AdminClient, AsyncClient, Client, ServiceError
from rgalign.service.retries import Retries, RetryPolicy, retriable
from rgalign.service.settings import ServiceSettings

TOKEN = "a-token-of-the-tests"
QUICK = RetryPolicy(first_pause_s=0.001)
OK = {
    "intents": [{"id": "a", "title": "A", "score": 0.5, "user_part": 0.25, "query_part": 0.25, "probability": 0.5}],
    "show": True, "degraded": None, "bundle": "b", "generation": 1, "request_id": "r",
    "timings": dict.fromkeys(("tokenise_ms", "queue_ms", "reason_ms", "rank_ms", "total_ms"), 0.0),
}  # fmt: skip


def refusal(code: str, retry_after_ms: float | None = None) -> dict[str, Any]:
    return {"error": {"code": code, "message": "m", "retry_after_ms": retry_after_ms, "request_id": "r"}}


class Script:
    """A server that answers as it is told, and counts."""

    def __init__(self, *answers: tuple[int, Any] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        status, body = answer
        return httpx.Response(status, content=body) if isinstance(body, bytes) else httpx.Response(status, json=body)


def scripted(script: Script, retry: RetryPolicy = QUICK, timeout_s: float = 5.0) -> Client:
    return Client("http://s", transport=httpx.MockTransport(script), retry=retry, timeout_s=timeout_s)


def test_the_blocking_client_over_a_socket(running: Any, fakes: Any) -> None:
    context = {"region": "SG", "history": ["a", "b"]}
    with Client(f"http://{running.host}:{running.port}", client="tests") as client:
        answer = client.recommend(context, k=4, deadline_ms=5_000)
        wanted = fakes.FakeRecommender().answer_to(context, 4)
        assert [(i.id, i.score) for i in answer.intents] == [(i.id, i.score) for i in wanted.intents]
        good, bad = client.recommend_many([context, {"nope": 1}], k=1)
        assert good.recommendation is not None
        assert good.recommendation.intents == answer.intents[:1]
        assert bad.error is not None
        assert bad.error.code == "invalid_context"
        assert client.ready()
        with pytest.raises(
            ServiceError, match="recommend region: required a string; received invalid_context"
        ) as caught:
            client.recommend({"region": 7})
        assert (caught.value.status, caught.value.code) == (422, "invalid_context")
        with pytest.raises(ServiceError, match="/v1/recommend k: required Input should be less than or equal to 64"):
            client.recommend({}, k=65)
    with AdminClient(f"http://{running.host}:{running.admin_port}", TOKEN) as admin:
        assert admin.status().bundle == answer.bundle
        with pytest.raises(ServiceError) as caught:
            admin.swap_index("good")  # no bundle root
        assert caught.value.code == "unknown_name"
    with AdminClient(f"http://{running.host}:{running.admin_port}", TOKEN + "x") as admin:
        with pytest.raises(ServiceError, match="unauthorised"):
            admin.status()


def test_the_client_for_coroutines(fakes: Any) -> None:
    async def run() -> None:
        catalogue = tuple(fakes.FakeIntent(f"{number:05d}", "…", "…") for number in range(2_500))
        service = Service.of(fakes.FakeRecommender(catalogue=catalogue), ServiceSettings())
        async with AsyncClient("http://s", transport=httpx.ASGITransport(public_app(service)), retry=QUICK) as client:
            answer = await client.recommend({"region": "SG"}, k=2)
            assert len(answer.intents) == 2
            (item,) = await client.recommend_many([{"region": "SG"}], k=2)
            assert item.recommendation is not None
            assert item.recommendation.intents == answer.intents
            assert [intent.id async for intent in client.intents()] == [intent.id for intent in catalogue]
            assert await client.ready()
            with pytest.raises(ServiceError) as caught:
                await client.recommend({"do": "late"})
            assert (caught.value.status, caught.value.code) == (504, "deadline_exceeded")
            with pytest.raises(ServiceError) as caught:
                await client.recommend({"do": "overload"})
            assert caught.value.retry_after_ms == 1_234.0

    asyncio.run(run())


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ([(503, refusal("draining")), (429, refusal("overloaded", 1.0)), (200, OK)], 3),
        ([httpx.ConnectError("no"), (200, OK)], 2),
        ([httpx.ReadError("reset"), httpx.RemoteProtocolError("closed"), (200, OK)], 3),
    ],
)
def test_asks_again_where_it_is_safe(answers: list[Any], asked: int) -> None:
    script = Script(*answers)
    assert scripted(script).recommend({}).intents[0].id == "a"
    assert len(script.asked) == asked
    assert len({request.content for request in script.asked}) == 1


@pytest.mark.parametrize(
    ("answer", "code", "asked"),
    [
        ((503, refusal("draining")), "draining", 3),
        ((429, refusal("overloaded", 60_000.0)), "overloaded", 1),  # longer than this client waits
        ((422, refusal("invalid_context")), "invalid_context", 1),
        ((500, refusal("internal")), "internal", 1),
        ((504, refusal("deadline_exceeded")), "deadline_exceeded", 1),
        (httpx.ReadTimeout("slow"), "unreachable", 1),
        (httpx.ConnectError("no"), "unreachable", 3),
        ((502, b"<html>"), "not_understood", 3),
        ((200, b'{"intents": []}'), "not_understood", 1),
        ((302, b""), "not_understood", 1),
    ],
)
def test_gives_up_with_the_reason(answer: Any, code: str, asked: int) -> None:
    script = Script(answer)
    with pytest.raises(ServiceError) as caught:
        scripted(script).recommend({})
    assert (caught.value.code, len(script.asked)) == (code, asked)
    again = Script(answer)

    async def run() -> None:
        client = AsyncClient("http://s", transport=httpx.MockTransport(again), retry=QUICK)
        with pytest.raises(ServiceError) as caught:
            await client.recommend({})
        assert caught.value.code == code

    asyncio.run(run())
    assert len(again.asked) == asked


def test_retries_are_a_share_of_requests_however_long_the_overload() -> None:
    script = Script((503, refusal("draining")))
    client = scripted(script, RetryPolicy(first_pause_s=1e-4, share=0.1, saved=5))
    for _ in range(200):
        with pytest.raises(ServiceError):
            client.recommend({})
    assert 200 + 5 < len(script.asked) <= 200 + 5 + 20


def test_the_pause_is_the_servers_wish_or_grows_and_fits_into_the_time_left() -> None:
    def pause(attempt: int, retry_after_ms: float | None, time_left_s: float, luck: float = 0.0) -> float | None:
        retries = Retries(RetryPolicy(first_pause_s=0.1, max_attempts=9), rng=lambda: luck)
        return retries.pause(attempt, httpx.Response(503, json=refusal("draining", retry_after_ms)), time_left_s)

    assert [pause(attempt, None, 99) for attempt in (1, 2, 3, 8)] == [0.1, 0.2, 0.4, 2.0]
    assert pause(1, 500.0, 99) == 0.5
    assert pause(1, 500.0, 99, luck=1.0) == 0.75
    assert pause(1, 500.0, 0.5) is None
    assert pause(9, None, 99) is None


def test_an_admin_request_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(httpx.ReadError("reset"))
    admin = AdminClient("http://s", TOKEN)
    monkeypatch.setattr(admin, "_http", httpx.Client(transport=httpx.MockTransport(script), base_url="http://s"))
    for call in (lambda: admin.swap_index("a"), lambda: admin.swap_bundle("a"), lambda: admin.drain(), admin.status):
        with pytest.raises(ServiceError, match="unreachable|ReadError"):
            call()
    assert len(script.asked) == 4


def test_client_needs_none_of_the_servers_stack() -> None:
    """Over all modules of ours that it imports."""

    def imported(name: str, seen: set[str]) -> set[str]:
        __import__(name)
        for node in ast.walk(ast.parse(inspect.getsource(sys.modules[name]))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for each in set(names) - seen:
                seen.add(each)
                if each.startswith("rgalign."):
                    imported(each, seen)
        return seen

    found = imported("rgalign.service.client", set())
    assert "rgalign.service.retries" in found
    tops = {name.split(".")[0] for name in found} - set(sys.stdlib_module_names)
    assert tops == {"rgalign", "httpx", "pydantic", "yaml"}


def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch, running: Any) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    make: Callable[[], Client] = lambda: Client(f"http://{running.host}:{running.port}", retry=QUICK)  # noqa: E731
    with make() as client:
        assert client.ready()


def test_what_a_proxy_says_in_its_own_words_is_tried_again() -> None:
    for status in (500, 502, 503, 504):
        assert retriable(httpx.Response(status, text="Internal Server Error")), status
    assert not retriable(httpx.Response(500, json=refusal("internal")))
    assert not retriable(httpx.Response(404, text="Not Found"))
