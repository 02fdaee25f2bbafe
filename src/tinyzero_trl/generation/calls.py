"""HTTP to a vLLM server: every call has an end, none is repeated, each carries the token, no header of an answer is obeyed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from tinyzero_trl.generation.guard import read_token

LOOK_EVERY = 5.0
"""Seconds between two looks at a server that is generating."""
SECONDS_TO_BE_HEALTHY = 5.0
"""For a look at the health of a server: what takes longer is not well."""
ALIVE = "/weight_info"
"""What is looked at then: unlike /health, the engine itself answers it, between two tokens."""
MAX_CONNECTIONS = 1024
SAYS_WORDS = ("/v1/load_lora_adapter",)
"""Routes of vLLM that answer with a sentence in the place of JSON."""


class ServerFault(Exception):
    """The server did not do what it was asked to, in one line; it may after a restart and a new transfer of the weights."""

    def __init__(self, message: str, *, status: int | None = None):
        super().__init__(message)
        self.status = status
        """HTTP status it answered with; None where it did not answer."""


class Calls:
    """One server, one token. Each call opens connections of its own: the trainer calls a few times a minute."""

    def __init__(self, url: str, *, token: str | Path, seconds_per_call: float):
        """token: or the file that holds it, read anew for each call: a server that was started again has another.

        seconds_per_call: of a call that should take milliseconds, its connecting and its body included."""
        self.url = url.rstrip("/")
        self._token = token
        self._seconds = seconds_per_call

    def get(self, path: str, *, seconds: float | None = None) -> Any:
        """The answer's JSON (None where it is empty). Raises: ServerFault."""
        return self._run(self._alone("GET", path, None, seconds or self._seconds))

    def post(self, path: str, body: Any = None, *, seconds: float | None = None) -> Any:
        """As `get`; the server is asked once, since what it did not answer it may have done.

        seconds: of a call that may take long. Then its health is looked at meanwhile: where vLLM's engine ends, a call to it is never answered.
        """
        if seconds is None:
            return self._run(self._alone("POST", path, body, self._seconds))
        (answer,) = self._run(self._together(path, [body], seconds, None, alive="/health"))
        return answer

    def is_healthy(self, *, seconds: float = SECONDS_TO_BE_HEALTHY) -> bool:
        """Whether the server answers within `seconds` and can generate."""
        try:
            self.get("/health", seconds=seconds)
        except ServerFault:
            return False
        return True

    def together(
        self, path: str, bodies: Sequence[Any], *, seconds: float, on_answer: Callable[[Any], None] | None = None
    ) -> list[Any]:
        """The answers to several POSTs sent at once, in their order. The first that fails ends all; so does an engine that no longer answers.

        seconds: for all of them. Raises: ServerFault.
        """
        return self._run(self._together(path, bodies, seconds, on_answer, alive=ALIVE))

    def _run(self, call: Coroutine[Any, Any, Any]) -> Any:
        import aiohttp

        try:
            return asyncio.run(call)
        except ExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
        except (ServerFault, aiohttp.ClientError, TimeoutError, OSError) as failure:
            error = failure
        if isinstance(error, ServerFault):
            raise error
        if isinstance(error, (aiohttp.ClientError, OSError, ValueError)) and not isinstance(error, TimeoutError):
            raise ServerFault(f"{self.url} cannot be reached: {str(error) or type(error).__name__}")
        if isinstance(error, TimeoutError):
            raise ServerFault(f"{self.url} gave no answer in time")
        raise error

    async def _alone(self, method: str, path: str, body: Any, seconds: float) -> Any:
        async with self._session() as session, asyncio.timeout(seconds):
            return await self._ask(session, method, path, body)

    async def _together(
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
                await asyncio.sleep(LOOK_EVERY)
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
            raise ServerFault(f"{self.url}: {error}") from None

    def _session(self) -> Any:
        import aiohttp

        # Deadlines are asyncio's own: aiohttp's start anew with each phase.
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
            raise ServerFault(
                f"{self.url}{path} answered {response.status}: {_shown(content)}", status=int(response.status)
            )
        if not content or (path in SAYS_WORDS and content.startswith(b"Success")):
            return None
        try:
            return json.loads(content)
        except ValueError:
            raise ServerFault(f"{self.url}{path} answered what is no JSON: {_shown(content)}", status=200) from None


def look(until: float) -> float:
    """Seconds for the next look at a server's health, where all is over at `until` (time.monotonic()) or a second after."""
    return max(1.0, min(SECONDS_TO_BE_HEALTHY, until - time.monotonic()))


def _shown(content: bytes) -> str:
    text = content.decode("utf-8", errors="replace")
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:200]
