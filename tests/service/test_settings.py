"""What the service is configured with, and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from rgalign.config import load_config
from rgalign.errors import ConfigError
from rgalign.service.server import allow_files
from rgalign.service.settings import TOKEN_VARIABLE, ServiceSettings, admin_token

TOKEN = "a-token-of-the-tests"


def test_settings_by_name_and_a_wrong_name() -> None:
    settings = load_config(ServiceSettings, None, ["connections.max_connections=9", "drain_s=1"])
    assert (settings.connections.max_connections, settings.drain_s) == (9, 1.0)
    with pytest.raises(ConfigError, match="did you mean 'header_s'"):
        load_config(ServiceSettings, None, ["connections.header_secs=9"])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "192.168.1.1", "localhost", "example.org", ""])
def test_the_admin_listener_is_for_loopback_only(host: str) -> None:
    with pytest.raises(ConfigError, match="loopback|IPv4"):
        load_config(ServiceSettings, None, [f"admin_host={host!r}"])
    for loopback in ("127.0.0.1", "127.1.2.3", "::1"):
        assert ServiceSettings(admin_host=loopback).admin_host == loopback


def test_bodies_of_all_connections_hold_one_of_the_largest() -> None:
    with pytest.raises(ConfigError, match="max_body_bytes is more than max_buffered_bytes"):
        load_config(ServiceSettings, None, ["connections.max_buffered_bytes=1000"])


def test_the_token_comes_from_the_environment_which_forgets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert admin_token(None) == TOKEN
    with pytest.raises(ConfigError, match=TOKEN_VARIABLE):
        admin_token(None)


@pytest.mark.parametrize("token", ["", "short", "x" * 15, "a token of the tests", "töken-of-the-tests-of-ours"])
def test_a_token_that_is_none(token: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(token + "\n")
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="at least 16 printable") as caught:
        admin_token(file)
    assert not token or token not in str(caught.value)
    file.write_text(TOKEN + "\n")
    assert admin_token(file) == TOKEN


def test_a_token_that_others_can_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        admin_token(tmp_path / "token")
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(ConfigError, match="others cannot read"):
        admin_token(tmp_path / "token")


def test_more_connections_than_files(monkeypatch: pytest.MonkeyPatch) -> None:
    raised = []
    monkeypatch.setattr("rgalign.service.server.resource.getrlimit", lambda _: (256, 1_024))
    monkeypatch.setattr("rgalign.service.server.resource.setrlimit", lambda _, limits: raised.append(limits))
    allow_files(200)
    assert raised == []
    allow_files(1_000)
    assert raised == [(1_000, 1_024)]
    with pytest.raises(ConfigError, match="ulimit -n: required 2000 open files"):
        allow_files(2_000)
