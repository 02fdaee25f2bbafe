"""Responses to numbers: one reward is a function of one response, and any text gives a number.

    response + row -> verdict (`verdict`, once) -> rewards (`scoring`: one response or one group) -> `batch`: TRL's signature

`shaping` holds rewards that any task may use. `pool` and `worker_process` run slow rewards in processes that may be killed;
import `tinyzero_trl.rewards.pool` where it is needed, because it loads a library.
"""

from tinyzero_trl.rewards.batch import BatchReward, columns_of, exact_format, for_trl, ladder, reward_fault, text_of
from tinyzero_trl.rewards.scoring import FROM_TRAINER, FROM_TRL, Earned, Job, OverGroup, earn, is_for_trl
from tinyzero_trl.rewards.shaping import (
    Attempt,
    boxed,
    coin,
    cosine_scaled,
    reasoning_steps,
    relative_length,
    repetition,
    tag_count,
)
from tinyzero_trl.rewards.verdict import verdict_of
from tinyzero_trl.rewards.worker_process import KILL_SECONDS, discard, prepare

__all__ = [
    "FROM_TRAINER",
    "FROM_TRL",
    "KILL_SECONDS",
    "Attempt",
    "BatchReward",
    "Earned",
    "Job",
    "OverGroup",
    "boxed",
    "coin",
    "columns_of",
    "cosine_scaled",
    "discard",
    "earn",
    "exact_format",
    "for_trl",
    "is_for_trl",
    "ladder",
    "prepare",
    "reasoning_steps",
    "relative_length",
    "repetition",
    "reward_fault",
    "tag_count",
    "text_of",
    "verdict_of",
]
