"""Makes arithmetic word problems of one or two steps with exact answers, as many as a tiny model needs.

A problem is a story with numbers. A hash of both picks the names and things, so that the same story with the same numbers is always
the same text, and two splits never share a problem under other names.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from tinyzero_trl.task import Row

SOURCE = "generated"
NAMES = ("Ann", "Ben", "Eva", "Leo", "Mia", "Tom", "Ida", "Max")
THINGS = ("apples", "books", "coins", "pens", "cards", "eggs", "nuts", "stamps")
MAX_VALUE = 200
"""Largest value of every step."""
MAX_MISSES = 10_000
"""Most draws in a row that break a story's rule; about one in three does."""


@dataclass(frozen=True)
class Story:
    """A text with two or three numbers, and the steps that solve it."""

    text: str
    """`{A}` and `{B}` are names, `{x}` is a thing, `{a}`, `{b}` and `{c}` are numbers."""
    steps: Callable[[int, int, int], tuple[tuple[int, str, int], ...]]
    """Numbers -> left, operator, right of each step."""
    numbers: tuple[tuple[int, int], ...]
    """Range of each number, inclusive."""


_MANY, _FEW = (3, 60), (2, 9)
STORIES = (
    Story("{A} has {a} {x}. {B} gives {A} {b} more. How many {x} does {A} have?", lambda a, b, _: ((a, "+", b),), (_MANY, _MANY)),
    Story("{A} has {a} {x} and loses {b} of them. How many {x} are left?", lambda a, b, _: ((a, "-", b),), (_MANY, _MANY)),
    Story("{A} buys {a} {x} at {b} dollars each. How many dollars does {A} pay?", lambda a, b, _: ((a, "*", b),), ((2, 20), _FEW)),
    Story("{A} has {a} boxes with {b} {x} each, and finds {c} more {x}. How many {x} are there?", lambda a, b, c: ((a, "*", b), (a * b, "+", c)), (_FEW, _FEW, _MANY)),
    Story("{A} has {a} boxes with {b} {x} each, and gives {c} {x} to {B}. How many {x} are left?", lambda a, b, c: ((a, "*", b), (a * b, "-", c)), (_FEW, _FEW, _MANY)),
    Story("{A} has {a} {x}. {B} has {b} more {x} than {A}. How many {x} do they have together?", lambda a, b, _: ((a, "+", b), (a, "+", a + b)), (_MANY, _MANY)),
    Story("{A} has {a} {x}. {B} has {b} times as many. How many more {x} does {B} have than {A}?", lambda a, b, _: ((a, "*", b), (a * b, "-", a)), ((2, 20), _FEW)),
    Story("{A} has {a} {x}, buys {b} and then sells {c}. How many {x} does {A} have now?", lambda a, b, c: ((a, "+", b), (a + b, "-", c)), (_MANY, _MANY, _MANY)),
    Story("{A} and {B} have {a} and {b} {x}. Each {x} costs {c} dollars. What are all of them worth?", lambda a, b, c: ((a, "+", b), (a + b, "*", c)), (_FEW, _FEW, _FEW)),
)  # fmt: skip
"""The level of a problem is its number of steps."""

_VALUE = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def generate(draw: random.Random) -> Iterator[Row]:
    """An endless stream of rows {"problem", "answer", "source", "level"}, with all stories equally often."""
    while True:
        story = draw.choice(STORIES)
        numbers = _numbers(story, draw)
        left, operator, right = story.steps(*numbers)[-1]
        yield {
            "problem": _worded(story, numbers),
            "answer": str(_VALUE[operator](left, right)),
            "source": SOURCE,
            "level": str(len(story.steps(*numbers))),
        }


def steps_of(problem: str) -> list[str]:
    """The lines `left operator right = value` that solve a problem of `generate`.

    Raises: ValueError for any other text.

    >>> steps_of("Ann has 4 boxes with 5 eggs each, and finds 3 more eggs. How many eggs are there?")
    ['4 * 5 = 20', '20 + 3 = 23']
    """
    for story, pattern in zip(STORIES, _PATTERNS, strict=True):
        if match := pattern.fullmatch(problem):
            numbers = [int(match[name]) if name in match.groupdict() else 0 for name in "abc"]
            return [f"{a} {operator} {b} = {_VALUE[operator](a, b)}" for a, operator, b in story.steps(*numbers)]
    raise ValueError(f"{problem!r} is no problem of source {SOURCE!r}")


def _numbers(story: Story, draw: random.Random) -> tuple[int, int, int]:
    """Numbers in the story's ranges with all steps from 1 to `MAX_VALUE`; 0 for a third number that the story does not have."""
    for _ in range(MAX_MISSES):
        drawn = [draw.randint(low, high) for low, high in story.numbers]
        numbers = (drawn[0], drawn[1], drawn[2] if len(drawn) == 3 else 0)
        if all(1 <= _VALUE[operator](a, b) <= MAX_VALUE for a, operator, b in story.steps(*numbers)):
            return numbers
    raise ValueError(f"no numbers from 1 to {MAX_VALUE} for {story.text!r}")


def _worded(story: Story, numbers: tuple[int, int, int]) -> str:
    digest = blake2b(f"{story.text}{numbers}".encode(), digest_size=3).digest()
    first = digest[0] % len(NAMES)
    second = (first + 1 + digest[1] % (len(NAMES) - 1)) % len(NAMES)
    words = {"A": NAMES[first], "B": NAMES[second], "x": THINGS[digest[2] % len(THINGS)]}
    return story.text.format(**words, **dict(zip("abc", numbers, strict=True)))


def _pattern(text: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w)\}", text)
    seen: set[str] = set()
    pattern = ""
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            pattern += re.escape(piece)
        elif piece in seen:
            pattern += f"(?P={piece})"
        else:
            seen.add(piece)
            pattern += f"(?P<{piece}>[0-9]{{1,4}})" if piece in "abc" else f"(?P<{piece}>[A-Za-z]+)"
    return re.compile(pattern)


_PATTERNS = [_pattern(story.text) for story in STORIES]
