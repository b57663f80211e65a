"""What the service takes, of everything that a client can send much or little of."""

from __future__ import annotations

import ipaddress
import os
import stat
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from rgalign.config import Config
from rgalign.errors import ConfigError

TOKEN_VARIABLE = "RGALIGN_ADMIN_TOKEN"
MIN_TOKEN_CHARS = 16


class ConnectionLimits(Config):
    """Of one connection, and of all of them together."""

    max_connections: int = Field(default=1_024, ge=1, le=65_536)
    max_headers: int = Field(default=64, ge=1, le=1_024)
    max_header_bytes: int = Field(default=16 << 10, ge=256, le=1 << 20)
    max_body_bytes: int = Field(default=512 << 10, ge=1, le=16 << 20)  # of the largest route
    max_buffered_bytes: int = Field(default=64 << 20, ge=1)  # bodies on their way in, of all connections
    header_s: float = Field(default=5.0, gt=0, le=600)  # from the first byte, or the connection, to the last header
    body_s: float = Field(default=10.0, gt=0, le=600)  # from the last header to the last byte
    idle_s: float = Field(default=30.0, gt=0, le=3_600)  # between requests
    answer_s: float = Field(default=30.0, gt=0, le=3_600)  # from the last byte until the client has read the answer

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_body_bytes > self.max_buffered_bytes:
            raise ValueError("max_body_bytes is more than max_buffered_bytes of all connections")
        return self


class ServiceSettings(Config):
    """Of the service. ``port`` 0 takes a free one; without ``admin_port`` there is no admin listener."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65_535)
    admin_host: str = "127.0.0.1"
    admin_port: int | None = Field(default=None, ge=0, le=65_535)
    bundle_root: Path | None = None  # where swaps find bundles and indexes by name
    connections: ConnectionLimits = ConnectionLimits()
    max_single_bytes: int = Field(default=64 << 10, ge=1)  # body of /v1/recommend
    max_batch: int = Field(default=64, ge=1, le=1_024)  # contexts of /v1/recommend_many
    max_deadline_ms: float = Field(default=10_000.0, gt=0, le=600_000)
    drain_s: float = Field(default=3.0, ge=0, le=600)  # from SIGTERM until those left are told shutting_down

    @field_validator("admin_host")
    @classmethod
    def _loopback(cls, value: str) -> str:
        if not ipaddress.ip_address(value).is_loopback:
            raise ValueError("the admin listener is for a loopback address only")
        return value


def admin_token(file: Path | None) -> str:
    """The admin listener's token: from ``file`` if one is named, else from the environment, which forgets it.

    Raises:
        ConfigError: none, a short one, characters that no header carries, or a file that others may read.
    """
    if file is None:
        where, token = TOKEN_VARIABLE, os.environ.pop(TOKEN_VARIABLE, "")
    else:
        where, token = str(file), _private_text(file).strip()
    if len(token) < MIN_TOKEN_CHARS or not all("!" <= character <= "~" for character in token):
        required = f"an admin token of at least {MIN_TOKEN_CHARS} printable ASCII characters"
        raise ConfigError(where=where, required=required, received=f"{len(token)} characters")
    return token


def _private_text(file: Path) -> str:
    if not file.is_file():
        raise ConfigError(where=str(file), required="a file with the admin token", received="no such file")
    if file.stat().st_mode & stat.S_IRWXO:
        raise ConfigError(where=str(file), required="a file that others cannot read (chmod o=)", received="they can")
    return file.read_text(encoding="utf-8", errors="replace")
