"""Synthetic working for generated word problems: what makes a tiny model one that GRPO can teach.

The writer can work a problem out step by step, but mostly it guesses: the habit that reward alone can change.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from tinyzero_trl.task import Row
from tinyzero_trl.tasks.math.word_problems import steps_of

# A guess is wrong by up to this share of the answer: it has the right size and nothing else.
GUESS_ERROR = 0.3
HABITS = ("guesses",)
"""What a recipe may say about the writer."""


def thought(rng: random.Random, *, problem: str, answer: str, guesses: float) -> str:
    """One completion of the `base` format; with probability `guesses` a number of about the right size, without working."""
    if rng.random() < guesses:
        guess = round(int(answer) * (1 + rng.uniform(-GUESS_ERROR, GUESS_ERROR)))
        return f"maybe\n\\boxed{{{guess}}}"
    return "\n".join([*steps_of(problem), f"\\boxed{{{answer}}}"])


def draw(rows: Sequence[Row], *, num_rows: int, rng: random.Random) -> list[Row]:
    """That many problems: all of them in random order, again and again."""
    drawn: list[Row] = []
    while len(drawn) < num_rows:
        drawn += rng.sample(list(rows), min(num_rows - len(drawn), len(rows)))
    return drawn


def traces(rows: Sequence[Row], *, seed: int, guesses: float) -> Iterator[str]:
    """One completion a row; deterministic in (rows, seed)."""
    rng = random.Random(seed)
    for row in rows:
        yield thought(rng, problem=row["problem"], answer=row["answer"], guesses=guesses)
