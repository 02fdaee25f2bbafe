"""The rewards of mathematics that ask the verifier: accuracy, and what scales it by length."""

from __future__ import annotations

from collections.abc import Sequence

from tinyzero_trl.rewards import Attempt, GroupReward, cosine_scaled, relative_length
from tinyzero_trl.task import Outcome
from tinyzero_trl.tasks.math.verdict import verify


def accuracy(response: str, *, answer: str, is_truncated: bool = False) -> float:
    """1.0 where solved, else 0.0; as evaluation does, also for a response that ran into the token limit.

    Goes wrong: a right number by a wrong way earns it, and multiple-choice and yes-no problems pay for guessing; leave
    them out of the data. What the verifier gets wrong is measured in docs/math-verifier.md.
    """
    return float(verify(response, answer=answer, is_truncated=is_truncated).outcome is Outcome.correct)


def cosine(
    response: str,
    *,
    answer: str,
    completion_ids: Sequence[int] | None = None,
    is_truncated: bool = False,
    max_tokens: int = 1000,
    correct_short: float = 1.0,
    correct_long: float = 0.5,
    wrong_short: float = -0.5,
    wrong_long: float = 0.0,
) -> float | None:
    """Right: from correct_short to correct_long as tokens go from 0 to max_tokens; wrong: from wrong_short to wrong_long.

    The formula is `shaping.cosine_scaled` (arXiv 2502.03373, eq. 1); max_tokens is the run's max_completion_length where
    the recipe does not set it. None where the tokens are not known (outside training).
    Goes wrong: with a weight of its own beside accuracy, being wrong at length is the way out of a penalty, and models
    pad; the paper adds `repetition` for that.
    """
    if completion_ids is None:
        return None
    return cosine_scaled(
        is_correct=verify(response, answer=answer, is_truncated=is_truncated).outcome is Outcome.correct,
        num_tokens=len(completion_ids),
        max_tokens=max_tokens,
        correct=(correct_short, correct_long),
        wrong=(wrong_short, wrong_long),
    )


def attempt(
    response: str, *, answer: str, completion_ids: Sequence[int] | None = None, is_truncated: bool = False
) -> Attempt | None:
    """What `length` compares; None where the tokens are not known (outside training)."""
    if completion_ids is None:
        return None
    verdict = verify(response, answer=answer, is_truncated=is_truncated)
    return Attempt(verdict.outcome is Outcome.correct, len(completion_ids))


length = GroupReward(measure=attempt, compare=relative_length)
"""Kimi k1.5's length reward over the completions of one prompt: see `shaping.relative_length`.

Goes wrong: from the first step on it pays for short answers, before there are right ones; Kimi k1.5 switches it on late.
In a group without a right answer all it teaches is brevity.
"""
