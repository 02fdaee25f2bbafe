"""The token: who can read it, and which requests pass without it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from tinyzero_trl.config import INSIST, check_host, free_port, is_on_this_machine
from tinyzero_trl.generation.authentication import TOKEN_FILE, TokenMiddleware, make_token, read_token


async def inner(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "passed"})


def ask(middleware: TokenMiddleware, **scope: Any) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {}

    asyncio.run(middleware({"type": "http", "path": "/v1/models", "headers": [], **scope}, receive, send))
    return sent


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TokenMiddleware, bytes]:
    token = make_token(tmp_path / "token")
    monkeypatch.setenv(TOKEN_FILE, str(tmp_path / "token"))
    return TokenMiddleware(inner), token.encode()


def test_the_token_opens_every_path_and_health_needs_none(guarded: tuple[TokenMiddleware, bytes]) -> None:
    middleware, token = guarded
    assert ask(middleware, headers=[(b"authorization", b"Bearer " + token)]) == [{"type": "passed"}]
    assert ask(middleware, path="/health") == [{"type": "passed"}]
    assert ask(middleware, type="lifespan") == [{"type": "passed"}]


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"headers": [(b"authorization", b"Bearer ")]},
        {"headers": [(b"authorization", b"")]},
        {"headers": [(b"authorization", b"Bearer wrong")]},
        {"path": "/health/"},
        {"path": "//health"},
        {"path": "/health/../pause"},
        {"path": "/HEALTH"},
        {"path": "/nothing"},
    ],
)
def test_nothing_else_passes(guarded: tuple[TokenMiddleware, bytes], scope: dict[str, Any]) -> None:
    assert ask(guarded[0], **scope)[0]["status"] == 401


def test_a_second_header_and_a_websocket_without_the_token_do_not_pass(guarded: tuple[TokenMiddleware, bytes]) -> None:
    middleware, token = guarded
    right = (b"authorization", b"Bearer " + token)
    assert ask(middleware, headers=[(b"authorization", b"Bearer wrong"), right])[0]["status"] == 401
    assert ask(middleware, headers=[(b"authorization", token)])[0]["status"] == 401
    assert ask(middleware, type="websocket")[0]["type"] == "websocket.close"
    assert ask(middleware, type="websocket", path="/health")[0]["type"] == "websocket.close"
    assert ask(middleware, type="websocket", headers=[right]) == [{"type": "passed"}]


def test_a_server_without_a_token_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_FILE, raising=False)
    with pytest.raises(KeyError):
        TokenMiddleware(inner)
    (tmp_path / "empty").touch(mode=0o600)
    monkeypatch.setenv(TOKEN_FILE, str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="holds no token"):
        TokenMiddleware(inner)


def test_only_this_user_can_read_a_token_also_where_the_file_was_open_before(tmp_path: Path) -> None:
    path = tmp_path / "made/for it/token"
    first = make_token(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    os.chmod(path, 0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        read_token(path)
    second = make_token(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_token(path) == second != first


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "*", "[::]", "8.8.8.8"])
def test_all_interfaces_and_public_addresses_are_refused_unless_a_person_insists(host: str) -> None:
    with pytest.raises(ValueError, match=INSIST):
        check_host(host, insists=False)
    assert check_host(host, insists=True)


def test_this_machine_and_private_networks_are_what_a_server_listens_on(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "localhost", "10.1.2.3", "192.168.0.4"):
        assert check_host(host, insists=False)
    with pytest.raises(ValueError, match="no address"):
        check_host("no such host", insists=True)
    assert is_on_this_machine("http://127.0.0.1:8000")
    assert not is_on_this_machine("http://10.0.0.1:8000")
    assert free_port() > 1024
