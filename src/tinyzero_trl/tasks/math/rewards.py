"""Rewards of mathematics from the verdict: accuracy, and accuracy scaled by length."""

from __future__ import annotations

from collections.abc import Sequence

from tinyzero_trl.rewards import Attempt, GroupReward, cosine_scaled, relative_length
from tinyzero_trl.task import Outcome, Verdict
from tinyzero_trl.tasks.math.verdict import verify


def accuracy(response: str, *, answer: str, is_truncated: bool = False, verdict: Verdict | None = None) -> float:
    """1.0 for a right answer, else 0.0; as in evaluation, also for a response that reached the token limit.

    Misleads: a right number with wrong reasoning earns it, and multiple-choice and yes-no problems reward guesses; leave them
    out of the data. The errors of the verifier are measured in docs/math-verifier.md.
    """
    verdict = verdict or verify(response, answer=answer, is_truncated=is_truncated)
    return float(verdict.outcome is Outcome.correct)


def cosine(
    response: str,
    *,
    answer: str,
    completion_ids: Sequence[int] | None = None,
    is_truncated: bool = False,
    verdict: Verdict | None = None,
    max_tokens: int = 1000,
    correct_short: float = 1.0,
    correct_long: float = 0.5,
    wrong_short: float = -0.5,
    wrong_long: float = 0.0,
) -> float | None:
    """Reward by length, from 0 to max_tokens tokens: from correct_short to correct_long if right, from wrong_short to wrong_long if wrong.

    The formula is `shaping.cosine_scaled` (arXiv 2502.03373, eq. 1). max_tokens is the run's max_completion_length unless the recipe
    sets it. None outside training, where the tokens are not known.
    Misleads: beside accuracy, a long wrong response has the smaller penalty, and models pad; the paper adds `repetition` against it.
    """
    if completion_ids is None:
        return None
    verdict = verdict or verify(response, answer=answer, is_truncated=is_truncated)
    return cosine_scaled(
        is_correct=verdict.outcome is Outcome.correct,
        num_tokens=len(completion_ids),
        max_tokens=max_tokens,
        correct=(correct_short, correct_long),
        wrong=(wrong_short, wrong_long),
    )


def attempt(
    response: str,
    *,
    answer: str,
    completion_ids: Sequence[int] | None = None,
    is_truncated: bool = False,
    verdict: Verdict | None = None,
) -> Attempt | None:
    """Correctness and length, which `length` compares; None outside training, where the tokens are not known."""
    if completion_ids is None:
        return None
    verdict = verdict or verify(response, answer=answer, is_truncated=is_truncated)
    return Attempt(verdict.outcome is Outcome.correct, len(completion_ids))


length = GroupReward(measure=attempt, compare=relative_length)
"""Kimi k1.5's length reward over the completions of one prompt: see `shaping.relative_length`.

Misleads: from the first step it rewards short answers, before there are right ones; Kimi k1.5 switches it on late. In a group
without a right answer it teaches nothing but brevity.
"""
