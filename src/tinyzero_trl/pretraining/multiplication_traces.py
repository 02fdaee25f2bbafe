"""Synthetic multiplication thoughts: the smaller part of what the tiny base model is pre-trained on.

The writer can multiply by splitting the second number into tens and ones, but mostly it guesses: the habit that reward alone can change.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from tinyzero_trl.task import Row

# A guess is wrong by up to this share of the product: it has the right size and nothing else.
GUESS_ERROR = 0.2
HABITS = ("guesses",)
"""What a recipe may say about the writer."""


def thought(rng: random.Random, *, a: int, b: int, guesses: float) -> str:
    """One completion of the `base` format for `a * b`; with probability `guesses` it answers a number of about the right size."""
    if rng.random() < guesses:
        product = round(a * b * (1 + rng.uniform(-GUESS_ERROR, GUESS_ERROR)))
        line = f"{a} * {b} = {product}, maybe"
    else:
        product = a * b
        tens, ones = b - b % 10, b % 10
        line = f"{a} * {b} = {a} * {tens} + {a} * {ones} = {a * tens} + {a * ones} = {product}"
    return f"\n{line}\n</think>\n<answer>{product}</answer>"


def draw(rows: Sequence[Row], *, num_rows: int, rng: random.Random) -> list[Row]:
    """That many problems, with repetition (there are few), their factors in either order."""
    drawn = [rng.choice(rows) for _ in range(num_rows)]
    return [{"a": row["b"], "b": row["a"]} if rng.random() < 0.5 else row for row in drawn]


def traces(rows: Sequence[Row], *, seed: int, guesses: float) -> Iterator[str]:
    """One thought a row; deterministic in (rows, seed)."""
    rng = random.Random(seed)
    for row in rows:
        yield thought(rng, a=row["a"], b=row["b"], guesses=guesses)
