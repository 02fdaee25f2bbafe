"""Writes synthetic multiplication thoughts, the smaller part of the text on which the tiny base model is pre-trained.

The writer can multiply by splitting the second number into tens and ones, but mostly it guesses, and a reward alone can change this habit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from tinyzero_trl.task import Row

GUESS_ERROR = 0.2
"""Largest error of a guess, as a share of the product: a guess has about the right size."""
HABITS = ("guesses",)
"""Keys of a recipe about the writer."""


def thought(rng: random.Random, *, a: int, b: int, guesses: float) -> str:
    """One completion of the `base` format for `a * b`; with probability `guesses` its answer only has about the right size."""
    if rng.random() < guesses:
        product = round(a * b * (1 + rng.uniform(-GUESS_ERROR, GUESS_ERROR)))
        line = f"{a} * {b} = {product}, maybe"
    else:
        product = a * b
        tens, ones = b - b % 10, b % 10
        line = f"{a} * {b} = {a} * {tens} + {a} * {ones} = {a * tens} + {a * ones} = {product}"
    return f"\n{line}\n</think>\n<answer>{product}</answer>"


def draw(rows: Sequence[Row], *, num_rows: int, rng: random.Random) -> list[Row]:
    """`num_rows` problems with repetition (there are few), with their factors in random order."""
    drawn = [rng.choice(rows) for _ in range(num_rows)]
    return [{"a": row["b"], "b": row["a"]} if rng.random() < 0.5 else row for row in drawn]


def traces(rows: Sequence[Row], *, seed: int, guesses: float) -> Iterator[str]:
    """One thought for each row, determined by rows and seed."""
    rng = random.Random(seed)
    for row in rows:
        yield thought(rng, a=row["a"], b=row["b"], guesses=guesses)
