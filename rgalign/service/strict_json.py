"""A request body to a JSON object, strictly: what two parsers could read differently is refused.

Python's own decoder takes NaN and Infinity, turns 1e999 into infinity, keeps the last of duplicate keys, and lets lone
surrogates through that no encoder can write. Here each of them is ``malformed_json``, as are nesting deeper than
``max_depth`` and integers beyond 64 bits. No regular expression and no recursion of ours touches the bytes.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from rgalign.service.errors import ErrorCode, ServiceFault

MAX_DEPTH = 16
MAX_NUMBER_CHARS = 40
INT64 = range(-(1 << 63), 1 << 63)
NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
SQUARE = bytes.maketrans(b"{}", b"[]")


def decode_object(body: bytes, *, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """The JSON object in ``body``.

    Raises:
        ServiceFault: ``malformed_json``.
    """
    if deeper_than(body, max_depth):
        malformed()
    try:
        value = DECODER.decode(body.decode("utf-8"))
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        malformed()
    if not isinstance(value, dict):
        malformed()
    if b"\\u" in body and not encodable(value):
        malformed()
    return value


def deeper_than(body: bytes, max_depth: int) -> bool:
    """Whether brackets outside strings nest deeper than ``max_depth``, or do not match up to there.

    Strings are cut out, then innermost pairs are taken away ``max_depth`` times: what is left was deeper. All of it is
    linear, at the speed of bytes.replace. Whether a pair is of one kind is for the parser to say.
    """
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = b"".join(plain.split(b'"')[::2]).translate(SQUARE, NOT_BRACKETS)
    for _ in range(max_depth):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


def encodable(value: object) -> bool:
    """Whether no string in it, key or value, has a lone surrogate."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if any("\ud800" <= character <= "\udfff" for character in item):
                return False
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            waiting += item
    return True


def malformed(_: object = None) -> NoReturn:
    raise ServiceFault(ErrorCode.MALFORMED_JSON)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else malformed()


def _integer(text: str) -> int:
    if len(text) > MAX_NUMBER_CHARS or int(text) not in INT64:
        malformed()
    return int(text)


def _finite(text: str) -> float:
    value = float(text) if len(text) <= MAX_NUMBER_CHARS else math.nan
    return value if math.isfinite(value) else malformed()


DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_finite, parse_constant=malformed, strict=True
)
