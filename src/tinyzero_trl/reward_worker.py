"""What a worker process of `reward_pool` runs. It imports tasks and rewards only: no torch, and a start of a fifth of a second."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from functools import cache
from typing import Any

from tinyzero_trl.rewards import Earned, Job, earn
from tinyzero_trl.task import RewardFn, resolve
from tinyzero_trl.tasks import find_task

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


def score_here(task: str, name: str, response: str, columns: dict[str, Any]) -> tuple[Any, ...]:
    """What a worker does: a tuple of plain values, so that nothing a reward returns is unpickled by the trainer."""
    try:
        return tuple(earn(_reward(task, name), Job(response, columns)))
    except SystemExit as error:
        return tuple(Earned(None, "SystemExit", f"raised {error!r:.200} for {response[-200:]!r}"))


@cache
def _reward(task: str, name: str) -> RewardFn:
    reward: RewardFn = resolve(name, among=find_task(task).rewards, kind="reward")
    return reward
