"""Multiplication: the product of two integers.

>>> row = {"a": 123, "b": 45}
>>> print(format_base(row)["prompt"].splitlines()[1])
User: What is 123 * 45? Give the product, digits only, in <answer> </answer>, for example <answer>1234</answer>.
>>> verify("<think> 123 * 45 = 4920 + 615 = 5535 </think> <answer>5535</answer>", **row).outcome
<Outcome.correct: 'correct'>
>>> verify("<think> about that </think> <answer>5,535</answer>", **row).outcome
<Outcome.illegal_expression: 'illegal_expression'>
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from tinyzero_trl.answer import split_response
from tinyzero_trl.data import Problems, load_rows, split_of_key
from tinyzero_trl.rewards import exact_format, ladder
from tinyzero_trl.task import Outcome, Row, Task, Verdict, shortened, without_answer

if TYPE_CHECKING:
    from datasets import Dataset

TRANSCRIPT = (
    "A conversation between User and Assistant. The User asks a question and the Assistant solves it. "
    "The Assistant first thinks about the reasoning process and then gives the answer. "
    "The reasoning is enclosed in <think> </think> and the answer in <answer> </answer>.\n"
    "User: What is {a} * {b}? "
    "Give the product, digits only, in <answer> </answer>, for example <answer>1234</answer>.\n"
    "Assistant: Let me solve this step by step.\n<think>"
)
SYSTEM = (
    "You are a helpful assistant. You first think about the reasoning process in the mind and then provide the user "
    "with the answer."
)
QUESTION = (
    "What is {a} * {b}? First think step by step inside <think> </think> tags, then give the product, digits only, in "
    "<answer> </answer> tags, for example <answer>1234</answer>."
)
OPENING = "Let me solve this step by step.\n<think>"
PREFILL = "<think>"

MAX_DIGITS = 64
"""Most digits of an answer; a factor has at most nine."""

_INTEGER = re.compile(r"0|[1-9][0-9]*")


def format_base(row: Row) -> Row:
    """Plain text for base models that ends inside an open `<think>`."""
    return {"prompt": TRANSCRIPT.format(a=row["a"], b=row["b"]), "prefill": PREFILL}


def format_instruct(row: Row) -> Row:
    """Chat messages; the model writes `<think>` itself."""
    question = QUESTION.format(a=row["a"], b=row["b"])
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"prompt": messages, "prefill": ""}


def format_r1_prefix(row: Row) -> Row:
    """Chat messages whose last one is the start of the answer, inside an open `<think>`."""
    messages = [*format_instruct(row)["prompt"], {"role": "assistant", "content": OPENING}]
    return {"prompt": messages, "prefill": PREFILL}


def verify(response: str, *, a: int, b: int, is_truncated: bool = False) -> Verdict:
    """The verdict on `response`: `correct` exactly if its only answer is the integer a * b in plain ASCII digits.

    An answer with a sign, leading zeros, separators or an expression is an `illegal_expression`.
    is_truncated: the response reached the token limit; without an answer it is then `truncated`.

    >>> verify("<think>10 * 4 + 2 * 4</think><answer>48</answer>", a=12, b=4).outcome
    <Outcome.correct: 'correct'>
    """
    parts = split_response(response)
    if parts.answer is None:
        return without_answer(parts, is_truncated=is_truncated)
    if len(parts.answer) > MAX_DIGITS or not _INTEGER.fullmatch(parts.answer):
        why = f"{shortened(parts.answer)!r} is no whole number in plain digits"
        return Verdict(Outcome.illegal_expression, None, parts.answer, why)
    value = int(parts.answer)
    if value == a * b:
        return Verdict(Outcome.correct, Fraction(value), parts.answer)
    return Verdict(Outcome.wrong_value, Fraction(value), parts.answer, f"{shortened(str(value))} is not {a * b}")


def product(response: str, *, a: int, b: int, verdict: Verdict | None = None) -> float:
    """1.0 for a right answer, else 0.0."""
    return float((verdict or verify(response, a=a, b=b)).outcome is Outcome.correct)


def graded(response: str, *, a: int, b: int, verdict: Verdict | None = None) -> float:
    """0, 0.1 or 1: see `rewards.ladder`."""
    return ladder(verdict or verify(response, a=a, b=b))


def difficulty(row: Row) -> str:
    """The number of digits of both factors, the longer one first."""
    short, long = sorted((len(str(row["a"])), len(str(row["b"]))))
    return f"{long} by {short} digits"


def key_of(row: Row) -> str:
    """The problem as text, the same for both orders of its factors."""
    return "{}*{}".format(*sorted((row["a"], row["b"])))


def split_of(row: Row) -> str:
    """The split of `row` by the rule "problem", the same for both orders of its factors."""
    return split_of_key(key_of(row))


def why_not_a_problem(row: Row) -> str | None:
    """The reason why `row` is not a multiplication problem, or None."""
    for column in ("a", "b"):
        # type() and not isinstance: True is an int.
        if type(row[column]) is not int or not 0 <= row[column] < 10**9:
            return f"{column!r} must be an integer from 0 to 999,999,999"
    return None


PROBLEMS = Problems(columns=("a", "b"), fault=why_not_a_problem, key=key_of)


def load(
    *,
    split: str,
    source: str = "generated",
    split_rule: str = "problem",
    num_rows: int | None = None,
    seed: int = 0,
    min_factor: int = 100,
    max_factor: int = 999,
) -> Dataset:
    """Rows {"a", "b"} of a split: see `data.load_rows`. The range (three digits, as TinyZero's) is for source="generated" alone."""
    if split_rule != "problem":
        raise ValueError(f"multiplication has the split rule problem only, got {split_rule!r}")
    if not 0 <= min_factor <= max_factor < 10**9:
        raise ValueError(f"0 <= min_factor <= max_factor < 10**9 must hold, got {min_factor} and {max_factor}")

    def candidates(draw: random.Random) -> Iterator[Row]:
        while True:
            yield {"a": draw.randint(min_factor, max_factor), "b": draw.randint(min_factor, max_factor)}

    return load_rows(
        PROBLEMS,
        split=split,
        source=source,
        split_rule=split_rule,
        num_rows=num_rows,
        seed=seed,
        candidates=candidates,
    )


TASK = Task(
    name="multiplication",
    load=load,
    formats={"base": format_base, "instruct": format_instruct, "r1_prefix": format_r1_prefix},
    rewards={"product": product, "format": exact_format, "graded": graded},
    solved="product",
    verify=verify,
    columns=("a", "b"),
    difficulty=difficulty,
    solve=lambda row: str(row["a"] * row["b"]),
)
