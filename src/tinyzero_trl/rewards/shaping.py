"""Shaping rewards, which pay for more than the right answer. Each is a pure function of any text in linear time, and says how it can mislead.

The penalty for responses near the token limit (DAPO's soft overlong punishment) is not here but the recipe key
`soft_overlong_tokens`: only the trainer has the limit and the tokens.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
NGRAM_WORDS = 3
MAX_WORDS = 200_000
"""Most words of a response that `repetition` counts."""
_STEP = re.compile(r"^[ \t]*(?:Step \d+[:.]|\d+[.)]\s|[-*]\s)|\b(?:First|Second|Next|Then|Finally),", re.MULTILINE)
STEPS_WANTED = 3


def tag_count(response: str) -> float:
    """0.25 for each of `<think>`, `</think>`, `<answer>`, `</answer>` that occurs exactly once: 0 to 1.

    Source: open-r1, rewards.py, tag_count_reward, which also wants line breaks around the tags; we do not.
    Misleads: the order is ignored, so four tags in a row with nothing between them earn 1. Use it beside `format`.
    """
    return sum(0.25 for tag in TAGS if response.count(tag) == 1)


def coin(response: str, *, problem: str) -> float:
    """1.0 for half of all responses and 0.0 for the others, by the hash of problem and response, not by correctness.

    Source: Spurious Rewards (arXiv 2506.10947), the random reward with probability 0.5. There each draw is independent; here equal
    responses to the same problem have the same reward. A hash of the response alone could be learned: a model finds texts that pay.
    It is the control of an experiment: a gain under it does not come from the reward (faults E-8). Use it instead of `accuracy`.
    """
    return float(hashlib.sha256(f"{problem}\0{response}".encode("utf-8", errors="replace")).digest()[0] % 2)


def boxed(response: str) -> float:
    r"""1.0 if the response has a `\boxed{...}` that is not blank, else 0.0.

    Source: ours; the format part of boxed-answer rewards such as SimpleRL-Zoo's first version (arXiv 2503.18892, sec. 2).
    Misleads: a boxed guess earns it at once, and if right answers are rare nothing else pays. SimpleRL-Zoo finds that such
    rewards reduce the exploration of base models. Keep its weight at 0.1 of accuracy's.
    """
    start = response.rfind(r"\boxed{")
    end = response.find("}", start)
    return float(start >= 0 and end >= 0 and bool(response[start + len(r"\boxed{") : end].strip()))


def reasoning_steps(response: str) -> float:
    """min(1, marks / 3). A mark is the start of a numbered or bulleted line, or a word such as `First,` or `Then,`.

    Source: open-r1, rewards.py, reasoning_steps_reward; our marks must be at the start of a line or before a comma.
    Misleads: three words `First,` earn it in full. It measures layout, not thought; leave it out once it is at 1.
    """
    found = 0
    for _ in _STEP.finditer(response):
        found += 1
        if found == STEPS_WANTED:
            return 1.0
    return found / STEPS_WANTED


def repetition(response: str, *, ngram_words: int = NGRAM_WORDS, max_penalty: float = 1.0) -> float:
    """-max_penalty * (1 - different n-grams / n-grams) of the words in lower case: -max_penalty to 0; 0 without an n-gram.

    Source: Demystifying Long CoT (arXiv 2502.03373), appendix on the repetition penalty, as open-r1 simplifies it to one
    number a response (the paper puts it on the repeated tokens).
    Misleads: long answers repeat more than short ones, and so do tables, checks and second attempts. A weight near accuracy's
    teaches a model to stop early.
    """
    words = response.lower().split(maxsplit=MAX_WORDS)[:MAX_WORDS]
    total = len(words) - ngram_words + 1
    if total < 1:
        return 0.0
    different = len({tuple(words[at : at + ngram_words]) for at in range(total)})
    return -max_penalty * (1 - different / total)


def cosine_scaled(
    *, is_correct: bool, num_tokens: int, max_tokens: int, correct: tuple[float, float], wrong: tuple[float, float]
) -> float:
    """end + (start - end) / 2 * (1 + cos(pi * min(num_tokens / max_tokens, 1))), from `start` at length 0 to `end` at max_tokens.

    correct, wrong: (start, end) for right and wrong responses. Beyond max_tokens it stays at `end`. Source: Demystifying Long CoT (arXiv
    2502.03373), eq. 1: a right answer earns more the shorter it is, a wrong one loses less the longer it is.
    """
    start, end = correct if is_correct else wrong
    share = min(num_tokens / max_tokens, 1.0) if max_tokens > 0 else 1.0
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * share))


class Attempt(NamedTuple):
    """Correctness and length of one response, which a length reward compares."""

    is_correct: bool
    num_tokens: int


def relative_length(attempts: Sequence[Attempt]) -> list[float]:
    """lambda = 0.5 - (tokens - shortest) / (longest - shortest) for right attempts of a group, min(0, lambda) for wrong ones.

    0 for all if the lengths are equal. Range -0.5 to 0.5. Source: Kimi k1.5 (arXiv 2501.12599), sec. 2.3.3.
    """
    if not attempts:
        return []
    lengths = [attempt.num_tokens for attempt in attempts]
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(attempts)
    rewards = []
    for attempt in attempts:
        value = 0.5 - (attempt.num_tokens - shortest) / (longest - shortest)
        rewards.append(value if attempt.is_correct else min(0.0, value))
    return rewards
