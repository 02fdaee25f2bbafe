"""What holds in every worker process, and how a pool of them is ended. No task, no reward: those import this."""

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
"""More than Pebble takes to end a worker and start another."""
PR_SET_PDEATHSIG = 1
"""Linux's prctl: the signal a process gets when its parent is gone."""


def prepare(parent: int, memory_gib: float | None) -> None:
    """Make a worker end with the trainer, at once when told to, and within its memory."""
    # Pebble's own handler runs Python code, which a call that hangs inside C never comes to.
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
    """End the workers of `pool`; in a thread, because a pool whose worker was killed may wait for a lock for ever."""

    def end() -> None:
        with contextlib.suppress(Exception):
            pool.stop()
            pool.join()

    thread = threading.Thread(target=end, daemon=True, name="worker-pool-end")
    thread.start()
    return thread
