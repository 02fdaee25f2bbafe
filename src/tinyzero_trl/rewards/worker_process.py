"""Start and end of worker processes, for rewards and for tasks' verifiers. Imports neither tasks nor rewards, which import this."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pebble import ProcessPool

KILL_SECONDS = 5.0
"""Seconds that are enough for Pebble to end a worker and start another."""
PR_SET_PDEATHSIG = 1
"""Linux's prctl: the signal a process gets when its parent is gone."""


def prepare(parent: int, memory_gib: float | None) -> None:
    """Make this worker end with the trainer, end at once on SIGTERM, and keep to its memory limit."""
    # Pebble's own handler is Python code, which never runs while a call hangs inside C.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    if memory_gib is not None and os.name == "posix":
        import resource

        size = int(memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def discard(pool: ProcessPool) -> threading.Thread:
    """End the workers of `pool` in a thread: a pool whose worker was killed may wait for a lock for ever."""

    def end() -> None:
        with contextlib.suppress(Exception):
            pool.stop()
            pool.join()

    thread = threading.Thread(target=end, daemon=True, name="worker-pool-end")
    thread.start()
    return thread
