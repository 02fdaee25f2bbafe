"""Several vLLM servers as one: each is told everything, rows are dealt over them, and one that fails leaves its share to the others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tinyzero_trl.generation.calls import SECONDS_TO_BE_HEALTHY, Calls, ServerFault

logger = logging.getLogger(__name__)
SECONDS_TO_ANSWER = 2.0
"""For a server that is set aside: all others wait along."""


class Fleet(Calls):
    """What `Calls` is for one server. A server that fails, or that has other weights than all were given last, is set aside; with each transfer of
    weights those that answer are taken in again. Where none is left, the fault is that of the fleet, and all are tried again.
    """

    def __init__(self, servers: Sequence[Calls]):
        self.servers = list(servers)
        self.url = self.servers[0].url
        """Stands for all of them."""
        self.version: str | None = None
        """Of the weights they were given last; None: none yet."""
        self._aside: set[int] = set()

    def get(self, path: str, *, seconds: float | None = None) -> Any:
        """The answer of the first that is not set aside; all are asked. Raises: ServerFault where none answers."""
        return self._tell(lambda server: self._checked(path, server.get(path, seconds=seconds)))

    def post(self, path: str, body: Any = None, *, seconds: float | None = None) -> Any:
        """As `get`."""
        if path.startswith("/pause"):  # what a transfer begins with
            self._take_in()
        answer = self._tell(lambda server: self._checked(path, server.post(path, body, seconds=seconds)))
        if path == "/finish_weight_update" and body:
            self.version = body["weight_version"]
        elif path == "/update_weight_version":
            self.version = body["new_version"]
        return answer

    def is_healthy(self, *, seconds: float = SECONDS_TO_BE_HEALTHY) -> bool:
        """Whether a server can generate; before the first transfer of weights, whether all can."""
        return (all if self.version is None else any)(
            self._each(lambda server: server.is_healthy(seconds=seconds), range(len(self.servers)))
        )

    def together(
        self, path: str, bodies: Sequence[Any], *, seconds: float, on_answer: Callable[[Any], None] | None = None
    ) -> list[Any]:
        """The answers in the order of `bodies`, each from a server whose weights were the right ones after its share. Raises: ServerFault."""
        until = time.monotonic() + seconds
        answers: list[Any] = [None] * len(bodies)
        left = list(range(len(bodies)))
        while left:
            self._take_all_where_none()
            up = self._up()
            shares = dict(zip(up, dealt(left, len(up)), strict=True))

            def ask(server: Calls, index: int, shares: dict[int, list[int]] = shares) -> list[Any]:
                rows = [bodies[row] for row in shares[index]]
                given = server.together(path, rows, seconds=max(1.0, until - time.monotonic()), on_answer=on_answer)
                self._checked("/weight_info", server.get("/weight_info"))
                return given

            given = self._answers_of(ask, [index for index in up if shares[index]])
            for index, answered in given.items():
                for row, answer in zip(shares[index], answered, strict=True):
                    answers[row] = answer
            left = [row for index in up if index not in given for row in shares[index]]
        return answers

    def _tell(self, call: Callable[[Calls], Any]) -> Any:
        self._take_all_where_none()
        answers = self._answers_of(lambda server, index: call(server), self._up())
        return answers[min(answers)]

    def _answers_of(self, call: Callable[[Calls, int], Any], indices: Sequence[int]) -> dict[int, Any]:
        """Answers by server; who fails is set aside. Raises: ServerFault where all that were asked failed and none is left."""

        def one(index: int) -> Any:
            try:
                return call(self.servers[index], index)
            except ServerFault as fault:
                return fault

        with ThreadPoolExecutor(len(self.servers)) as threads:
            answers = dict(zip(indices, threads.map(one, indices), strict=True))
        faults = {index: answer for index, answer in answers.items() if isinstance(answer, ServerFault)}
        self._aside |= faults.keys()
        if not self._up():
            raise next(iter(faults.values()))
        for fault in faults.values():
            logger.warning("%s; %d of %d servers go on without it", fault, len(self._up()), len(self.servers))
        return {index: answer for index, answer in answers.items() if index not in faults}

    def _each(self, call: Callable[[Calls], Any], indices: Sequence[int]) -> list[Any]:
        with ThreadPoolExecutor(len(self.servers)) as threads:
            return list(threads.map(lambda index: call(self.servers[index]), indices))

    def _checked(self, path: str, answer: Any) -> Any:
        """Raises: ServerFault for an answer that says that this server is not as the others are."""
        if isinstance(answer, dict) and answer.get("success") is False:
            raise ServerFault(f"{path} did not succeed")
        if path == "/weight_info" and self.version is not None and answer["weight_version"] != self.version:
            raise ServerFault(f"a server has the weights {answer['weight_version']!r} in the place of {self.version!r}")
        return answer

    def _up(self) -> list[int]:
        return [index for index in range(len(self.servers)) if index not in self._aside]

    def _take_all_where_none(self) -> None:
        if not self._up():
            self._aside.clear()

    def _take_in(self) -> None:
        """Have those that answer again in, each with the transfer ended that its failure may have cut short."""
        aside = sorted(self._aside)
        for index, is_healthy in zip(
            aside, self._each(lambda server: server.is_healthy(seconds=SECONDS_TO_ANSWER), aside), strict=True
        ):
            if is_healthy:
                try:
                    self.servers[index].post("/finish_weight_update", {})
                except ServerFault as fault:
                    if fault.status != 500:  # 500: there was nothing to end
                        continue
                self._aside.discard(index)
                logger.warning("%s is back", self.servers[index].url)


def dealt(rows: Sequence[int], num_servers: int) -> list[list[int]]:
    """Rows in runs of neighbours, as many for each server or one more: rows of a prompt share its cached prefix.

    >>> dealt([0, 1, 2, 3, 4], 2)
    [[0, 1, 2], [3, 4]]
    """
    size, more = divmod(len(rows), num_servers)
    ends = [size * (index + 1) + min(index + 1, more) for index in range(num_servers)]
    return [list(rows[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
