"""Bytes to requests: however they are cut, and what is refused."""

from __future__ import annotations

import random

import pytest

from rgalign.service.errors import ErrorCode, ServiceFault
from rgalign.service.framing import Framing
from rgalign.service.settings import ConnectionLimits

LIMITS = ConnectionLimits(max_headers=8, max_header_bytes=512, max_body_bytes=1_000)
FIRST = b"POST /v1/recommend HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
SECOND = b"GET /health/live HTTP/1.1\r\nhost:a\r\nX-Y: \t b \r\n\r\n"
THIRD = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n\r\n\r\n"  # a body that looks like the end of a head


def requests(pieces: list[bytes]) -> list[bytes]:
    framing = Framing(LIMITS)
    found = []
    for piece in pieces:
        framing.feed(piece)
        while framing.head is not None or framing.next_head() is not None:
            request = framing.next_request()
            if request is None:
                break
            found.append(request)
    assert len(framing) == 0
    return found


def test_the_same_requests_however_the_bytes_are_cut() -> None:
    rng = random.Random(0)
    whole = FIRST + SECOND + THIRD + FIRST
    for _ in range(500):
        cuts = sorted(rng.sample(range(len(whole)), rng.randrange(1, 12)))
        pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        assert requests(pieces) == [FIRST, SECOND, THIRD, FIRST]
    assert requests([bytes([byte]) for byte in whole]) == [FIRST, SECOND, THIRD, FIRST]


def test_expect_is_answered_here_and_not_handed_on() -> None:
    framing = Framing(LIMITS)
    framing.feed(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n")
    head = framing.next_head()
    assert head is not None
    assert head.expects_continue
    assert b"xpect" not in head.raw
    assert head.body_bytes == 1


def refused(raw: bytes) -> ErrorCode:
    framing = Framing(LIMITS)
    framing.feed(raw)
    with pytest.raises(ServiceFault) as caught:
        framing.next_head()
    assert caught.value.closes  # where the next request would begin is not known
    return caught.value.code


LINES = b"GET / HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n\r\n",
        LINES + b"X: a\r\n b\r\n\r\n",
        LINES + b"X: a\r\n\tb\r\n\r\n",
        LINES + b"X : a\r\n\r\n",
        LINES + b": a\r\n\r\n",
        LINES + b"X\r\n\r\n",
        LINES + b"X: a\x00b\r\n\r\n",
        LINES + b"X: a\rb\r\n\r\n",
        LINES + b"X\xff: a\r\n\r\n",
        LINES + b"Host: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET /\r\nHost: a\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"G\xc9T / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\xe9 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\r\n\r\n",
        LINES + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n",
        LINES + b"Content-Length: 1, 1\r\n\r\n",
        LINES + b"Content-Length: +1\r\n\r\n",
        LINES + b"Content-Length: -1\r\n\r\n",
        LINES + b"Content-Length: 0x1\r\n\r\n",
        LINES + b"Content-Length: \r\n\r\n",
        LINES + "Content-Length: ١\r\n\r\n".encode(),
        LINES + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        LINES + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        LINES + b"Expect: 200-maybe\r\n\r\n",
    ],
)
def test_refused_as_malformed(raw: bytes) -> None:
    assert refused(raw) is ErrorCode.MALFORMED_HTTP


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (LINES + b"Transfer-Encoding: chunked\r\n\r\n", ErrorCode.LENGTH_REQUIRED),
        (LINES + b"Transfer-Encoding: identity\r\n\r\n", ErrorCode.LENGTH_REQUIRED),
        (LINES + b"Content-Length: 1001\r\n\r\n", ErrorCode.BODY_TOO_LARGE),
        (LINES + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", ErrorCode.BODY_TOO_LARGE),
        (LINES + b"X: a\r\n" * 8 + b"\r\n", ErrorCode.HEADERS_TOO_LARGE),
        (LINES + b"X: " + b"a" * 600 + b"\r\n\r\n", ErrorCode.HEADERS_TOO_LARGE),
        (b"GET /" + b"a" * 600, ErrorCode.HEADERS_TOO_LARGE),
    ],
)
def test_refused_for_a_bound(raw: bytes, code: ErrorCode) -> None:
    assert refused(raw) is code


def test_a_refusal_does_not_wait_for_the_end_of_the_head() -> None:
    framing = Framing(LIMITS)
    framing.feed(b"GET / HTTP/1.1\r")
    assert framing.next_head() is None
    framing.feed(b"\nHost: a\r")
    assert framing.next_head() is None
    framing.feed(b"\nX: b")
    assert framing.next_head() is None
    framing.feed(b"\n")
    with pytest.raises(ServiceFault):
        framing.next_head()


def test_what_is_at_the_bounds_passes() -> None:
    raw = LINES + b"X: a\r\n" * 6 + b"Content-Length: 1000\r\n\r\n"
    assert requests([raw + b"x" * 1_000]) == [raw + b"x" * 1_000]
