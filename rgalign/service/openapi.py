"""What OpenAPI says of a route. Bodies are read by our own strict decoder, so their schemas are given by hand."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from rgalign.service.errors import ERRORS, ErrorCode
from rgalign.service.schemas import Asked, ErrorResponse

CONTEXT = {"region": "SG", "entry_point": "order_page", "recent_intents": ["track_order"], "hours_ago": [3.5]}
TIMINGS = {"tokenise_ms": 0.2, "queue_ms": 0.1, "reason_ms": 41.0, "rank_ms": 0.1, "total_ms": 41.6}
RECOMMENDATION = {
    "intents": [
        {
            "id": "cancel_order",
            "title": "Cancel my order",
            "score": 0.71,
            "user_part": 0.52,
            "query_part": 0.19,
            "probability": 0.64,
        }
    ],
    "show": True,
    "degraded": None,
    "bundle": "3f9a…",
    "generation": 1,
    "timings": TIMINGS,
}
REQUESTS: dict[str, Any] = {
    "recommend": {"context": CONTEXT, "k": 3, "deadline_ms": 1500},
    "recommend_many": {"contexts": [CONTEXT, {"region": "MY"}], "k": 3},
    "swap_index": {"name": "index-2026-11-23"},
    "swap_bundle": {"name": "bundle-7"},
    "drain": {"timeout_s": 4.0},
}
ANSWERS: dict[str, Any] = {
    "recommend": {**RECOMMENDATION, "request_id": "4f0c2a"},
    "recommend_many": {"items": [{"recommendation": RECOMMENDATION}], "request_id": "4f0c2a"},
    "intents": {
        "intents": [{"id": "cancel_order", "title": "Cancel my order", "description": "Before it is shipped"}],
        "next": None,
        "total": 1,
    },
    "live": {"live": True},
    "ready": {"ready": True, "draining": False},
    "degraded": {"degraded": False, "breaker": "closed"},
    "swap_index": {"generation": 2},
    "swap_bundle": {"bundle": "3f9a…"},
    "drain": {"drained": True, "in_flight": 0},
}
IN_EVERY_POST = (
    ErrorCode.MALFORMED_JSON,
    ErrorCode.BODY_TOO_LARGE,
    ErrorCode.UNSUPPORTED_MEDIA_TYPE,
    ErrorCode.INVALID_REQUEST,
    ErrorCode.OVERLOADED,
    ErrorCode.DRAINING,
)


def documented(name: str, body: type[Asked] | None, answer: type[BaseModel]) -> dict[str, Any]:
    """Arguments of a FastAPI route."""
    arguments: dict[str, Any] = {"operation_id": name, "response_model": answer, "responses": {}}
    if name in ANSWERS:
        arguments["responses"][200] = {"content": {"application/json": {"example": ANSWERS[name]}}}
    if body is not None:
        content = {"application/json": {"schema": body.model_json_schema(), "example": REQUESTS[name]}}
        arguments["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
        for code in IN_EVERY_POST:
            status, message = ERRORS[code]
            arguments["responses"][status] = {"model": ErrorResponse, "description": message}
    return arguments
