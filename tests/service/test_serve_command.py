"""`rgalign serve`: what it makes of its arguments; the service itself is tested beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import rgalign
from rgalign.cli import app
from rgalign.errors import ConfigError
from rgalign.recommender.config import BreakerConfig, RecommenderConfig
from rgalign.service.server import Listening
from rgalign.service.settings import TOKEN_VARIABLE

TOKEN = "a-token-of-the-tests"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, fakes: Any) -> dict[str, Any]:
    """What `serve` was called with."""
    given: dict[str, Any] = {}

    def serve(recommender: Any, settings: Any, token: str | None, on_ready: Any) -> int:
        given.update(recommender=recommender, settings=settings, token=token)
        on_ready(Listening(("127.0.0.1", 1234), ("127.0.0.1", 1235)))
        return 0

    def load(bundle: Path, config: RecommenderConfig) -> Any:
        given.update(bundle=bundle, config=config)
        return fakes.FakeRecommender()

    monkeypatch.setattr("rgalign.service.server.serve", serve)
    monkeypatch.setattr("rgalign.service.logs.start_logging", lambda level: given.update(level=level))
    monkeypatch.setattr(rgalign, "load", load)
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    return given


def test_arguments_become_settings(served: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    arguments = ["serve", str(tmp_path / "bundle"), "--port", "0", "--admin-port", "0", "--quiet"]
    arguments += ["--admin-token-file", str(tmp_path / "token"), "--set", "connections.max_connections=9"]
    arguments += ["--set", "recommender.threads=3", "--set", "recommender.breaker.failures=7"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "serving on http://127.0.0.1:1234" in done.output
    assert "admin on http://127.0.0.1:1235" in done.output
    settings = served["settings"]
    assert (settings.port, settings.admin_port, settings.connections.max_connections) == (0, 0, 9)
    assert (settings.bundle_root, served["bundle"]) == (tmp_path, tmp_path / "bundle")
    assert (served["token"], served["level"]) == (TOKEN, 30)
    assert served["config"] == RecommenderConfig(threads=3, breaker=BreakerConfig(failures=7))


def test_no_admin_listener_unless_asked_for(served: dict[str, Any], tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["serve", str(tmp_path)]).exit_code == 0
    assert (served["settings"].admin_port, served["token"]) == (None, None)
    refused = CliRunner().invoke(app, ["serve", str(tmp_path), "--admin-port", "1"])
    assert isinstance(refused.exception, ConfigError)
    assert TOKEN_VARIABLE in str(refused.exception)
    assert "--admin-token " not in CliRunner().invoke(app, ["serve", "--help"]).output  # never on the command line
