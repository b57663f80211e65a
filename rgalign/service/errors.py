"""What a refused request is told: one code of a closed set, a fixed sentence and the request's id.

Nothing that an exception says reaches the wire: its text may hold a path, an address or what the user sent.
"""

from __future__ import annotations

import json
import math
from enum import StrEnum
from typing import Any

from rgalign.batcher import (
    BatcherClosed,
    ClientCapReached,
    DeadlineExceeded,
    ModelFault,
    QueueFull,
    WrongLength,
)
from rgalign.errors import DataError


class ErrorCode(StrEnum):
    MALFORMED_HTTP = "malformed_http"
    MALFORMED_JSON = "malformed_json"
    UNAUTHORISED = "unauthorised"
    NOT_FOUND = "not_found"
    UNKNOWN_NAME = "unknown_name"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    SWAP_BUSY = "swap_busy"
    LENGTH_REQUIRED = "length_required"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    INVALID_REQUEST = "invalid_request"
    INVALID_CONTEXT = "invalid_context"
    CONTEXT_TOO_LONG = "context_too_long"
    SWAP_REFUSED = "swap_refused"
    OVERLOADED = "overloaded"
    CLIENT_LIMIT = "client_limit"
    HEADERS_TOO_LARGE = "headers_too_large"
    INTERNAL = "internal"
    DRAINING = "draining"
    SHUTTING_DOWN = "shutting_down"
    UNAVAILABLE = "unavailable"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"  # the client went away; in logs and metrics only


ERRORS: dict[ErrorCode, tuple[int, str]] = {
    ErrorCode.MALFORMED_HTTP: (400, "the request is not well-formed HTTP/1.1"),
    ErrorCode.MALFORMED_JSON: (
        400,
        "the body must be one JSON object in UTF-8: no duplicate keys, no NaN or Infinity, bounded depth and numbers",
    ),
    ErrorCode.UNAUTHORISED: (401, "the admin listener needs its bearer token"),
    ErrorCode.NOT_FOUND: (404, "there is no such route"),
    ErrorCode.UNKNOWN_NAME: (404, "there is no directory of that name in the bundle root"),
    ErrorCode.METHOD_NOT_ALLOWED: (405, "the route does not have this method"),
    ErrorCode.REQUEST_TIMEOUT: (408, "the request did not arrive in time"),
    ErrorCode.SWAP_BUSY: (409, "another swap is under way"),
    ErrorCode.LENGTH_REQUIRED: (411, "a body needs Content-Length; Transfer-Encoding is not accepted"),
    ErrorCode.BODY_TOO_LARGE: (413, "the body is larger than this route accepts"),
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: (415, "the body must be application/json in UTF-8"),
    ErrorCode.UNSUPPORTED_ENCODING: (415, "only the identity content encoding is accepted"),
    ErrorCode.INVALID_REQUEST: (422, "a field is missing, unknown, of the wrong type or out of range"),
    ErrorCode.INVALID_CONTEXT: (422, "the context does not fit the bundle's feature schema"),
    ErrorCode.CONTEXT_TOO_LONG: (422, "the context is longer than the reasoner takes"),
    ErrorCode.SWAP_REFUSED: (422, "the candidate was refused and nothing changed; the server's log says why"),
    ErrorCode.OVERLOADED: (429, "the queue is full"),
    ErrorCode.CLIENT_LIMIT: (429, "this client has as many unfinished requests as one may have"),
    ErrorCode.HEADERS_TOO_LARGE: (431, "the headers are too many or too long"),
    ErrorCode.INTERNAL: (500, "a fault of the server; the request id names it in the server's log"),
    ErrorCode.DRAINING: (503, "the server takes no new requests"),
    ErrorCode.SHUTTING_DOWN: (503, "the server ended before this request was answered"),
    ErrorCode.UNAVAILABLE: (503, "the server cannot answer at present"),
    ErrorCode.TOO_MANY_CONNECTIONS: (503, "the server has as many connections, or bytes under way, as it takes"),
    ErrorCode.DEADLINE_EXCEEDED: (504, "no answer by the deadline"),
    ErrorCode.CANCELLED: (499, "the client closed the connection"),
}


class ServiceFault(Exception):
    """A request ends in ``code``.

    Args:
        field: the request's field or the schema's feature at fault; a name of ours, never the client's text.
        retry_after_ms: when to come again, with overload.
        closes: whether the connection ends with this answer.
    """

    def __init__(
        self,
        code: ErrorCode,
        *,
        field: str | None = None,
        required: str | None = None,
        retry_after_ms: float | None = None,
        closes: bool = False,
    ) -> None:
        super().__init__(code.value)
        self.code = code
        self.field = field
        self.required = required
        self.retry_after_ms = retry_after_ms
        self.closes = closes

    @property
    def status(self) -> int:
        return ERRORS[self.code][0]

    def object(self, request_id: str) -> dict[str, Any]:
        """The JSON object ``error`` of an answer."""
        return {
            "code": self.code.value,
            "message": ERRORS[self.code][1],
            "field": self.field,
            "required": self.required,
            "retry_after_ms": None if self.retry_after_ms is None else round(self.retry_after_ms, 1),
            "request_id": request_id,
        }

    def body(self, request_id: str) -> bytes:
        return json.dumps({"error": self.object(request_id)}, allow_nan=False).encode()

    def headers(self) -> dict[str, str]:
        headers = {}
        if self.retry_after_ms is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_ms / 1e3)))
        if self.code is ErrorCode.UNAUTHORISED:
            headers["WWW-Authenticate"] = "Bearer"
        if self.closes:
            headers["Connection"] = "close"
        return headers


def context_fault(error: DataError) -> ServiceFault:
    """Names the feature where the recommender does: ``where`` is "context" or "context, FEATURE" then.

    Feature and requirement are the schema's words. What was received stays out, and so does any other ``where``, which
    could be a path.
    """
    place, _, feature = error.where.partition(", ")
    if place != "context":
        return ServiceFault(ErrorCode.INVALID_CONTEXT)
    return ServiceFault(ErrorCode.INVALID_CONTEXT, field=feature or "context", required=error.required)


def fault_of(error: BaseException) -> ServiceFault:
    """The answer to a request on which the recommender raised."""
    match error:
        case ServiceFault():
            return error
        case QueueFull():
            return ServiceFault(ErrorCode.OVERLOADED, retry_after_ms=error.retry_after_ms)
        case ClientCapReached():
            return ServiceFault(ErrorCode.CLIENT_LIMIT, retry_after_ms=0.0)
        case BatcherClosed():
            return ServiceFault(ErrorCode.SHUTTING_DOWN, closes=True)
        case DeadlineExceeded():
            return ServiceFault(ErrorCode.DEADLINE_EXCEEDED)
        case WrongLength():
            return ServiceFault(ErrorCode.CONTEXT_TOO_LONG)
        case ModelFault():
            return ServiceFault(ErrorCode.UNAVAILABLE)
        case DataError():
            return context_fault(error)
        case _:
            return ServiceFault(ErrorCode.INTERNAL)
