"""HTTP/1.1 as bytes over an asyncio connection: for load, and for tests that send what no client library would.

It costs the generator a tenth of what httpx does, which matters where generator and server share two cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Closed(ConnectionError):
    """The connection ended before an answer began."""


class Cut(ConnectionError):
    """The connection ended in the middle of an answer."""


class Wire:
    """One connection; answers come in the order of the requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, host: str, port: int) -> Self:
        return cls(*await asyncio.open_connection(host, port))

    @property
    def ended(self) -> bool:
        """Whether the server has closed it, as it does with one that was idle for long."""
        return self.reader.at_eof() or self.reader.exception() is not None

    async def ask(self, raw: bytes) -> Answer:
        """Raises ``Closed`` where the server ended the connection instead of answering, ``Cut`` where while it did."""
        with contextlib.suppress(ConnectionError):  # it may have answered before it closed
            self.writer.write(raw)
            await self.writer.drain()
        return await self.answer(to_head=raw.startswith(b"HEAD "))

    async def answer(self, *, to_head: bool = False) -> Answer:
        """The next one; ``to_head``: it has no body, whatever its Content-Length says."""
        while True:
            answer = await self._one(to_head)
            if answer.status >= 200:  # 100 Continue is no answer
                return answer

    async def _one(self, to_head: bool) -> Answer:
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Closed(repr(error)) from error
        status_line, *lines = head[:-4].decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        try:
            body = await self.reader.readexactly(0 if to_head else int(headers.get("content-length", "0")))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Cut(repr(error)) from error
        return Answer(int(status_line.split(" ", 2)[1]), headers, body)

    def abort(self) -> None:
        """Ends it with a reset."""
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def post(path: str, value: Any, **headers: str) -> bytes:
    """The bytes of a POST of ``value``: bytes as they are, else as JSON. ``x_y="z"`` is the header X-Y."""
    body = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: rgalign",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name.replace('_', '-')}: {text}" for name, text in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def get(path: str, **headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: rgalign", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
