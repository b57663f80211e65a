"""Bytes of a connection to whole HTTP/1.1 requests. Pure: no socket, no clock.

A request is handed on when all of it is there, one at a time; so what comes after it needs no second set of rules. Of
what HTTP/1.1 tolerates, the part that servers have read differently from proxies is refused: bare line feeds, folded
headers, Transfer-Encoding, two lengths, anything but an origin-form target. A body has a Content-Length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from rgalign.service.errors import ErrorCode, ServiceFault
from rgalign.service.settings import ConnectionLimits

END_OF_HEAD = b"\r\n\r\n"
TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
IN_TARGET = bytes(range(0x21, 0x7F))
IN_VALUE = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
VERSIONS = (b"HTTP/1.1", b"HTTP/1.0")
MAX_METHOD_CHARS = 16
MAX_LENGTH_DIGITS = 10


@dataclass(frozen=True)
class Head:
    raw: bytes  # as it is handed on: without Expect
    body_bytes: int
    expects_continue: bool


class Framing:
    """Collects one connection's bytes. ``head`` is set while a request's body is awaited."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.head: Head | None = None
        self._buffer = bytearray()
        self._scanned = 0

    def __len__(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_head(self) -> Head | None:
        """The next request's head when all of it is there.

        Raises:
            ServiceFault: ``malformed_http``, ``headers_too_large``, ``length_required``, ``body_too_large``.
        """
        assert self.head is None
        end = self._buffer.find(END_OF_HEAD, max(0, self._scanned - len(END_OF_HEAD) + 1))
        self._refuse_bare_line_feeds(len(self._buffer) if end < 0 else end + len(END_OF_HEAD))
        if max(end, len(self._buffer) if end < 0 else 0) > self.limits.max_header_bytes:
            raise ServiceFault(ErrorCode.HEADERS_TOO_LARGE, closes=True)
        if end < 0:
            self._scanned = len(self._buffer)
            return None
        self.head = parse_head(bytes(self._buffer[:end]), self.limits)
        del self._buffer[: end + len(END_OF_HEAD)]
        self._scanned = 0
        return self.head

    def next_request(self) -> bytes | None:
        """All bytes of the request whose head came last, when its body is there."""
        assert self.head is not None
        length = self.head.body_bytes
        if len(self._buffer) < length:
            return None
        request = self.head.raw + bytes(self._buffer[:length])
        del self._buffer[:length]
        self.head = None
        return request

    def _refuse_bare_line_feeds(self, end: int) -> None:
        begin = self._scanned
        if begin > 0 and self._buffer[begin - 1] == 0x0D:
            begin -= 1
        if self._buffer.count(b"\n", begin, end) != self._buffer.count(b"\r\n", begin, end):
            malformed()


def parse_head(raw: bytes, limits: ConnectionLimits) -> Head:
    """Checks a head (without its empty line).

    Raises:
        ServiceFault: as ``Framing.next_head``.
    """
    request_line, *lines = raw.split(b"\r\n")
    version = check_request_line(request_line)
    if len(lines) > limits.max_headers:
        raise ServiceFault(ErrorCode.HEADERS_TOO_LARGE, closes=True)
    headers: dict[bytes, list[bytes]] = {}
    kept = [request_line]
    for line in lines:
        name, value = split_header(line)
        headers.setdefault(name, []).append(value)
        if name != b"expect":
            kept.append(line)
    if len(headers.get(b"host", ())) != 1 and (version == b"HTTP/1.1" or b"host" in headers):
        malformed()
    expects = headers.get(b"expect", [])
    if expects and [value.lower() for value in expects] != [b"100-continue"]:
        malformed()
    return Head(b"\r\n".join(kept) + END_OF_HEAD, body_length(headers, limits), bool(expects))


def check_request_line(line: bytes) -> bytes:
    """METHOD SP /target SP version; the version."""
    parts = line.split(b" ")
    if len(parts) != 3:
        malformed()
    method, target, version = parts
    if not 0 < len(method) <= MAX_METHOD_CHARS or not method.isalpha() or not method.isupper():
        malformed()
    if not target.startswith(b"/") or target.translate(None, IN_TARGET) or version not in VERSIONS:
        malformed()
    return version


def split_header(line: bytes) -> tuple[bytes, bytes]:
    """Lower-case name and value. A folded line begins with a space, which is in no name."""
    name, colon, value = line.partition(b":")
    if not colon or not name or name.translate(None, TOKEN) or value.translate(None, IN_VALUE):
        malformed()
    return name.lower(), value.strip(b" \t")


def body_length(headers: dict[bytes, list[bytes]], limits: ConnectionLimits) -> int:
    lengths = headers.get(b"content-length", [])
    if b"transfer-encoding" in headers:
        if lengths:
            malformed()  # whichever of the two a proxy in front believed
        raise ServiceFault(ErrorCode.LENGTH_REQUIRED, closes=True)
    if not lengths:
        return 0
    if len(lengths) > 1 or not lengths[0].isdigit():
        malformed()
    if len(lengths[0]) > MAX_LENGTH_DIGITS or int(lengths[0]) > limits.max_body_bytes:
        raise ServiceFault(ErrorCode.BODY_TOO_LARGE, closes=True)
    return int(lengths[0])


def malformed() -> NoReturn:
    raise ServiceFault(ErrorCode.MALFORMED_HTTP, closes=True)
