"""Turns responses into numbers. A reward is a function of one response, and any text gives a number.

    completion + row ─> RewardCall (response, columns) ─> reward ─> Score (a number, or an error) ─> list of numbers for TRL
                                                        scoring.py, or pool.py in worker processes      batch.py

A GroupReward compares the responses to one prompt. `verdict` asks the task if a response is right, once. `shaping` has rewards that
any task may use. Import `tinyzero_trl.rewards.pool` only where it is needed, because it loads a library.
"""

from tinyzero_trl.rewards.batch import BatchReward, columns_of, exact_format, for_trl, ladder, text_of, why_not_a_reward
from tinyzero_trl.rewards.scoring import (
    FROM_TRAINER,
    FROM_TRL,
    GroupReward,
    RewardCall,
    Score,
    is_for_trl,
    score_response,
)
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
from tinyzero_trl.rewards.verdict import verdict_of, verified
from tinyzero_trl.rewards.worker_process import KILL_SECONDS, discard, prepare

__all__ = [
    "FROM_TRAINER",
    "FROM_TRL",
    "KILL_SECONDS",
    "Attempt",
    "BatchReward",
    "GroupReward",
    "RewardCall",
    "Score",
    "boxed",
    "coin",
    "columns_of",
    "cosine_scaled",
    "discard",
    "exact_format",
    "for_trl",
    "is_for_trl",
    "ladder",
    "prepare",
    "reasoning_steps",
    "relative_length",
    "repetition",
    "score_response",
    "tag_count",
    "text_of",
    "verdict_of",
    "verified",
    "why_not_a_reward",
]
