"""A service of FakeRecommender: in this process (``service``, ``public``) or in one of its own (``running``)."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import pytest

FAKE_SERVICE = Path(__file__).parent / "fake_service.py"

pytest.importorskip("fastapi", reason="the [serve] extra")

TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="session")
def fakes() -> ModuleType:
    """fake_service.py as a module."""
    spec = importlib.util.spec_from_file_location("fake_service", FAKE_SERVICE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def with_service(fakes: Any) -> Callable[..., None]:
    """Calls a coroutine function with an HTTP client of the public routes, the service and its recommender."""

    def with_service(use: Callable[..., Awaitable[None]], **settings: Any) -> None:
        import httpx

        from rgalign.service.app import Service, public_app
        from rgalign.service.settings import ServiceSettings

        async def run() -> None:
            recommender = fakes.FakeRecommender()
            service = Service.of(recommender, ServiceSettings(**settings))
            transport = httpx.ASGITransport(public_app(service))
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                await use(client, service, recommender)

        asyncio.run(run())

    return with_service


@dataclass
class Running:
    """A service process; its standard error is its log."""

    process: subprocess.Popen[str]
    host: str
    port: int
    admin_port: int | None
    log: IO[str]
    modules: frozenset[str]

    def log_text(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text(encoding="utf-8")


@contextmanager
def running_service(**settings: Any) -> Iterator[Running]:
    command = [sys.executable, str(FAKE_SERVICE), json.dumps({"port": 0, "admin_port": 0, **settings}), TOKEN]
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, Path(log.name).read_text(encoding="utf-8")
            address, admin, modules = json.loads(line)
            yield Running(process, address[0], address[1], admin[1], log, frozenset(modules))
        finally:
            process.kill()
            process.communicate()


@pytest.fixture
def serving() -> Callable[..., Any]:
    return running_service


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    """One for all tests that leave it as it was. Its time limits are for a slow machine, its other bounds are low."""
    limits = {"header_s": 20.0, "body_s": 20.0, "idle_s": 60.0, "max_connections": 40}
    bytes_limits = {"max_body_bytes": 100_000, "max_buffered_bytes": 150_000}
    with running_service(connections=limits | bytes_limits, max_single_bytes=16_384) as service:
        yield service


@pytest.fixture(scope="session")
def hasty() -> Iterator[Running]:
    """One that does not wait for clients."""
    with running_service(connections={"header_s": 0.6, "body_s": 0.6, "idle_s": 1.0}) as service:
        yield service
