"""The token that every request to our vLLM server needs, except to `/health`. Standard library only.

vLLM's own `--api-key` is on the command line, where `ps` shows it, and does not protect the routes that pause a server and
replace its weights.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from tinyzero_trl import storage

TOKEN_FILE = "TINYZERO_TOKEN_FILE"
"""Environment variable with the path of the token's file; the token itself is in no environment and on no command line."""
OPEN = "/health"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def make_token(path: Path) -> str:
    """A new token, written to a file that only this user can read."""
    token = secrets.token_urlsafe(32)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    storage.write_text(path, token + "\n", is_private=True)
    return token


def read_token(path: Path) -> str:
    """The token in `path`. Raises: ValueError if others can read the file or it holds no token; FileNotFoundError."""
    if path.stat().st_mode & 0o077:
        raise ValueError(f"token file {path} can be read by others; chmod 600 {path}")
    token = path.read_text(encoding="ascii").strip()
    if len(token) < 16:
        raise ValueError(f"token file {path} holds no token")
    return token


class TokenMiddleware:
    """ASGI middleware that answers 401 to every request without the token, websockets included, on every path except `/health`."""

    def __init__(self, app: App):
        """Reads the token named by TINYZERO_TOKEN_FILE. Raises: KeyError, or what `read_token` raises, so that a server without a token does not start."""
        self.app = app
        self._expected = b"Bearer " + read_token(Path(os.environ[TOKEN_FILE])).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan" or (kind == "http" and scope["path"] == OPEN) or self._is_known(scope):
            await self.app(scope, receive, send)
        elif kind == "http":
            await send({"type": "http.response.start", "status": 401, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"no token\n"})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _is_known(self, scope: Scope) -> bool:
        given = [value for name, value in scope.get("headers", []) if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)
