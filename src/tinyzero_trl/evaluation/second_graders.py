"""What a worker process of `audit` runs: graders that share no code with the verifiers of our tasks.

Each takes the whole response, thought and all, as the harness does whose rule it is.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import signal
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from tinyzero_trl.rewards import prepare

MAX_EXPRESSION = 1000
"""Characters that Python's parser is given; more nest deeper than it goes."""

_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def prepare_worker(parent: int, memory_gib: float) -> None:
    """Load what is slow to load before the first limit counts; a model's text never meets a secret."""
    import math_verify  # noqa: F401

    os.environ.clear()
    prepare(parent, memory_gib)


def grade(task: str, response: str, columns: dict[str, Any], cpu_seconds: float) -> bool:
    """Whether the second grader of `task` calls the response correct; the process dies where that takes too long."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        return bool(GRADERS[task](response, **columns))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def math(response: str, *, answer: str) -> bool:
    """math-verify as its README and lighteval use it: its own extraction from the whole text, everything at its default.

    Our verifier asks its comparison too, where text does not decide; what that gets wrong, both get wrong.
    """
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # A gold without delimiters is no formula to it; golds of the sets are bare.
    gold = parse(f"${answer}$", parsing_timeout=None)
    found = parse(response, parsing_timeout=None)
    return bool(verify(gold, found, timeout_seconds=None))


def countdown(response: str, *, nums: Sequence[int], target: int) -> bool:
    """TinyZero's rule: the last answer block, the given numbers in any order, and the value; here exactly, read by Python's parser.

    Source: Jiayi-Pan/TinyZero, verl/utils/reward_score/countdown.py (which calls `eval`, and takes a value within 1e-5).
    """
    blocks = _BLOCK.findall(response)
    if not blocks or len(blocks[-1]) > MAX_EXPRESSION:
        return False
    numbers: list[int] = []
    try:
        value = _value(ast.parse(blocks[-1].strip(), mode="eval").body, numbers)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return False
    return value == target and sorted(numbers) == sorted(nums)


def multiplication(response: str, *, a: int, b: int) -> bool:
    """The digits of the last answer block are those of the product."""
    blocks = _BLOCK.findall(response)
    return bool(blocks) and blocks[-1].strip() == str(a * b)


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    """Raises: ValueError for anything but whole numbers, + - * / and a sign."""
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            numbers.append(number)
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, numbers)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left, numbers) + _value(right, numbers)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _value(left, numbers) - _value(right, numbers)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left, numbers) * _value(right, numbers)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _value(left, numbers) / _value(right, numbers)
    raise ValueError("not arithmetic")


GRADERS: dict[str, Callable[..., bool]] = {"countdown": countdown, "math": math, "multiplication": multiplication}
