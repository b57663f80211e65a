"""The public listener: recommendations, intents, health, metrics."""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_right
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Receive

import rgalign
from rgalign.service.asked import asked, check_context, page
from rgalign.service.boundary import Boundary, Exchange, respond
from rgalign.service.errors import ErrorCode, ServiceFault, fault_of
from rgalign.service.face import Intent, Recommendation, Recommender
from rgalign.service.lifecycle import Lifecycle
from rgalign.service.logs import fault_fields, log_event
from rgalign.service.metrics import CONTENT_TYPE, Meters
from rgalign.service.openapi import documented
from rgalign.service.schemas import (
    Degraded,
    IntentsResponse,
    Live,
    Ready,
    RecommendManyRequest,
    RecommendManyResponse,
    RecommendRequest,
    RecommendResponse,
)
from rgalign.service.settings import ServiceSettings
from rgalign.service.tracing import trace_stages

AnswerT = TypeVar("AnswerT")
# The recommender keeps deadlines itself; this is for one that does not.
GRACE_S = 1.0
ROUTES = (
    "/v1/recommend",
    "/v1/recommend_many",
    "/v1/intents",
    "/health/live",
    "/health/ready",
    "/health/degraded",
    "/metrics",
    "/openapi.json",
)


@dataclass(frozen=True)
class Service:
    """What the routes share."""

    recommender: Recommender
    settings: ServiceSettings
    lifecycle: Lifecycle
    meters: Meters

    @classmethod
    def of(cls, recommender: Recommender, settings: ServiceSettings) -> Service:
        """Call it on the event loop that will serve."""
        lifecycle, meters = Lifecycle(), Meters(recommender.health)
        meters.gauge("rgalign_http_in_flight", "Accepted and not answered.", lambda: lifecycle.in_flight)
        return cls(recommender, settings, lifecycle, meters)


