"""Writes synthetic countdown thoughts, on which the tiny base model is pre-trained (`recipes/countdown/sft-tiny.yaml`).

A thought is a list of attempts, each evaluated step by step and judged. The writer knows arithmetic but cannot search: it draws legal
expressions blindly, often gives up after a few, sometimes believes a wrong attempt, and sometimes answers without checking.
Reinforcement learning can change these four habits, so `Habits` has a probability for each.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import permutations
from typing import Any

from tinyzero_trl.task import Row

MAX_VALUE = 300
"""Largest intermediate value: a model of a million parameters learns to calculate with these numbers without errors."""


@dataclass(frozen=True)
class Habits:
    """The behaviour of the writer; all fields but the last are probabilities."""

    skips_checking: float = 0.25
    """The thought answers its first expression without evaluating it."""
    knows: float = 0.02
    """An attempt is a solution instead of a blind draw."""
    repeats: float = 0.20
    """An attempt is drawn from all expressions, also those tried before."""
    believes_wrong: float = 0.15
    """A wrong value is judged `yes` and answered."""
    doubts_right: float = 0.05
    """The right value is judged `no`."""
    gives_up: Sequence[float] = (0.8,) * 14 + (0.05,) * 6
    """Probability to stop after a wrong attempt; each thought draws one of these values."""
    max_attempts: int = 12
    """Most attempts of a thought."""


HABITS = tuple(field.name for field in fields(Habits))
"""Keys of a recipe about the writer."""


@dataclass(frozen=True)
class Attempt:
    """A legal expression over three numbers, its two steps and its value."""

    expression: str
    steps: str
    value: int

    def __str__(self) -> str:
        return f"{self.expression} = {self.steps} = {self.value}"


def apply(left: int, operator: str, right: int, *, least: int = 0, most: int = MAX_VALUE) -> int | None:
    """The value of one step, or None if it is not an integer from `least` to `most`."""
    if operator == "+":
        value = left + right
    elif operator == "-":
        value = left - right
    elif operator == "*":
        value = left * right
    elif right == 0 or left % right:
        return None
    else:
        value = left // right
    return value if least <= value <= most else None


@lru_cache(maxsize=65536)
def attempts(nums: tuple[int, ...]) -> tuple[Attempt, ...]:
    """All legal expressions over three numbers, without those that differ only in the order of a sum or product.

    They are `(a op b) op c` and `c op (a op b)` with intermediate values that are integers from 0 to MAX_VALUE.
    """
    found: dict[str, Attempt] = {}
    for a, b, c in set(permutations(nums)):
        for first in "+-*/":
            if first in "+*" and a < b:
                continue
            inner = apply(a, first, b)
            if inner is None:
                continue
            pair = f"({a} {first} {b})"
            for second in "+-*/":
                value = apply(inner, second, c)
                if value is not None:
                    text = f"{pair} {second} {c}"
                    found[text] = Attempt(text, f"{inner} {second} {c}", value)
                if second in "-/" and (value := apply(c, second, inner)) is not None:
                    text = f"{c} {second} {pair}"
                    found[text] = Attempt(text, f"{c} {second} {inner}", value)
    return tuple(found.values())


def thought(rng: random.Random, *, nums: Sequence[int], target: int, habits: Habits) -> str:
    """One completion of the `base` format, right or wrong, for a problem of three numbers.

    The text starts after the `<think>` of the prompt and ends with `</answer>`.
    """
    legal = attempts(tuple(sorted(nums)))
    solutions = [attempt for attempt in legal if attempt.value == target]
    if rng.random() < habits.skips_checking:
        guess = rng.choice(legal)
        return f"\n{guess.expression}, maybe\n</think>\n<answer>{guess.expression}</answer>"
    gives_up = rng.choice(habits.gives_up)
    untried = list(legal)
    rng.shuffle(untried)
    lines: list[str] = []
    while True:
        if solutions and rng.random() < habits.knows:
            attempt = rng.choice(solutions)
        elif rng.random() < habits.repeats or not untried:
            attempt = rng.choice(legal)
        else:
            attempt = untried.pop()
        is_right = attempt.value == target
        says_yes = rng.random() >= habits.doubts_right if is_right else rng.random() < habits.believes_wrong
        lines.append(f"{attempt}, {'yes' if says_yes else 'no'}")
        if says_yes or len(lines) == habits.max_attempts or rng.random() < gives_up:
            break
    return "\n" + "\n".join(lines) + f"\n</think>\n<answer>{attempt.expression}</answer>"


def draw(rows: Sequence[Row], *, num_rows: int, rng: random.Random) -> list[Row]:
    """`num_rows` different problems at random."""
    return rng.sample(rows, num_rows)


def traces(rows: Sequence[Row], *, seed: int, **habits: Any) -> Iterator[str]:
    """One thought for each row, determined by rows and seed. `habits` are fields of `Habits`."""
    rng = random.Random(seed)
    chosen = Habits(**habits)
    for row in rows:
        yield thought(rng, nums=row["nums"], target=row["target"], habits=chosen)
