"""What every request gets, whatever becomes of it: an id, a span, a count, one log line, and exactly one answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from opentelemetry.trace import Span
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rgalign.service.errors import ErrorCode, ServiceFault
from rgalign.service.logs import fault_fields, log_event
from rgalign.service.metrics import Meters
from rgalign.service.tracing import end_span, start_span

MAX_ID_CHARS = 64
IN_ID = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_.")
METHODS = frozenset(("GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"))
UNMATCHED = "unmatched"
ALWAYS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


@dataclass
class Exchange:
    """One request and what is known of its answer; ``scope["state"]["exchange"]``."""

    request_id: str
    span: Span
    code: ErrorCode | None = None
    fields: dict[str, Any] = field(default_factory=dict)  # for the log line: no user's values


class Boundary:
    """The outermost application of a listener."""

    def __init__(self, app: ASGIApp, meters: Meters, routes: Collection[str]) -> None:
        self._app = app
        self._meters = meters
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = dict(scope["headers"])
        route = scope["path"] if scope["path"] in self._routes else UNMATCHED
        method = scope["method"] if scope["method"] in METHODS else "other"
        exchange = Exchange(
            request_id_of(headers), start_span(f"{method} {route}", headers.get(b"traceparent", b"").decode("latin-1"))
        )
        scope.setdefault("state", {})["exchange"] = exchange
        told = Told(send, exchange.request_id)
        try:
            if b"%" in scope.get("raw_path", b""):  # another spelling of a route, which a proxy's rules may not know
                await respond(ServiceFault(ErrorCode.NOT_FOUND), exchange)(scope, receive, told)
            else:
                await self._app(scope, receive, told)
        except Exception as error:  # the last line: whatever it is, the client gets an answer without it
            log_event("fault", logging.ERROR, request_id=exchange.request_id, **fault_fields(error))
            if not told.status:
                await respond(ServiceFault(ErrorCode.INTERNAL), exchange)(scope, receive, told)
        finally:
            seconds = time.perf_counter() - began
            code = "ok" if exchange.code is None else exchange.code.value
            self._meters.request(route, told.status, exchange.code, seconds)
            end_span(exchange.span, route, method, told.status, code)
            log_event(
                "request",
                request_id=exchange.request_id,
                method=method,
                route=route,
                status=told.status,
                code=code,
                ms=round(seconds * 1e3, 3),
                **exchange.fields,
            )


class Told:
    """``send`` that keeps the status and adds the headers of every answer."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id.encode()
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._request_id), *ALWAYS]
        await self._send(message)


def respond(fault: ServiceFault, exchange: Exchange) -> Response:
    exchange.code = fault.code
    return Response(fault.body(exchange.request_id), fault.status, fault.headers(), "application/json")


def request_id_of(headers: dict[bytes, bytes]) -> str:
    """The client's X-Request-Id where it is short and plain, else a new one."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if 0 < len(given) <= MAX_ID_CHARS and set(given) <= IN_ID else uuid4().hex
