"""`rgalign serve`: the two listeners on one event loop, and the way out.

SIGTERM or SIGINT: not ready and no new work at once; what was accepted is answered; who is left after ``drain_s`` is
told shutting_down; exit 0. A second signal: all are told so now. Whatever hangs, the event loop too, the process is
gone two seconds after ``drain_s``, 0.1 s after a second signal: with code 1 unless all had been answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from rgalign.errors import ConfigError
from rgalign.service.admin import admin_app
from rgalign.service.app import Service, public_app
from rgalign.service.face import Recommender
from rgalign.service.logs import fault_fields, log_event
from rgalign.service.protocol import NEVER_S, Connections
from rgalign.service.settings import ConnectionLimits, ServiceSettings
from rgalign.service.signals import exit_after, heard

EXIT_S = 2.0  # after drain_s: answers of those who are left, closing, the interpreter's own way out
AT_ONCE_S = 0.1  # for answers after a second signal
BACKLOG = 2_048
SPARE_FILES = 128
ADMIN_CONNECTIONS = 16


@dataclass(frozen=True)
class Listening:
    """Where the service can be reached."""

    address: tuple[str, int]
    admin_address: tuple[str, int] | None


def serve(
    recommender: Recommender,
    settings: ServiceSettings,
    token: str | None,
    on_ready: Callable[[Listening], None] = lambda listening: None,
) -> int:
    """Serves until a signal has ended it; the process's exit code. The recommender is closed at the end.

    Args:
        token: of the admin listener; None: there is none.

    Raises:
        ConfigError: an address that is taken or not ours, or fewer files allowed than connections.
    """
    if settings.admin_port is not None and token is None:
        raise ConfigError(where="serve", required="an admin token with an admin port", received="none")
    allow_files(settings.connections.max_connections + SPARE_FILES)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core holds what users sent
    sockets = [bound(settings.host, settings.port)]
    if settings.admin_port is not None:
        sockets.append(bound(settings.admin_host, settings.admin_port))
    gc.collect()
    gc.freeze()  # the model's objects are not looked at again
    return asyncio.run(Server(recommender, settings, token, sockets).run(on_ready))


class Server:
    def __init__(
        self, recommender: Recommender, settings: ServiceSettings, token: str | None, sockets: list[socket.socket]
    ) -> None:
        self._recommender = recommender
        self._settings = settings
        self._token = token
        self._sockets = sockets
        self._signals = 0
        self._code = 1  # until all is answered

    async def run(self, on_ready: Callable[[Listening], None]) -> int:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(log_loop_fault)
        self._service = Service.of(self._recommender, self._settings)
        self._told_to_end = asyncio.Event()
        self._listeners = self._make_listeners()
        with heard(self._on_signal):
            serving = [
                asyncio.ensure_future(listener.serve([bound_to]))
                for listener, bound_to in zip(self._listeners, self._sockets, strict=True)
            ]
            for listener in self._listeners:
                await listener.is_up.wait()
            public, *admin = (bound_to.getsockname()[:2] for bound_to in self._sockets)
            on_ready(Listening(public, admin[0] if admin else None))
            told = asyncio.ensure_future(self._told_to_end.wait())
            await asyncio.wait((told, *serving), return_when=asyncio.FIRST_COMPLETED)
            await self._end(serving)
        return self._code

    def _make_listeners(self) -> list[Listener]:
        service, settings = self._service, self._settings
        connections = Connections(settings.connections, service.meters.refused)
        service.meters.gauge("rgalign_http_connections", "Open, public.", lambda: connections.num_open)
        listeners = [Listener(public_app(service), connections)]
        if settings.admin_port is not None:
            assert self._token is not None
            few = ConnectionLimits(max_connections=ADMIN_CONNECTIONS, answer_s=3_600)  # a swap takes its time
            admin_connections = Connections(few, service.meters.refused)
            listeners.append(Listener(admin_app(service, self._token), admin_connections))
        return listeners

    def _on_signal(self) -> None:
        """On the signals' thread: the event loop may be what hangs."""
        self._signals += 1
        if self._signals == 1:
            exit_after(self._settings.drain_s + EXIT_S, lambda: self._code)
            self._service.lifecycle.draining = True
            self._loop.call_soon_threadsafe(self._told_to_end.set)
        else:
            exit_after(AT_ONCE_S, lambda: self._code)
            self._loop.call_soon_threadsafe(self._end_now)
        log_event("signal", number=self._signals, in_flight=self._service.lifecycle.in_flight)

    def _end_now(self) -> None:
        self._ending = asyncio.ensure_future(self._service.lifecycle.end())

    async def _end(self, serving: Sequence[asyncio.Future[None]]) -> None:
        if not await self._service.lifecycle.drained(self._settings.drain_s):
            log_event("not drained", logging.WARNING, in_flight=self._service.lifecycle.in_flight)
            await self._service.lifecycle.end()
        for listener in self._listeners:
            listener.leave()
        await asyncio.gather(*serving)
        self._code = 0  # all is answered: what the recommender's own end takes is cut off in silence
        await asyncio.to_thread(self._recommender.close)
        log_event("ended")


class Listener(uvicorn.Server):
    """uvicorn without its signal handlers, and awake when it is told to end."""

    def __init__(self, app: ASGIApp, connections: Connections) -> None:
        super().__init__(
            uvicorn.Config(
                cast(Any, app),
                loop="asyncio",
                http=cast(Any, connections.protocol),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=NEVER_S,
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=connections.limits.max_header_bytes * 2,
            )
        )
        self.is_up = asyncio.Event()
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        self._leaving.set()

    async def main_loop(self) -> None:
        self.is_up.set()
        while not self._leaving.is_set():
            await self.on_tick(0)  # the Date header
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), 1.0)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bound(host: str, port: int) -> socket.socket:
    """A listening address; ``serve`` listens on it.

    Raises:
        ConfigError: taken, or not an address of this machine.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        required, received = "an address of this machine that is free", error.strerror or type(error).__name__
        raise ConfigError(where=f"{host}:{port}", required=required, received=received) from error
    return listener


def allow_files(needed: int) -> None:
    """Raises the soft limit of open files if there is need.

    Raises:
        ConfigError: the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        required = f"{needed} open files for max_connections"
        raise ConfigError(where="ulimit -n", required=required, received=str(hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def log_loop_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio's own handler would log the text of the exception."""
    error = context.get("exception")
    log_event("event loop fault", logging.ERROR, **({} if error is None else fault_fields(error)))
