"""Writes synthetic countdown thoughts as search trees, on which `tiny-search` is pre-trained (`recipes/countdown/sft-tiny-search.yaml`).

A first line combines two of the numbers; a line below it, indented, does one step more with its parent's value and one unused number,
until all are used. Lines that share their first steps write them once, so an attempt costs a third of the tokens of a whole expression:

    48 + 17 = 65
      + 3 = 68
        from 90 = 22
      from 90 = 25
        - 3 = 22
        + 3 = 28

`from 90` subtracts the parent's value from 90, `into 90` divides 90 by it. The writer knows arithmetic but cannot search: every step is
a blind draw from the legal ones, and where it goes on after a wrong value is one too. Often it gives up after a few attempts, sometimes it
believes a wrong value, and sometimes it answers without checking. Reinforcement learning can change these habits.
The idea of search traces as pre-training is stream-of-search's (Gandhi et al., arXiv 2404.03683), whose traces show good searches.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tinyzero_trl.pretraining.countdown_traces import apply, draw
from tinyzero_trl.task import Row

__all__ = ["HABITS", "Habits", "draw", "thought", "traces"]

MAX_VALUE = 200
"""Largest value of a step. 967 of TinyZero's 1,024 test problems have a solution of such steps."""
REVERSED = {"from": "-", "into": "/"}
"""The operators that take the number first, as the sign of the expression."""
FIRST, NEXT = ("+", "-", "*", "/"), ("+", "-", "*", "/", *REVERSED)
"""Operators of a first line, and of a line below another."""
REDRAWS = 12
"""Draws of a step after which everything below a line counts as tried, where none of them was new."""


@dataclass(frozen=True)
class Habits:
    """The behaviour of the writer; all but the last two are probabilities."""

    skips_checking: float = 0.1
    """The thought answers its first expression without evaluating it."""
    repeats: float = 0.2
    """A step is drawn from all legal ones, also those tried before below the same parent."""
    abandons: float = 0.05
    """A line that is not the last step is left for another before anything is tried below it."""
    goes_up: float = 0.5
    """The next line stands one level higher, drawn behind a wrong value and again behind each step up."""
    believes_wrong: float = 0.1
    """A wrong value is answered as if it were the target."""
    doubts_right: float = 0.05
    """The target is passed by as if it were wrong."""
    gives_up: Sequence[float] = (0.4,) * 10 + (0.05,) * 10
    """Probability to answer a wrong value after an attempt; each thought draws one of these values."""
    max_attempts: int = 30
    """Most attempts of a thought."""
    checks_within: int = -1
    """A line that uses all numbers subtracts the target where its value is at most this far away, `- 3 = 22, from 25 = 3`, and the
    target shows as `= 0`; -1 never subtracts. To see what is near is easy for a model, and what is equal is hard."""


HABITS = tuple(field.name for field in fields(Habits))
"""Keys of a recipe about the writer."""


@dataclass(frozen=True)
class Step:
    """One line of the tree: `left operator right = value`, or `operator right = value` below a parent."""

    text: str
    """The line without its indentation."""
    expression: str
    """All steps from the first to this one, as the answer would write them."""
    value: int
    rest: tuple[int, ...]
    """The numbers that are left."""


def _value(left: int, operator: str, right: int) -> int | None:
    """The value of one step, or None if it is not an integer from 1 to MAX_VALUE."""
    if operator in REVERSED:
        left, right, operator = right, left, REVERSED[operator]
    return apply(left, operator, right, least=1, most=MAX_VALUE)


def _first(rng: random.Random, nums: tuple[int, ...]) -> Step:
    """A legal combination of two of the numbers, drawn blindly; the larger one stands first."""
    while True:
        at = int(rng.random() * len(nums))
        other = int(rng.random() * (len(nums) - 1))
        other += other >= at
        operator = FIRST[int(rng.random() * 4)]
        left, right = max(nums[at], nums[other]), min(nums[at], nums[other])
        value = _value(left, operator, right)
        if value is not None:
            rest = tuple(number for index, number in enumerate(nums) if index not in (at, other))
            text = f"{left} {operator} {right}"
            return Step(f"{text} = {value}", text, value, rest)


def _next(rng: random.Random, parent: Step) -> Step:
    """A legal step from the parent's value with one unused number, drawn blindly."""
    while True:
        at = int(rng.random() * len(parent.rest))
        operator, number = NEXT[int(rng.random() * 6)], parent.rest[at]
        value = _value(parent.value, operator, number)
        if value is not None:
            rest = parent.rest[:at] + parent.rest[at + 1 :]
            inner = f"({parent.expression})"
            sign = REVERSED.get(operator)
            expression = f"{number} {sign} {inner}" if sign else f"{inner} {operator} {number}"
            return Step(f"{operator} {number} = {value}", expression, value, rest)


def _drawn(rng: random.Random, path: list[Step], nums: tuple[int, ...], tried: set[str], repeats: float) -> Step:
    """The next step below `path`, cut to where something new is found; its expression is added to `tried`."""
    may_repeat = rng.random() < repeats
    while True:
        for _ in range(REDRAWS):
            step = _next(rng, path[-1]) if path else _first(rng, nums)
            if may_repeat or step.expression not in tried:
                tried.add(step.expression)
                return step
        if path:
            path.pop()
        else:
            tried.clear()  # nothing is left to try: all over again


def _check(value: int, target: int, within: int) -> str:
    """The difference between a value and the target where it is at most `within`, else nothing."""
    if abs(value - target) > within:
        return ""
    return f", from {target} = {target - value}" if value < target else f", - {target} = {value - target}"


def thought(rng: random.Random, *, nums: Sequence[int], target: int, habits: Habits) -> str:
    """One completion of the `base` format, right or wrong, for a problem of three or more numbers.

    The text starts after the `<think>` of the prompt and ends with `</answer>`.
    """
    given = tuple(nums)
    tried: set[str] = set()
    path: list[Step] = []
    lines: list[str] = []
    skips_checking = rng.random() < habits.skips_checking
    gives_up = rng.choice(habits.gives_up)
    num_attempts = 0
    while True:
        step = _drawn(rng, path, given, tried, habits.repeats)
        check = "" if step.rest else _check(step.value, target, habits.checks_within)
        lines.append(f"\n{'  ' * len(path)}{step.text}{check}")
        if step.rest:
            if skips_checking or rng.random() >= habits.abandons:
                path.append(step)
            continue
        num_attempts += 1
        says_yes = rng.random() < (1 - habits.doubts_right if step.value == target else habits.believes_wrong)
        if skips_checking or says_yes or num_attempts == habits.max_attempts or rng.random() < gives_up:
            break
        while path and rng.random() < habits.goes_up:
            path.pop()
    shown = "" if skips_checking else "".join(lines)
    return f"{shown}\n</think>\n<answer>{step.expression}</answer>"


def traces(rows: Sequence[Row], *, seed: int, **habits: Any) -> Iterator[str]:
    """One thought for each row, determined by rows and seed. `habits` are fields of `Habits`."""
    rng = random.Random(seed)
    chosen = Habits(**habits)
    for row in rows:
        yield thought(rng, nums=row["nums"], target=row["target"], habits=chosen)