def public_app(service: Service) -> Boundary:
    """The application of the public listener."""
    app = FastAPI(
        title="rgalign",
        version=rgalign.__version__,
        description="Which intents did the user come for? Ranked from the context, before a word is typed.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    answer_faults(app)

    @app.post("/v1/recommend", **documented("recommend", RecommendRequest, RecommendResponse))
    async def recommend(request: Request) -> Response:
        """The intents that the user of one context most likely came for."""
        exchange: Exchange = request.state.exchange
        with service.lifecycle.accepted():
            body = await asked(RecommendRequest, request, service.settings.max_single_bytes)
            check_context(body.context)
            timeout_s = time_allowed(body.deadline_ms, service.settings)
            answer = await answered(recommended(service, body, body.context, exchange), request, service, timeout_s)
        exchange.fields.update(k=body.k, degraded=answer.degraded, bundle=answer.bundle, generation=answer.generation)
        trace_stages(exchange.span, answer)
        return as_json({**plain(answer), "request_id": exchange.request_id})

    @app.post("/v1/recommend_many", **documented("recommend_many", RecommendManyRequest, RecommendManyResponse))
    async def recommend_many(request: Request) -> Response:
        """Several contexts at once; each gets its own answer or error."""
        exchange: Exchange = request.state.exchange
        with service.lifecycle.accepted():
            body = await asked(RecommendManyRequest, request, service.settings.connections.max_body_bytes)
            if len(body.contexts) > service.settings.max_batch:
                required = f"at most {service.settings.max_batch} contexts"
                raise ServiceFault(ErrorCode.INVALID_REQUEST, field="contexts", required=required)
            for context in body.contexts:
                check_context(context, "contexts")
            timeout_s = time_allowed(body.deadline_ms, service.settings)
            items = await answered(all_recommended(service, body, exchange), request, service, timeout_s)
        exchange.fields.update(k=body.k, contexts=len(items), failed=sum("error" in item for item in items))
        return as_json({"items": items, "request_id": exchange.request_id})

    @app.get("/v1/intents", **documented("intents", None, IntentsResponse))
    async def intents(request: Request) -> Response:
        """The catalogue in id order, a page at a time: `?after=ID&limit=N`."""
        after, limit = page(request)
        return as_json(listing(service.recommender.intents(), after, limit))

    @app.get("/health/live", **documented("live", None, Live))
    async def live(request: Request) -> Response:
        """200 while the process answers."""
        return as_json({"live": True})

    @app.get("/health/ready", **documented("ready", None, Ready))
    async def ready(request: Request) -> Response:
        """200 while the last real answer was good and new requests are taken, else 503."""
        draining = service.lifecycle.draining
        is_ready = service.recommender.health().ready and not draining
        return as_json({"ready": is_ready, "draining": draining}, 200 if is_ready else 503)

    @app.get("/health/degraded", **documented("degraded", None, Degraded))
    async def degraded(request: Request) -> Response:
        """200 while the reasoner takes part in the answers, 503 while they come without it."""
        health = service.recommender.health()
        return as_json({"degraded": health.degraded, "breaker": health.breaker}, 503 if health.degraded else 200)

    @app.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        return Response(service.meters.text(), media_type=CONTENT_TYPE)

    return Boundary(app, service.meters, ROUTES)


def answer_faults(app: FastAPI) -> None:
    """Errors in the service's form, the framework's own too."""

    @app.exception_handler(ServiceFault)
    async def fault(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceFault)
        return respond(error, request.state.exchange)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        codes = {404: ErrorCode.NOT_FOUND, 405: ErrorCode.METHOD_NOT_ALLOWED}
        return respond(ServiceFault(codes.get(error.status_code, ErrorCode.INTERNAL)), request.state.exchange)

    @app.exception_handler(Exception)
    async def ours(request: Request, error: Exception) -> Response:
        """The framework raises it again after this answer, and Boundary logs where it came from."""
        return respond(ServiceFault(ErrorCode.INTERNAL), request.state.exchange)


def time_allowed(deadline_ms: float | None, settings: ServiceSettings) -> float:
    """Seconds after which even a recommender that keeps no deadline is no longer waited for."""
    if deadline_ms is not None and deadline_ms > settings.max_deadline_ms:
        required = f"at most {settings.max_deadline_ms:g} ms"
        raise ServiceFault(ErrorCode.INVALID_REQUEST, field="deadline_ms", required=required)
    return (deadline_ms or settings.max_deadline_ms) / 1e3 + GRACE_S


async def recommended(
    service: Service, body: RecommendRequest | RecommendManyRequest, context: Mapping[str, Any], exchange: Exchange
) -> Recommendation:
    """One context's recommendation.

    Raises:
        ServiceFault: whatever the recommender raised, as the client may know it.
    """
    try:
        answer = await service.recommender.arecommend(
            context, body.k, deadline_ms=body.deadline_ms, client=body.client, priority=body.priority
        )
    except Exception as error:
        fault = fault_of(error)
        if fault.code is ErrorCode.INTERNAL:
            log_event("fault", 40, request_id=exchange.request_id, **fault_fields(error))
        raise fault from None
    service.meters.recommendation(answer)
    return answer


async def all_recommended(service: Service, body: RecommendManyRequest, exchange: Exchange) -> list[dict[str, Any]]:
    """An item for each context, in their order."""

    async def item(context: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return {"recommendation": plain(await recommended(service, body, context, exchange))}
        except ServiceFault as fault:
            return {"error": fault.object(exchange.request_id)}

    return list(await asyncio.gather(*map(item, body.contexts)))


async def answered(work: Coroutine[Any, Any, AnswerT], request: Request, service: Service, timeout_s: float) -> AnswerT:
    """What ``work`` gives, unless the client leaves, the service ends, or it takes too long: then it is cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(disconnected(request.receive))
    over = service.lifecycle.over
    try:
        await asyncio.wait((task, gone, over), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if over.done():
            raise ServiceFault(ErrorCode.SHUTTING_DOWN, closes=True)
        raise ServiceFault(ErrorCode.CANCELLED if gone.done() else ErrorCode.DEADLINE_EXCEEDED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else will look


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def plain(answer: Recommendation) -> dict[str, Any]:
    timings = answer.timings
    return {
        "intents": [
            {
                "id": intent.id,
                "title": intent.title,
                "score": intent.score,
                "user_part": intent.user_part,
                "query_part": intent.query_part,
                "probability": intent.probability,
            }
            for intent in answer.intents
        ],
        "show": answer.show,
        "degraded": answer.degraded,
        "bundle": answer.bundle,
        "generation": answer.generation,
        "timings": {
            name: round(getattr(timings, name), 4)
            for name in ("tokenise_ms", "queue_ms", "reason_ms", "rank_ms", "total_ms")
        },
    }


def listing(intents: Sequence[Intent], after: str, limit: int) -> dict[str, Any]:
    """A page of intents, which stand in id order."""
    begin = bisect_right(intents, after, key=lambda intent: intent.id)
    shown = intents[begin : begin + limit]
    more = begin + len(shown) < len(intents)
    return {
        "intents": [{"id": each.id, "title": each.title, "description": each.description} for each in shown],
        "next": shown[-1].id if more else None,
        "total": len(intents),
    }


def as_json(value: Any, status: int = 200) -> Response:
    """Strict JSON: a number that is not finite is a fault of ours, not an answer."""
    body = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, status, media_type="application/json")
