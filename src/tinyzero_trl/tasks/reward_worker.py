"""The function that worker processes of `rewards.pool` run. It imports only tasks and rewards, so that a worker starts in 0.2 s."""

from __future__ import annotations

from functools import cache
from typing import Any

from tinyzero_trl.rewards import RewardCall, Score, score_response
from tinyzero_trl.task import RewardFn, resolve
from tinyzero_trl.tasks import find_task


def score_here(task: str, name: str, response: str, columns: dict[str, Any]) -> tuple[Any, ...]:
    """The fields of a Score, as plain values, so that the trainer unpickles no object that a reward made."""
    try:
        return tuple(score_response(_reward(task, name), RewardCall(response, columns)))
    except SystemExit as error:
        return tuple(Score(None, "SystemExit", f"raised {error!r:.200} for {response[-200:]!r}"))


@cache
def _reward(task: str, name: str) -> RewardFn:
    reward: RewardFn = resolve(name, among=find_task(task).rewards, kind="reward")
    return reward
