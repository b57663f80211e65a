"""A request of the public listener to checked values; what does not fit is refused naming the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from rgalign.service.errors import ErrorCode, ServiceFault
from rgalign.service.schemas import Asked
from rgalign.service.strict_json import decode_object

AskedT = TypeVar("AskedT", bound=Asked)
MAX_PAGE = 1_000
MEDIA_TYPES = ("application/json", "application/json;charset=utf-8")


async def asked(kind: type[AskedT], request: Request, max_bytes: int) -> AskedT:
    """The body of ``request`` as ``kind``.

    Raises:
        ServiceFault: ``unsupported_encoding``, ``unsupported_media_type``, ``body_too_large``, ``malformed_json``,
            ``invalid_request``.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ServiceFault(ErrorCode.UNSUPPORTED_ENCODING)
    media_type = request.headers.get("content-type", "").lower().replace(" ", "").replace('"', "")
    if media_type not in MEDIA_TYPES:
        raise ServiceFault(ErrorCode.UNSUPPORTED_MEDIA_TYPE)
    body = await request.body()
    if len(body) > max_bytes:
        raise ServiceFault(ErrorCode.BODY_TOO_LARGE)
    return checked(kind, decode_object(body))


def checked(kind: type[AskedT], value: Mapping[str, Any]) -> AskedT:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = str(first["loc"][0])
        if name in kind.model_fields:
            raise ServiceFault(ErrorCode.INVALID_REQUEST, field=name, required=first["msg"]) from None
        known = ", ".join(kind.model_fields)
        raise ServiceFault(ErrorCode.INVALID_REQUEST, required=f"only the fields {known}") from None


def check_context(context: Mapping[str, Any], field: str = "context") -> None:
    """Scalars and flat lists of scalars, which is all that a schema's column can be.

    Raises:
        ServiceFault: ``invalid_request``.
    """
    for value in context.values():
        nested = isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(item, dict | list) for item in value)
        )
        if nested:
            required = "every value a string, number, boolean, null, or a list of these"
            raise ServiceFault(ErrorCode.INVALID_REQUEST, field=field, required=required)


def page(request: Request) -> tuple[str, int]:
    """``after`` and ``limit`` of a listing's query.

    Raises:
        ServiceFault: ``invalid_request``.
    """
    limit = request.query_params.get("limit", str(MAX_PAGE))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= MAX_PAGE):
        raise ServiceFault(ErrorCode.INVALID_REQUEST, field="limit", required=f"an integer from 1 to {MAX_PAGE}")
    return request.query_params.get("after", ""), int(limit)
