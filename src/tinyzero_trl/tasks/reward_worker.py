"""What a worker process of `rewards.pool` runs. It imports tasks and rewards only: no torch, and a start of a fifth of a second."""

from __future__ import annotations

from functools import cache
from typing import Any

from tinyzero_trl.rewards import Earned, Job, earn
from tinyzero_trl.task import RewardFn, resolve
from tinyzero_trl.tasks import find_task


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
