"""Graders that share no code with the verifiers of our tasks; worker processes of `audit` run them.

Each grades the whole response, thought included, by the rule of another project.
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
"""Most characters of an expression; Python's parser fails on longer ones that nest too deep."""

_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def prepare_worker(parent: int, memory_gib: float) -> None:
    """Prepare a worker process: load math-verify before the first time limit starts, and drop the environment, which may hold secrets."""
    import math_verify  # noqa: F401

    os.environ.clear()
    prepare(parent, memory_gib)


def grade(task: str, response: str, columns: dict[str, Any], cpu_seconds: float) -> bool:
    """True if the second grader of `task` calls the response correct.

    The process is killed if that takes too much processor time.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        return bool(GRADERS[task](response, **columns))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def math(response: str, *, answer: str) -> bool:
    """True if math-verify calls the response correct, used as in its README and in lighteval: its own extraction, all defaults.

    Our verifier uses math-verify's comparison too, if equal text does not decide, so both share the errors of that comparison.
    """
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # math-verify reads a gold as a formula only between delimiters, which the golds of data sets lack.
    gold = parse(f"${answer}$", parsing_timeout=None)
    found = parse(response, parsing_timeout=None)
    return bool(verify(gold, found, timeout_seconds=None))


def countdown(response: str, *, nums: Sequence[int], target: int) -> bool:
    """True if the last answer block uses the given numbers in any order and has exactly the value `target`: TinyZero's rule.

    Source: Jiayi-Pan/TinyZero, verl/utils/reward_score/countdown.py, which calls `eval` and accepts a value within 1e-5. We use
    Python's parser and compare exactly.
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
    """True if the last answer block is the product in plain digits."""
    blocks = _BLOCK.findall(response)
    return bool(blocks) and blocks[-1].strip() == str(a * b)


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    """Value of an expression; its numbers are appended to `numbers`.

    Raises: ValueError for anything but integers, + - * / and a sign.
    """
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
