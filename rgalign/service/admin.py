"""The admin listener, on a loopback address of its own: swap the index, swap the bundle, drain.

The token is asked for in one place, before any route is looked for; so a new route cannot be without it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rgalign.errors import RgalignError
from rgalign.service.app import Service, answer_faults, as_json
from rgalign.service.artefacts import find
from rgalign.service.asked import asked
from rgalign.service.boundary import Boundary, respond
from rgalign.service.errors import ErrorCode, ServiceFault
from rgalign.service.logs import log_event
from rgalign.service.openapi import documented
from rgalign.service.schemas import (
    DrainRequest,
    DrainResponse,
    StatusResponse,
    SwapBundleResponse,
    SwapIndexResponse,
    SwapRequest,
)

SwappedT = TypeVar("SwappedT")
ADMIN_ROUTES = ("/admin/swap_index", "/admin/swap_bundle", "/admin/drain", "/admin/status", "/admin/openapi.json")
MAX_ADMIN_BYTES = 4 << 10


class BearerOnly:
    """Lets a request through to ``app`` if it has the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._digest = sha256(token.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(sha256(token.strip()).digest(), self._digest):
            await self._app(scope, receive, send)
        else:
            fault = ServiceFault(ErrorCode.UNAUTHORISED)
            await respond(fault, scope["state"]["exchange"])(scope, receive, send)


def admin_app(service: Service, token: str) -> Boundary:
    """The application of the admin listener."""
    app = FastAPI(
        title="rgalign admin",
        openapi_url="/admin/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    answer_faults(app)
    swapping = asyncio.Lock()

    async def swapped(request: Request, swap: Callable[[Path], SwappedT]) -> SwappedT:
        """What ``swap`` says of the directory that the request names; one swap at a time.

        Raises:
            ServiceFault: ``swap_busy``; ``swap_refused``, and nothing has changed.
        """
        name = (await asked(SwapRequest, request, MAX_ADMIN_BYTES)).name
        path = find(service.settings.bundle_root, name)
        if swapping.locked():
            raise ServiceFault(ErrorCode.SWAP_BUSY, retry_after_ms=1_000)
        async with swapping:
            try:
                done = await asyncio.to_thread(swap, path)
            except RgalignError as error:
                # The operator's own files, no request of a user: the text may be logged.
                log_event("swap refused", logging.ERROR, name=name, error=type(error).__name__, text=str(error))
                raise ServiceFault(ErrorCode.SWAP_REFUSED, required=type(error).__name__) from None
        log_event("swapped", name=name, now=done)
        return done

    @app.post("/admin/swap_index", **documented("swap_index", SwapRequest, SwapIndexResponse))
    async def swap_index(request: Request) -> Response:
        """Answer from another intent index of the same bundle."""
        return as_json({"generation": await swapped(request, service.recommender.swap_index)})

    @app.post("/admin/swap_bundle", **documented("swap_bundle", SwapRequest, SwapBundleResponse))
    async def swap_bundle(request: Request) -> Response:
        """Answer from another bundle; what is under way ends with the old one."""
        return as_json({"bundle": await swapped(request, service.recommender.swap_bundle)})

    @app.post("/admin/drain", **documented("drain", DrainRequest, DrainResponse))
    async def drain(request: Request) -> Response:
        """Not ready, and no new requests, from now on; answers when those under way are done. The process stays."""
        body = await asked(DrainRequest, request, MAX_ADMIN_BYTES)
        log_event("draining", by="admin", in_flight=service.lifecycle.in_flight)
        drained = await service.lifecycle.drained(body.timeout_s)
        return as_json({"drained": drained, "in_flight": service.lifecycle.in_flight})

    @app.get("/admin/status", **documented("status", None, StatusResponse))
    async def status(request: Request) -> Response:
        """What answers, and how."""
        health, lifecycle = service.recommender.health(), service.lifecycle
        return as_json(
            {
                "ready": health.ready and not lifecycle.draining,
                "degraded": health.degraded,
                "breaker": health.breaker,
                "bundle": health.bundle,
                "generation": health.generation,
                "draining": lifecycle.draining,
                "in_flight": lifecycle.in_flight,
            }
        )

    return Boundary(BearerOnly(app, token), service.meters, ADMIN_ROUTES)
