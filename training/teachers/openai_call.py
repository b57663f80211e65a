"""One chat-completions call: a response becomes an answer, a reason to try again, or the end of the run.

200            answer; empty: a failure of this context; malformed: again
429            again, when the server says; with ``insufficient_quota``: the end
408 409 425 5xx, no connection, no answer in time: again
401 403 404    the end: every further call would fail alike
other 4xx      a failure of this context (a content filter, a prompt too long)
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from rgalign.errors import TeacherError
from rgalign.training.teachers.teacher import Answer

PATH = "chat/completions"
AGAIN = (408, 409, 425)
THE_END = (401, 403, 404)
MOST_TOKENS = 2**31


@dataclass(frozen=True)
class TryAgain:
    """Why, in the server's words, how long it asks to wait, and whether it could be reached at all."""

    reason: str
    after_s: float | None = None
    limited: bool = False
    unreachable: bool = False


async def call(client: httpx.AsyncClient, body: dict[str, Any], timeout_s: float, where: str) -> Answer | TryAgain:
    """Sends one request.

    Raises:
        TeacherError: a response after which no other request can do better.
    """
    began = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s):  # httpx's own limits are per read, not per call
            response = await client.post(PATH, json=body)
    except (TimeoutError, httpx.TimeoutException):
        return TryAgain(f"no answer within {timeout_s:g} s")
    except httpx.ConnectError as error:
        return TryAgain(f"no connection ({error})", unreachable=True)
    except httpx.RequestError as error:  # lost on the way, or a body that is not what its header says
        return TryAgain(f"connection lost ({type(error).__name__})")
    outcome = _read(response, where)
    if isinstance(outcome, Answer):
        seconds = time.perf_counter() - began
        return Answer(outcome.text, outcome.failure, outcome.prompt_tokens, outcome.completion_tokens, seconds)
    return outcome


def _read(response: httpx.Response, where: str) -> Answer | TryAgain:
    status = response.status_code
    if status == 200:
        return _answer(response)
    reason = f"HTTP {status}: {_message(response)}"
    if status == 429:
        if "insufficient_quota" in response.text:
            raise TeacherError(where=where, required="quota left on the server", received=reason)
        return TryAgain(reason, _retry_after(response), limited=True)
    if status in AGAIN or status >= 500:
        return TryAgain(reason, _retry_after(response))
    if status in THE_END:
        required = "an endpoint, a model and a key that the server accepts"
        raise TeacherError(where=where, required=required, received=reason)
    return Answer(failure=reason)


def _answer(response: httpx.Response) -> Answer | TryAgain:
    try:
        values = json.loads(response.content)
        choice = values["choices"][0]
        text = choice["message"].get("content")
        usage = values.get("usage") or {}
        counts = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        if not isinstance(text, str | None):
            raise TypeError("content is no text")
        if not all(0 <= count < MOST_TOKENS for count in counts):
            raise OverflowError("no count of tokens")
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        return TryAgain(f"malformed answer ({type(error).__name__})")
    if text is None or not text.strip():
        return Answer("", f"empty answer (finish_reason {choice.get('finish_reason')})", *counts)
    return Answer(text.strip(), "", *counts)


def _message(response: httpx.Response) -> str:
    """The server's own words, if it says them as OpenAI does; else all that came."""
    try:
        message = json.loads(response.content)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        message = response.text
    return " ".join(str(message).split())


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, from the header's number or HTTP date."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when.replace(tzinfo=when.tzinfo or UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
