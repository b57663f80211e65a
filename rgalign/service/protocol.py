"""uvicorn's HTTP/1.1 protocol within bounds: of connections, header, body, and of the time that each part may take.

    connected or first byte --header_s--> whole head --body_s--> whole request --answer_s--> answered --idle_s--> next

Only whole requests that ``Framing`` has checked reach h11 and the application. A refusal here is answered in the
service's form, then the connection lingers, reading and dropping what is still on its way, so that the client gets to
see the answer instead of a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from rgalign.service.errors import ErrorCode, ServiceFault
from rgalign.service.framing import Framing
from rgalign.service.settings import ConnectionLimits

LINGER_S = 1.0
MAX_PIPELINED_BYTES = 64 << 10
NEVER_S = 86_400  # uvicorn's own idle timer is not used


@dataclass
class Connections:
    """All connections of a listener together; each refusal is told to ``on_refusal``."""

    limits: ConnectionLimits
    on_refusal: Callable[[ErrorCode], None]
    num_open: int = 0
    buffered_bytes: int = 0  # of bodies on their way in or not answered yet

    def protocol(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> LimitedProtocol:
        """What uvicorn calls for each new connection."""
        return LimitedProtocol(self, config, server_state, app_state, _loop)


class LimitedProtocol(H11Protocol):
    def __init__(
        self,
        all_connections: Connections,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._all = all_connections
        self._limits = all_connections.limits
        self._framing = Framing(self._limits)
        self._timer: asyncio.TimerHandle | None = None
        self._reading_head = True
        self._answering = False
        self._lingering = False
        self._reserved_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._all.num_open += 1
        if self._all.num_open > self._limits.max_connections:
            self._refuse(ServiceFault(ErrorCode.TOO_MANY_CONNECTIONS, retry_after_ms=1_000, closes=True))
        else:
            self._arm(self._limits.header_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.num_open -= 1
        self._release()
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        self._framing.feed(data)
        if not self._answering:
            self._advance()
        elif len(self._framing) > MAX_PIPELINED_BYTES:
            self.flow.pause_reading()

    def eof_received(self) -> None:
        if self._lingering:
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._answering = False
        self._release()
        self._reading_head = False
        self._arm(self._limits.idle_s, self.transport.abort)
        if not self.transport.is_closing():
            self._advance()

    def shutdown(self) -> None:
        """The server ends: an idle connection closes, a request that has not come whole is refused."""
        if self._lingering:
            self.transport.abort()
        elif self._answering or (not len(self._framing) and self._framing.head is None):
            super().shutdown()
        else:
            self._refuse(ServiceFault(ErrorCode.DRAINING, closes=True))

    def send_400_response(self, msg: str) -> None:
        """What h11 refuses after Framing let it pass; none is known."""
        self._refuse(ServiceFault(ErrorCode.MALFORMED_HTTP, closes=True))

    def _advance(self) -> None:
        """Hands on the next request if all of it is there, else sees to the time that the rest may take."""
        try:
            if self._framing.head is None and not self._head_came():
                return
            request = self._framing.next_request()
        except ServiceFault as fault:
            self._refuse(fault)
            return
        if request is not None:
            self._answering = True
            self._arm(self._limits.answer_s, self.transport.abort)
            super().data_received(request)

    def _head_came(self) -> bool:
        head = self._framing.next_head()
        if head is None:
            if len(self._framing) and not self._reading_head:
                self._reading_head = True
                self._arm(self._limits.header_s, self._too_slow)
            return False
        if self._all.buffered_bytes + head.body_bytes > self._limits.max_buffered_bytes:
            raise ServiceFault(ErrorCode.TOO_MANY_CONNECTIONS, retry_after_ms=1_000, closes=True)
        self._reserved_bytes = head.body_bytes
        self._all.buffered_bytes += head.body_bytes
        self._arm(self._limits.body_s, self._too_slow)
        if head.expects_continue and len(self._framing) < head.body_bytes:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _too_slow(self) -> None:
        if len(self._framing) or self._framing.head is not None:
            self._refuse(ServiceFault(ErrorCode.REQUEST_TIMEOUT, closes=True))
        else:
            self.transport.abort()  # connected and said nothing

    def _refuse(self, fault: ServiceFault) -> None:
        self._all.on_refusal(fault.code)
        self._lingering = True
        self._release()
        self._framing = Framing(self._limits)
        self.transport.write(refusal(fault, uuid4().hex))
        with contextlib.suppress(OSError):  # the client has reset it: nobody is left to tell
            self.transport.write_eof()
        self._arm(LINGER_S, self.transport.abort)

    def _release(self) -> None:
        self._all.buffered_bytes -= self._reserved_bytes
        self._reserved_bytes = 0

    def _arm(self, seconds: float, call: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, call)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def refusal(fault: ServiceFault, request_id: str) -> bytes:
    """A whole answer, for what never reaches the application."""
    body = fault.body(request_id)
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "X-Request-Id": request_id,
        "Cache-Control": "no-store",
        **fault.headers(),
    }
    lines = [f"HTTP/1.1 {fault.status} {HTTPStatus(fault.status).phrase}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
