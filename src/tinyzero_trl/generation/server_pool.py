"""Several vLLM servers behind the interface of one: weights go to all, rows are shared out, and the others finish the rows of one that fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tinyzero_trl.generation.http_client import SECONDS_TO_BE_HEALTHY, HttpClient, ServerError

logger = logging.getLogger(__name__)
SECONDS_TO_ANSWER = 2.0
"""Deadline of the health check of an excluded server, in seconds; all others wait for it."""


class ServerPool(HttpClient):
    """Requests to all servers of a run.

    A server that fails, or has other weights than the last transfer gave to all, is excluded. Each transfer of weights readmits
    those that answer. If none is left, the request raises, and the next one tries all again.
    """

    def __init__(self, servers: Sequence[HttpClient]):
        self.servers = list(servers)
        self.url = self.servers[0].url
        """Address in messages about the pool: the first server's."""
        self.version: str | None = None
        """Version of the weights that the last transfer gave to all; None before the first."""
        self._excluded: set[int] = set()

    def get(self, path: str, *, seconds: float | None = None) -> Any:
        """The answer of the first included server; all included ones are asked. Raises: ServerError if none answers."""
        return self._ask_all(lambda server: self._checked(path, server.get(path, seconds=seconds)))

    def post(self, path: str, body: Any = None, *, seconds: float | None = None) -> Any:
        """The answer of the first included server, as `get`."""
        if path.startswith("/pause"):  # the first request of a transfer
            self._readmit()
        answer = self._ask_all(lambda server: self._checked(path, server.post(path, body, seconds=seconds)))
        if path == "/finish_weight_update" and body:
            self.version = body["weight_version"]
        elif path == "/update_weight_version":
            self.version = body["new_version"]
        return answer

    def is_healthy(self, *, seconds: float = SECONDS_TO_BE_HEALTHY) -> bool:
        """True if one server can generate; before the first transfer of weights, if all can."""
        return (all if self.version is None else any)(
            self._each(lambda server: server.is_healthy(seconds=seconds), range(len(self.servers)))
        )

    def post_all(
        self, path: str, bodies: Sequence[Any], *, seconds: float, on_answer: Callable[[Any], None] | None = None
    ) -> list[Any]:
        """The answers in the order of `bodies`, each from a server that had the right weights when its share was done. Raises: ServerError."""
        until = time.monotonic() + seconds
        answers: list[Any] = [None] * len(bodies)
        left = list(range(len(bodies)))
        while left:
            self._readmit_all_if_none()
            included = self._included()
            shares = dict(zip(included, dealt(left, len(included)), strict=True))

            def ask(server: HttpClient, index: int, shares: dict[int, list[int]] = shares) -> list[Any]:
                rows = [bodies[row] for row in shares[index]]
                given = server.post_all(path, rows, seconds=max(1.0, until - time.monotonic()), on_answer=on_answer)
                self._checked("/weight_info", server.get("/weight_info"))
                return given

            given = self._answers_of(ask, [index for index in included if shares[index]])
            for index, answered in given.items():
                for row, answer in zip(shares[index], answered, strict=True):
                    answers[row] = answer
            left = [row for index in included if index not in given for row in shares[index]]
        return answers

    def _ask_all(self, call: Callable[[HttpClient], Any]) -> Any:
        self._readmit_all_if_none()
        answers = self._answers_of(lambda server, index: call(server), self._included())
        return answers[min(answers)]

    def _answers_of(self, call: Callable[[HttpClient, int], Any], indices: Sequence[int]) -> dict[int, Any]:
        """Answers by index of the server; one that fails is excluded. Raises: ServerError if none is left."""

        def one(index: int) -> Any:
            try:
                return call(self.servers[index], index)
            except ServerError as error:
                return error

        with ThreadPoolExecutor(len(self.servers)) as threads:
            answers = dict(zip(indices, threads.map(one, indices), strict=True))
        errors = {index: answer for index, answer in answers.items() if isinstance(answer, ServerError)}
        self._excluded |= errors.keys()
        if not self._included():
            raise next(iter(errors.values()))
        for error in errors.values():
            logger.warning("%s; %d of %d servers go on without it", error, len(self._included()), len(self.servers))
        return {index: answer for index, answer in answers.items() if index not in errors}

    def _each(self, call: Callable[[HttpClient], Any], indices: Sequence[int]) -> list[Any]:
        with ThreadPoolExecutor(len(self.servers)) as threads:
            return list(threads.map(lambda index: call(self.servers[index]), indices))

    def _checked(self, path: str, answer: Any) -> Any:
        """The answer itself. Raises: ServerError if it shows that the server refused, or has other weights than the others."""
        if isinstance(answer, dict) and answer.get("success") is False:
            raise ServerError(f"{path} did not succeed")
        if path == "/weight_info" and self.version is not None and answer["weight_version"] != self.version:
            raise ServerError(f"a server has the weights {answer['weight_version']!r} in the place of {self.version!r}")
        return answer

    def _included(self) -> list[int]:
        return [index for index in range(len(self.servers)) if index not in self._excluded]

    def _readmit_all_if_none(self) -> None:
        if not self._included():
            self._excluded.clear()

    def _readmit(self) -> None:
        """Readmit the excluded servers that answer, and end the transfer that their failure may have interrupted."""
        excluded = sorted(self._excluded)
        for index, is_healthy in zip(
            excluded, self._each(lambda server: server.is_healthy(seconds=SECONDS_TO_ANSWER), excluded), strict=True
        ):
            if is_healthy:
                try:
                    self.servers[index].post("/finish_weight_update", {})
                except ServerError as error:
                    if error.status != 500:  # 500: there was nothing to end
                        continue
                self._excluded.discard(index)
                logger.warning("%s is back", self.servers[index].url)


def dealt(rows: Sequence[int], num_servers: int) -> list[list[int]]:
    """Rows in equal runs of neighbours, one run for each server: the rows of a prompt share its cached prefix.

    >>> dealt([0, 1, 2, 3, 4], 2)
    [[0, 1, 2], [3, 4]]
    """
    size, more = divmod(len(rows), num_servers)
    ends = [size * (index + 1) + min(index + 1, more) for index in range(num_servers)]
    return [list(rows[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
