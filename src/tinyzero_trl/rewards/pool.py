"""Rewards in worker processes: one that hangs, crashes or fills the memory costs the reward of its response and nothing else."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, Protocol

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from tinyzero_trl.rewards.scoring import RewardCall, Score
from tinyzero_trl.rewards.worker_process import KILL_SECONDS, discard, prepare

logger = logging.getLogger(__name__)
MAX_RENEWALS = 3
"""Times that a batch gets new workers after all of them died; then the rest of the batch has no reward."""
MAX_ATTEMPTS = 2
"""Attempts of one call: its worker may be killed because of another program."""


class Limits(Protocol):
    """Number of workers and limits of a pool: the section `reward_workers` of a recipe."""

    num_workers: int
    seconds_per_call: float
    seconds_per_batch: float
    memory_gib: float | None


class RewardPool:
    """Worker processes that compute the rewards of one task by name; the numbers are those of a call in this process."""

    def __init__(self, task: str, settings: Limits, *, score: Callable[..., tuple[Any, ...]]):
        """Start the workers without waiting for them.

        task: a name or `path/to/file.py:TASK`, as in the recipe.
        score: (task, name of a reward, response, columns) -> the fields of a Score; a worker imports it by name.
        """
        self.task = task
        self.settings = settings
        self._score = score
        self._early: dict[str, _Batch] = {}
        self._num_done = 0
        self._generation = 0
        self._pool: ProcessPool | None = self._started()

    def submit(self, name: str, calls: Sequence[RewardCall]) -> None:
        """Start these calls of the reward called `name` in the background; `score` of the same calls waits only for those not done."""
        if stale := self._early.pop(name, None):
            stale.cancel()
        self._early[name] = self._begin(name, calls)

    def score(self, name: str, calls: Sequence[RewardCall]) -> list[Score]:
        """The score of each call; None for a call that took too long or whose worker died twice."""
        batch = self._early.pop(name, None)
        if batch is None or batch.calls != list(calls):
            if batch is not None:
                batch.cancel()
            batch = self._begin(name, calls)
        scores = [self._result(batch, index) for index in range(len(batch.calls))]
        if any(result.error == "seconds_per_batch" for result in scores):
            # Calls that still run or wait would delay the next batch.
            self._renew()
        return scores

    def close(self) -> None:
        """End the workers; the next call starts new ones."""
        self._early.clear()
        pool, self._pool = self._pool, None
        if pool is not None:
            discard(pool).join(KILL_SECONDS)

    def _started(self) -> ProcessPool:
        settings = self.settings
        pool = ProcessPool(
            max_workers=settings.num_workers,
            initializer=prepare,
            initargs=(os.getpid(), settings.memory_gib),
            context=multiprocessing.get_context("spawn"),  # a fork of a process with CUDA or threads may hang
        )
        assert pool.active  # reading it starts the pool
        return pool

    def _running(self) -> ProcessPool:
        if self._pool is None:
            self._renew()
        assert self._pool is not None
        return self._pool

    def _renew(self) -> None:
        if self._pool is not None:
            discard(self._pool)
        self._pool = self._started()
        self._generation += 1

    def _begin(self, name: str, calls: Sequence[RewardCall]) -> _Batch:
        deadline = time.monotonic() + self.settings.seconds_per_batch
        batch = _Batch(name, list(calls), deadline, [None] * len(calls), [0] * len(calls))
        for index in range(len(calls)):
            self._send(batch, index)
        batch.generation = self._generation
        return batch

    def _send(self, batch: _Batch, index: int) -> None:
        call = batch.calls[index]
        arguments = (self.task, batch.name, call.response, call.columns)
        limit = self.settings.seconds_per_call
        try:
            future = self._running().schedule(self._score, args=arguments, timeout=limit)
        except RuntimeError:  # an idle worker was killed from outside, after which a Pebble pool takes no calls
            self._renew()
            future = self._running().schedule(self._score, args=arguments, timeout=limit)
        future.add_done_callback(self._count)
        batch.futures[index] = future

    def _count(self, future: Any) -> None:
        self._num_done += 1

    def _result(self, batch: _Batch, index: int) -> Score:
        num_done = self._num_done
        while True:
            if batch.generation != self._generation:
                self._send_again(batch)
            future = batch.futures[index]
            assert future is not None
            left = max(batch.deadline - time.monotonic(), 0.0)
            patience = self.settings.seconds_per_call + KILL_SECONDS
            try:
                return Score(*future.result(timeout=min(left, patience)))
            except ProcessExpired as error:
                batch.attempts[index] += 1
                if batch.attempts[index] >= MAX_ATTEMPTS:
                    detail = f"its worker died (exit code {error.exitcode}) on {batch.calls[index].response[-200:]!r}"
                    return Score(None, "died", detail)
                self._send(batch, index)
            except TimeoutError:
                if future.done():
                    detail = f"took more than reward_workers.seconds_per_call {self.settings.seconds_per_call:g} on {batch.calls[index].response[-200:]!r}"
                    return Score(None, "seconds_per_call", detail)
                if left <= patience:
                    detail = (
                        f"a batch took more than reward_workers.seconds_per_batch {self.settings.seconds_per_batch:g}"
                    )
                    return Score(None, "seconds_per_batch", detail)
                if num_done == self._num_done:  # no call ends: a worker was killed while it held the lock of the others
                    self._renew()
                num_done = self._num_done
            except (BrokenProcessPool, CancelledError):
                if batch.num_renewals >= MAX_RENEWALS:
                    return Score(
                        None, "died", f"no worker lives: {MAX_RENEWALS} times all were gone before they worked"
                    )
                self._renew()
            except Exception as error:  # the arguments cannot be pickled
                return Score(None, type(error).__name__, f"cannot be sent to a worker: {error!r:.200}")

    def _send_again(self, batch: _Batch) -> None:
        batch.num_renewals += 1
        batch.generation = self._generation
        for index, future in enumerate(batch.futures):
            assert future is not None
            if not future.done() or isinstance(_error_of(future), (BrokenProcessPool, CancelledError)):
                self._send(batch, index)


@dataclass
class _Batch:
    name: str
    calls: list[RewardCall]
    deadline: float
    futures: list[ProcessFuture[tuple[Any, ...]] | None]
    attempts: list[int]
    generation: int = 0
    """Number of the set of workers that its calls were sent to."""
    num_renewals: int = field(default=0)

    def cancel(self) -> None:
        for future in self.futures:
            if future is not None:
                future.cancel()


def _error_of(future: ProcessFuture[Any]) -> BaseException | None:
    return CancelledError() if future.cancelled() else future.exception()
