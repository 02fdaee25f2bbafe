"""Runs comparisons by sympy in worker processes: one that hangs, crashes or fills the memory costs its own verdict and no other."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from typing import Any

from tinyzero_trl.rewards import KILL_SECONDS, discard
from tinyzero_trl.tasks.math.equivalence import UndecidedError, compare_within, prepare_worker
from tinyzero_trl.tasks.math.equivalence import compare as compare_here

__all__ = ["UndecidedError", "compare", "counts", "workers"]

logger = logging.getLogger(__name__)
NUM_WORKERS = 2
"""Workers of each process that compares: while one that was killed starts again, the other goes on."""
CPU_SECONDS = 1.0
"""Most processor time of one comparison, in seconds; 99 of 100 ordinary ones take less than 0.1."""
WALL_SECONDS = 300.0
"""Most time of one comparison by the clock, in seconds, for one that waits instead of working. It is far longer than `CPU_SECONDS` take on
a busy machine, so that the clock decides no verdict."""
MEMORY_GIB = 2.0
"""Largest address space of a worker, in GiB."""
TASKS_PER_WORKER = 2000
"""Comparisons after which a worker is replaced, because the caches of sympy and math-verify grow."""
MAX_ATTEMPTS = 3
"""Most attempts of one comparison whose worker died for another reason than its limits."""
MAX_RENEWALS = 10
"""Most pools that one comparison tries if each dies before it answers; a kill from outside ends the comparisons of all threads."""

counts: Counter[str] = Counter()
"""Number of comparisons of this process by result: `compared`, `too_long`, `died`, `failed`; and `restarts` of the pool."""


class Workers:
    """A pool that starts with its first comparison, and again when it has died; any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: Any = None
        self._owner = 0

    def compare(self, gold: str, answer: str) -> tuple[bool, bool]:
        """`equivalence.compare` in a worker.

        Raises: UndecidedError if it exceeded its limits, its workers died `MAX_ATTEMPTS` times, or the library failed.
        """
        from pebble import ProcessExpired

        if multiprocessing.current_process().daemon:
            # A daemonic process cannot start processes; its parent may end it.
            return compare_here(gold, answer)
        num_deaths = 0
        for _ in range(MAX_RENEWALS):
            pool = self._running()
            try:
                future = pool.schedule(compare_within, args=(gold, answer, CPU_SECONDS), timeout=WALL_SECONDS)
                is_legal, is_equal = future.result(timeout=WALL_SECONDS + KILL_SECONDS)
            except ProcessExpired as error:
                if error.exitcode == -signal.SIGPROF:
                    raise self._too_long(answer) from None
                num_deaths += 1
                if num_deaths == MAX_ATTEMPTS:
                    break
            except TimeoutError:
                if future.done():
                    raise self._too_long(answer) from None
                self._drop(pool)
            except UndecidedError:
                counts["failed"] += 1
                raise
            except (BrokenProcessPool, CancelledError, RuntimeError, OSError):
                self._drop(pool)  # an idle worker was killed from outside, after which a Pebble pool takes no calls
            else:
                counts["compared"] += 1
                return is_legal, is_equal
        counts["died"] += 1
        raise UndecidedError(f"no worker lived to compare {answer[:100]!r}")

    def close(self) -> None:
        """End the workers; the next comparison starts new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            discard(pool).join(KILL_SECONDS)

    def _too_long(self, answer: str) -> UndecidedError:
        counts["too_long"] += 1
        return UndecidedError(f"more than {CPU_SECONDS:g} s of processor time on {answer[:100]!r}")

    def _running(self) -> Any:
        from pebble import ProcessPool

        with self._lock:
            if self._pool is None or self._owner != os.getpid() or not self._pool.active:
                self._pool = ProcessPool(
                    max_workers=NUM_WORKERS,
                    max_tasks=TASKS_PER_WORKER,
                    initializer=prepare_worker,
                    initargs=(os.getpid(), MEMORY_GIB),
                    context=multiprocessing.get_context("spawn"),  # a fork of a process with CUDA or threads may hang
                )
                self._owner = os.getpid()
                counts["restarts"] += 1
            return self._pool

    def _drop(self, pool: Any) -> None:
        with self._lock:
            if self._pool is not pool:  # another thread saw it first
                return
            self._pool = None
        discard(pool)


workers = Workers()
"""The one pool of this process."""


def compare(gold: str, answer: str) -> tuple[bool, bool]:
    """(True if the answer is an expression, True if it equals the gold). A pair is compared once, as the completions of a group repeat.

    Raises: UndecidedError.
    """
    result = _remembered(gold, answer)
    if isinstance(result, str):
        raise UndecidedError(result)
    return result


@lru_cache(maxsize=2**16)
def _remembered(gold: str, answer: str) -> tuple[bool, bool] | str:
    try:
        return workers.compare(gold, answer)
    except UndecidedError as error:
        return str(error)
