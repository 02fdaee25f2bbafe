"""HTTP requests to a vLLM server: each has a deadline, carries the token, is sent once, and follows no redirect."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from tinyzero_trl.generation.authentication import read_token

SECONDS_BETWEEN_CHECKS = 5.0
"""Seconds between two health checks of a server while it generates."""
SECONDS_TO_BE_HEALTHY = 5.0
"""Deadline of a health check, in seconds."""
LIVENESS_PATH = "/weight_info"
"""Route of the health check while a server generates: unlike /health, the engine itself answers it, between two tokens."""
MAX_CONNECTIONS = 1024
TEXT_ROUTES = ("/v1/load_lora_adapter",)
"""Routes of vLLM that answer with a sentence instead of JSON."""


class ServerError(Exception):
    """A request to the server failed; the message is one line. The request may succeed after a restart and a new transfer of the weights."""

    def __init__(self, message: str, *, status: int | None = None):
        super().__init__(message)
        self.status = status
        """HTTP status of the answer; None if there was none."""


class HttpClient:
    """Requests to one server with one token. Each request opens its own connections: the trainer sends a few a minute."""

    def __init__(self, url: str, *, token: str | Path, seconds_per_call: float):
        """token: the token, or the file that holds it, which is read for each request because a restarted server has a new one.

        seconds_per_call: deadline of a request that should take milliseconds, from connecting to the last byte of the answer.
        """
        self.url = url.rstrip("/")
        self._token = token
        self._seconds = seconds_per_call

    def get(self, path: str, *, seconds: float | None = None) -> Any:
        """The JSON of the answer; None if it is empty. Raises: ServerError."""
        return self._run(self._alone("GET", path, None, seconds or self._seconds))

    def post(self, path: str, body: Any = None, *, seconds: float | None = None) -> Any:
        """The JSON of the answer, as `get`. A POST is never repeated: the server may have done what it did not answer.

        seconds: deadline of a request that may take long. The server's health is checked meanwhile: when vLLM's engine ends, its
        open requests are never answered.
        """
        if seconds is None:
            return self._run(self._alone("POST", path, body, self._seconds))
        (answer,) = self._run(self._post_all(path, [body], seconds, None, alive="/health"))
        return answer

    def is_healthy(self, *, seconds: float = SECONDS_TO_BE_HEALTHY) -> bool:
        """True if the server answers within `seconds` and can generate."""
        try:
            self.get("/health", seconds=seconds)
        except ServerError:
            return False
        return True

    def post_all(
        self, path: str, bodies: Sequence[Any], *, seconds: float, on_answer: Callable[[Any], None] | None = None
    ) -> list[Any]:
        """The answers to several POSTs sent at once, in their order. The first failure cancels all, and so does a failed health check.

        seconds: deadline of the whole set. on_answer: called with each answer as it arrives. Raises: ServerError.
        """
        return self._run(self._post_all(path, bodies, seconds, on_answer, alive=LIVENESS_PATH))

    def _run(self, call: Coroutine[Any, Any, Any]) -> Any:
        import aiohttp

        try:
            return asyncio.run(call)
        except ExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
        except (ServerError, aiohttp.ClientError, TimeoutError, OSError) as failure:
            error = failure
        if isinstance(error, ServerError):
            raise error
        if isinstance(error, (aiohttp.ClientError, OSError, ValueError)) and not isinstance(error, TimeoutError):
            raise ServerError(f"{self.url} cannot be reached: {str(error) or type(error).__name__}")
        if isinstance(error, TimeoutError):
            raise ServerError(f"{self.url} gave no answer in time")
        raise error

    async def _alone(self, method: str, path: str, body: Any, seconds: float) -> Any:
        async with self._session() as session, asyncio.timeout(seconds):
            return await self._ask(session, method, path, body)

    async def _post_all(
        self,
        path: str,
        bodies: Sequence[Any],
        seconds: float,
        on_answer: Callable[[Any], None] | None,
        *,
        alive: str,
    ) -> list[Any]:
        async def one(body: Any) -> Any:
            answer = await self._ask(session, "POST", path, body)
            if on_answer is not None:
                on_answer(answer)
            return answer

        async def watch() -> None:
            while True:
                await asyncio.sleep(SECONDS_BETWEEN_CHECKS)
                await self._alone("GET", alive, None, self._seconds)

        async with self._session() as session, asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            watching = group.create_task(watch())
            asked = [group.create_task(one(body)) for body in bodies]
            answers = await asyncio.gather(*asked)
            watching.cancel()
        return answers

    def _read_token(self) -> str:
        if isinstance(self._token, str):
            return self._token
        try:
            return read_token(self._token)
        except (OSError, ValueError) as error:
            raise ServerError(f"{self.url}: {error}") from None

    def _session(self) -> Any:
        import aiohttp

        # Deadlines are asyncio's: aiohttp's begin again with each phase of a request.
        return aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._read_token()}"},
            timeout=aiohttp.ClientTimeout(total=None),
            connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
        )

    async def _ask(self, session: Any, method: str, path: str, body: Any) -> Any:
        # A redirect would carry the token to another host.
        async with session.request(method, self.url + path, json=body, allow_redirects=False) as response:
            content = await response.read()
        if response.status != 200:
            raise ServerError(
                f"{self.url}{path} answered {response.status}: {_shown(content)}", status=int(response.status)
            )
        if not content or (path in TEXT_ROUTES and content.startswith(b"Success")):
            return None
        try:
            return json.loads(content)
        except ValueError:
            raise ServerError(f"{self.url}{path} answered what is no JSON: {_shown(content)}", status=200) from None


def health_timeout(until: float) -> float:
    """Deadline of the next health check, in seconds: at most SECONDS_TO_BE_HEALTHY, and at least 1, of those left until `until` (time.monotonic())."""
    return max(1.0, min(SECONDS_TO_BE_HEALTHY, until - time.monotonic()))


def _shown(content: bytes) -> str:
    text = content.decode("utf-8", errors="replace")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:200]
