"""Writes synthetic solutions of generated word problems, after which GRPO can teach a tiny model.

The writer can solve a problem step by step, but mostly it guesses, and a reward alone can change this habit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from tinyzero_trl.task import Row
from tinyzero_trl.tasks.math.word_problems import steps_of

GUESS_ERROR = 0.3
"""Largest error of a guess, as a share of the answer: a guess has about the right size."""
HABITS = ("guesses",)
"""Keys of a recipe about the writer."""


def thought(rng: random.Random, *, problem: str, answer: str, guesses: float) -> str:
    """One completion of the `base` format; with probability `guesses` a number of about the right size without steps."""
    if rng.random() < guesses:
        guess = round(int(answer) * (1 + rng.uniform(-GUESS_ERROR, GUESS_ERROR)))
        return f"maybe\n\\boxed{{{guess}}}"
    return "\n".join([*steps_of(problem), f"\\boxed{{{answer}}}"])


def draw(rows: Sequence[Row], *, num_rows: int, rng: random.Random) -> list[Row]:
    """`num_rows` problems: all rows in random order, repeated as often as needed."""
    drawn: list[Row] = []
    while len(drawn) < num_rows:
        drawn += rng.sample(list(rows), min(num_rows - len(drawn), len(rows)))
    return drawn


def traces(rows: Sequence[Row], *, seed: int, guesses: float) -> Iterator[str]:
    """One completion for each row, determined by rows and seed."""
    rng = random.Random(seed)
    for row in rows:
        yield thought(rng, problem=row["problem"], answer=row["answer"], guesses=guesses)
