"""Typed clients of the service.

    with Client("http://127.0.0.1:8080") as client:
        answer = client.recommend({"region": "SG", "entry_point": "order_page"}, k=3, deadline_ms=500)
        answer.intents[0].title

``AsyncClient`` is the same with ``await``; ``AdminClient`` swaps and drains. Recommending has no effect, so it is tried
again where ``retries.py`` allows; an admin request never is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from rgalign.errors import RgalignError
from rgalign.service.retries import Retries, RetryPolicy
from rgalign.service.schemas import (
    DrainResponse,
    ErrorResponse,
    Intent,
    IntentsResponse,
    Item,
    RecommendManyResponse,
    RecommendResponse,
    StatusResponse,
    SwapBundleResponse,
    SwapIndexResponse,
)

AnswerT = TypeVar("AnswerT", bound=BaseModel)
Priority = Literal["interactive", "bulk"]
HEADERS = {"Accept-Encoding": "identity"}


class ServiceError(RgalignError, RuntimeError):
    """The service refused, or did not answer. ``code`` is one of docs/http.md's, or "unreachable" or "not_understood".

    Attributes:
        status: of HTTP; 0 where there was no answer.
        retry_after_ms: with overload.
    """

    def __init__(
        self,
        *,
        where: str,
        required: str,
        received: str,
        code: str,
        status: int = 0,
        field: str | None = None,
        retry_after_ms: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(where=where, required=required, received=received)
        self.code = code
        self.status = status
        self.field = field
        self.retry_after_ms = retry_after_ms
        self.request_id = request_id


def recommend_body(
    context: Mapping[str, Any], k: int, deadline_ms: float | None, client: str, priority: Priority
) -> dict[str, Any]:
    return {"context": dict(context), "k": k, "deadline_ms": deadline_ms, "client": client, "priority": priority}


def many_body(
    contexts: Sequence[Mapping[str, Any]], k: int, deadline_ms: float | None, client: str, priority: Priority
) -> dict[str, Any]:
    contexts = [dict(context) for context in contexts]
    return {"contexts": contexts, "k": k, "deadline_ms": deadline_ms, "client": client, "priority": priority}


def understood(kind: type[AnswerT], response: httpx.Response) -> AnswerT:
    """The body of an answer.

    Raises:
        ServiceError: it is a refusal, or no answer of this service.
    """
    where = f"{response.request.method} {response.request.url.path}"
    try:
        if response.is_success:
            return kind.model_validate_json(response.content)
        error = ErrorResponse.model_validate_json(response.content).error
    except ValidationError as cause:
        received = f"status {response.status_code} and another body"
        raise ServiceError(
            where=where, required="an answer of rgalign", received=received, code="not_understood",
            status=response.status_code,
        ) from cause  # fmt: skip
    raise ServiceError(
        where=f"{where}{f' {error.field}' if error.field else ''}",
        required=error.required or "an accepted request",
        received=f"{error.code}: {error.message}",
        code=error.code,
        status=response.status_code,
        field=error.field,
        retry_after_ms=error.retry_after_ms,
        request_id=error.request_id,
    )


def unreachable(error: httpx.TransportError, where: str) -> ServiceError:
    return ServiceError(where=where, required="an answer", received=type(error).__name__, code="unreachable")


class Client:
    """Blocking; may be shared by threads.

    Args:
        url: of the public listener.
        timeout_s: for a call with its retries; how long any one read or write of it may take.
        client: who asks, for the server's limit per client.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 5.0,
        client: str = "",
        retry: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._retries = Retries(retry or RetryPolicy())
        self._http = httpx.Client(
            base_url=url, timeout=timeout_s, headers=HEADERS, trust_env=False, transport=transport
        )

    def recommend(
        self,
        context: Mapping[str, Any],
        k: int = 3,
        *,
        deadline_ms: float | None = None,
        priority: Priority = "interactive",
    ) -> RecommendResponse:
        """The ``k`` intents that the user of ``context`` most likely came for.

        Raises:
            ServiceError: refused, or no answer in time.
        """
        body = recommend_body(context, k, deadline_ms, self._client, priority)
        return understood(RecommendResponse, self._send("POST", "/v1/recommend", json=body))

    def recommend_many(
        self,
        contexts: Sequence[Mapping[str, Any]],
        k: int = 3,
        *,
        deadline_ms: float | None = None,
        priority: Priority = "bulk",
    ) -> list[Item]:
        """An item for each context, in their order: a recommendation or an error."""
        body = many_body(contexts, k, deadline_ms, self._client, priority)
        return understood(RecommendManyResponse, self._send("POST", "/v1/recommend_many", json=body)).items

    def intents(self) -> Iterator[Intent]:
        """The catalogue in id order."""
        after: str | None = ""
        while after is not None:
            page = understood(IntentsResponse, self._send("GET", "/v1/intents", params={"after": after}))
            yield from page.intents
            after = page.next

    def ready(self) -> bool:
        """Whether the server takes requests and its last real answer was good."""
        try:
            return self._http.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        began = self._retries.begin()
        attempt = 0
        while True:
            attempt += 1
            failure: httpx.Response | httpx.TransportError
            try:
                failure = self._http.request(method, path, **arguments)
                if failure.is_success:
                    return failure
            except httpx.TransportError as error:
                failure = error
            pause = self._retries.pause(attempt, failure, self._timeout_s - (time.monotonic() - began))
            if pause is None:
                if isinstance(failure, httpx.Response):
                    return failure
                raise unreachable(failure, f"{method} {path}") from failure
            time.sleep(pause)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    """``Client`` for coroutines; of one event loop."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 5.0,
        client: str = "",
        retry: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._retries = Retries(retry or RetryPolicy())
        self._http = httpx.AsyncClient(
            base_url=url, timeout=timeout_s, headers=HEADERS, trust_env=False, transport=transport
        )

    async def recommend(
        self,
        context: Mapping[str, Any],
        k: int = 3,
        *,
        deadline_ms: float | None = None,
        priority: Priority = "interactive",
    ) -> RecommendResponse:
        """As ``Client.recommend``. Cancelling the task cancels the request on the server."""
        body = recommend_body(context, k, deadline_ms, self._client, priority)
        return understood(RecommendResponse, await self._send("POST", "/v1/recommend", json=body))

    async def recommend_many(
        self,
        contexts: Sequence[Mapping[str, Any]],
        k: int = 3,
        *,
        deadline_ms: float | None = None,
        priority: Priority = "bulk",
    ) -> list[Item]:
        """As ``Client.recommend_many``."""
        body = many_body(contexts, k, deadline_ms, self._client, priority)
        return understood(RecommendManyResponse, await self._send("POST", "/v1/recommend_many", json=body)).items

    async def intents(self) -> AsyncIterator[Intent]:
        """As ``Client.intents``."""
        after: str | None = ""
        while after is not None:
            page = understood(IntentsResponse, await self._send("GET", "/v1/intents", params={"after": after}))
            for intent in page.intents:
                yield intent
            after = page.next

    async def ready(self) -> bool:
        """As ``Client.ready``."""
        try:
            return (await self._http.get("/health/ready")).status_code == 200
        except httpx.TransportError:
            return False

    async def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        began = self._retries.begin()
        attempt = 0
        while True:
            attempt += 1
            failure: httpx.Response | httpx.TransportError
            try:
                failure = await self._http.request(method, path, **arguments)
                if failure.is_success:
                    return failure
            except httpx.TransportError as error:
                failure = error
            pause = self._retries.pause(attempt, failure, self._timeout_s - (time.monotonic() - began))
            if pause is None:
                if isinstance(failure, httpx.Response):
                    return failure
                raise unreachable(failure, f"{method} {path}") from failure
            await asyncio.sleep(pause)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AdminClient:
    """Of the admin listener. A request is sent once: whether a swap that was not answered was made, ``status`` says."""

    def __init__(self, url: str, token: str, *, timeout_s: float = 600.0) -> None:
        headers = {**HEADERS, "Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url, timeout=timeout_s, headers=headers, trust_env=False)

    def swap_index(self, name: str) -> int:
        """Answers come from the index ``name`` in the bundle root; the new generation."""
        return self._post(SwapIndexResponse, "/admin/swap_index", {"name": name}).generation

    def swap_bundle(self, name: str) -> str:
        """Answers come from the bundle ``name`` in the bundle root; its hash."""
        return self._post(SwapBundleResponse, "/admin/swap_bundle", {"name": name}).bundle

    def drain(self, timeout_s: float = 4.0) -> bool:
        """No new requests from now on; whether those under way were answered in time."""
        return self._post(DrainResponse, "/admin/drain", {"timeout_s": timeout_s}).drained

    def status(self) -> StatusResponse:
        return self._once(StatusResponse, "GET", "/admin/status")

    def _post(self, kind: type[AnswerT], path: str, body: Mapping[str, Any]) -> AnswerT:
        return self._once(kind, "POST", path, json=body)

    def _once(self, kind: type[AnswerT], method: str, path: str, **arguments: Any) -> AnswerT:
        try:
            return understood(kind, self._http.request(method, path, **arguments))
        except httpx.TransportError as error:
            raise unreachable(error, f"{method} {path}") from error

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
