"""Countdown: write an expression with every one of the given numbers, exactly once, that equals the target."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tinyzero_trl.answer import split_response
from tinyzero_trl.data import Problems, load_rows, split_of_key
from tinyzero_trl.expression import parse
from tinyzero_trl.rewards import exact_format, ladder
from tinyzero_trl.task import Outcome, Row, Task, Verdict, without_answer

if TYPE_CHECKING:
    from datasets import Dataset

HUB_SOURCE = "Jiayi-Pan/Countdown-Tasks-3to4"
"""490,364 rows: 3 or 4 numbers of 1..99, targets 10..100, each solvable with every number."""

TRANSCRIPT = (
    "A conversation between User and Assistant. The User asks a question and the Assistant solves it. "
    "The Assistant first thinks about the reasoning process and then gives the answer. "
    "The reasoning is enclosed in <think> </think> and the answer in <answer> </answer>.\n"
    "User: Using every one of the numbers {nums} exactly once, write an expression that equals {target}. "
    "Only +, -, *, / and parentheses are allowed. "
    "Give the expression in <answer> </answer>, for example <answer>(1 + 2) / 3</answer>.\n"
    "Assistant: Let me solve this step by step.\n<think>"
)
"""The shipped tiny model was trained on these very bytes."""

SYSTEM = (
    "You are a helpful assistant. You first think about the reasoning process in the mind and then provide the user "
    "with the answer."
)
QUESTION = (
    "Using every one of the numbers {nums} exactly once, write an expression that equals {target}. "
    "Only +, -, *, / and parentheses are allowed. "
    "First think step by step inside <think> </think> tags, then give the expression in <answer> </answer> tags, "
    "for example <answer>(1 + 2) / 3</answer>."
)
MAX_DRAWS = 200_000
"""Draws without a problem after which ranges are taken to hold none; the default ranges need some ten."""

OPENING = "Let me solve this step by step.\n<think>"
PREFILL = "<think>"


def format_base(row: Row) -> Row:
    """A plain transcript for base models, which ends inside an open thought."""
    return {"prompt": TRANSCRIPT.format(nums=list(row["nums"]), target=row["target"]), "prefill": PREFILL}


def format_instruct(row: Row) -> Row:
    """Chat messages; the model opens the thought itself."""
    question = QUESTION.format(nums=list(row["nums"]), target=row["target"])
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"prompt": messages, "prefill": ""}


def format_r1_prefix(row: Row) -> Row:
    """Chat messages that end with the assistant's own opening words, inside an open thought."""
    messages = [*format_instruct(row)["prompt"], {"role": "assistant", "content": OPENING}]
    return {"prompt": messages, "prefill": PREFILL}


def format_countdown(row: Row, tokenizer: Any) -> Row:
    """{"prompt", "target", "nums"} with the prompt as text: `r1_prefix` in the tokenizer's chat template, else `base`.

    A BOS that the tokenizer will put in front again when it reads the text is left out.
    """
    if tokenizer.chat_template is None:
        prompt = format_base(row)["prompt"]
    else:
        messages = format_r1_prefix(row)["prompt"]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
        bos = tokenizer.bos_token
        if bos and prompt.startswith(bos) and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id:
            prompt = prompt.removeprefix(bos)
    return {"prompt": prompt, "target": row["target"], "nums": row["nums"]}


def verify(response: str, *, nums: Sequence[int], target: int, is_truncated: bool = False) -> Verdict:
    """What became of `response`: `correct` exactly when its one answer uses every number once and equals the target.

    is_truncated: it ran into the token limit; it then counts as `truncated` unless it has its one answer.
    A minus in front of a number or a parenthesis solves nothing that `+ - * /` between the numbers cannot: see `Expression.needs_sign`.
    For a target that is not negative this holds by itself; for one below zero, what needs its sign is an `illegal_expression`.

    >>> verify("<think>40 + 5 ...</think><answer>40 + 5 - 3</answer>", nums=[3, 5, 40], target=42).outcome
    <Outcome.correct: 'correct'>
    """
    parts = split_response(response)
    if parts.answer is None:
        return without_answer(parts, is_truncated=is_truncated)
    expression = parse(parts.answer)
    if expression is None:
        return Verdict(Outcome.illegal_expression, None, parts.answer)
    if sorted(expression.numbers) != sorted(nums):
        return Verdict(Outcome.wrong_numbers, expression.value, parts.answer)
    if expression.needs_sign and expression.value == target < 0:
        return Verdict(Outcome.illegal_expression, None, parts.answer)
    outcome = Outcome.correct if expression.value == target else Outcome.wrong_value
    return Verdict(outcome, expression.value, parts.answer)


def equation(response: str, *, nums: Sequence[int], target: int) -> float:
    """1.0 where solved, else 0.0."""
    return float(verify(response, nums=nums, target=target).outcome is Outcome.correct)


def graded(response: str, *, nums: Sequence[int], target: int) -> float:
    """0, 0.1 or 1: see `rewards.ladder`."""
    return ladder(verify(response, nums=nums, target=target))


def difficulty(row: Row) -> str:
    """How many numbers there are."""
    return f"{len(row['nums'])} numbers"


def key_of(row: Row) -> str:
    """The problem, whatever the order of its numbers.

    >>> key_of({"nums": [36, 19, 55], "target": 74})
    '[19, 36, 55]|74'
    """
    return f"{sorted(row['nums'])}|{row['target']}"


def split_of(row: Row) -> str:
    """The split that `row` belongs to by the rule "problem", in any order of its numbers."""
    return split_of_key(key_of(row))


def fault_of(row: Row) -> str | None:
    """What keeps `row` from being a Countdown problem, or None. Whether it is solvable is not looked at."""
    nums, target = row["nums"], row["target"]
    if not isinstance(nums, list) or not 2 <= len(nums) <= 6:
        return "'nums' must be a list of 2 to 6 integers"
    # type() and not isinstance: True is an int, and a float or text would never equal a parsed number.
    if any(type(number) is not int or not 0 <= number < 10**9 for number in nums):
        return "'nums' must be integers from 0 to 999,999,999"
    if type(target) is not int or abs(target) >= 10**9:
        return "'target' must be an integer of at most nine digits"
    return None


PROBLEMS = Problems(columns=("nums", "target"), fault=fault_of, key=key_of)


def load(
    *,
    split: str,
    source: str = HUB_SOURCE,
    split_rule: str = "problem",
    num_rows: int | None = None,
    seed: int = 0,
    min_numbers: int = 3,
    max_numbers: int = 4,
    min_number: int = 1,
    max_number: int = 99,
    min_target: int = 10,
    max_target: int = 100,
) -> Dataset:
    """Rows {"nums", "target"} of a split: see `rows.load_rows`. The ranges shape source="generated" only."""
    if not 3 <= min_numbers <= max_numbers <= 6:
        raise ValueError(f"3 <= min_numbers <= max_numbers <= 6 must hold, got {min_numbers} and {max_numbers}")
    if not 1 <= min_number <= max_number < 10**4:
        raise ValueError(f"1 <= min_number <= max_number <= 9999 must hold, got {min_number} and {max_number}")
    if not 1 <= min_target <= max_target < 10**9:
        raise ValueError(f"1 <= min_target <= max_target must hold, got {min_target} and {max_target}")

    def candidates(draw: random.Random) -> Iterator[Row]:
        return generate(
            draw,
            num_numbers=(min_numbers, max_numbers),
            numbers=(min_number, max_number),
            targets=(min_target, max_target),
        )

    return load_rows(
        PROBLEMS,
        split=split,
        source=source,
        split_rule=split_rule,
        num_rows=num_rows,
        seed=seed,
        candidates=candidates,
    )


def generate(
    draw: random.Random, *, num_numbers: tuple[int, int], numbers: tuple[int, int], targets: tuple[int, int]
) -> Iterator[Row]:
    """Solvable problems without end, as many of each count of numbers; each range is inclusive.

    Numbers are drawn uniformly, then two at a time are combined by a random operator until one value is left. It is the
    target if it is in range and every value on the way was a positive integer, so a person could find it on paper.

    Raises: ValueError where `MAX_DRAWS` draws in a row give no target in range.
    """
    uniform = draw.random
    low, width = numbers[0], numbers[1] - numbers[0] + 1
    fewest, spread = num_numbers[0], num_numbers[1] - num_numbers[0] + 1
    num_draws = 0
    # The count is drawn once for each problem and not for each try, since few tries with many numbers succeed.
    count = fewest + int(uniform() * spread)
    while num_draws < MAX_DRAWS:
        num_draws += 1
        # int(random() * n) is several times faster than randrange(n), which this loop would spend its time in.
        nums = [low + int(uniform() * width) for _ in range(count)]
        values = nums.copy()
        while len(values) > 1:
            a = values.pop(int(uniform() * len(values)))
            at = int(uniform() * len(values))
            b = values[at]
            choice = uniform()
            if choice < 0.25:
                value = a + b
            elif choice < 0.5:
                value = a - b
            elif choice < 0.75:
                value = a * b
            else:
                value = 0 if a % b else a // b
            if value <= 0:
                break
            values[at] = value
        else:
            if targets[0] <= values[0] <= targets[1]:
                yield {"nums": nums, "target": values[0]}
                num_draws = 0
                count = fewest + int(uniform() * spread)
    raise ValueError(f"no target in {targets} was found for {num_numbers} numbers in {numbers} in {MAX_DRAWS} draws")


def solve(nums: Sequence[int], target: int) -> str | None:
    """An expression that uses every number once and equals `target`, or None where there is none; exact and exhaustive.

    Cost: three numbers well under a millisecond, four a few milliseconds at most, five and six up to minutes.
    """
    return _combine([(Fraction(number), str(number)) for number in nums], Fraction(target), set())


def _combine(values: list[tuple[Fraction, str]], target: Fraction, seen: set[tuple[Fraction, ...]]) -> str | None:
    if len(values) == 1:
        return values[0][1].removeprefix("(").removesuffix(")") if values[0][0] == target else None
    state = tuple(sorted(value for value, _ in values))
    if state in seen:
        return None
    seen.add(state)
    for i, (a, left) in enumerate(values):
        for j, (b, right) in enumerate(values):
            if i == j:
                continue
            rest = [value for k, value in enumerate(values) if k not in (i, j)]
            results = [(a - b, f"({left} - {right})")]
            if i < j:
                results += [(a + b, f"({left} + {right})"), (a * b, f"({left} * {right})")]
            if b:
                results.append((a / b, f"({left} / {right})"))
            for result in results:
                if found := _combine([*rest, result], target, seen):
                    return found
    return None


def num_attempts(response: str, **_: object) -> float:
    """Lines of the thought that evaluate something: those with an `=`.

    >>> num_attempts("<think>\\n1 + 2 = 3, no\\nhm\\n2 * 2 = 4, yes\\n</think>")
    2.0
    """
    return float(sum("=" in line for line in _thought(response).splitlines()))


def is_verified(response: str, *, target: int, **_: object) -> float:
    """1.0 where the thought holds the answered expression worked out to the target and not judged `no`, else 0.0.

    NaN without an answer. It says what the writing claims, not whether the arithmetic is true.
    """
    answer = split_response(response).answer
    if answer is None:
        return math.nan
    left = "".join(answer.split()) + "="
    for line in _thought(response).splitlines():
        written = "".join(line.split())
        at = written.find(left)
        if at >= 0 and re.search(rf"={target}(?!\d|[./*+-]\d)", written[at:]) and not written.lower().endswith(",no"):
            return 1.0
    return 0.0


def share_of_true_values(response: str, **_: object) -> float:
    """Share of the lines `expression = ... = value` of the thought whose value is what the expression is worth.

    NaN without such a line. Says whether the model calculates, as the others say how it searches.

    >>> share_of_true_values("<think>\\n1 + 2 = 3, no\\n2 * (3 + 1) = 2 * 4 = 9, no\\n</think>")
    0.5
    """
    is_true = []
    for line in _thought(response).splitlines():
        left, *_steps, right = line.split("=") if "=" in line else (line, "")
        expression, value = parse(left.strip()), re.match(r"\s*(-?[0-9]{1,30})(?![0-9]|[./*+-][0-9])", right)
        if expression is not None and value:
            is_true.append(expression.value == int(value[1]))
    return sum(is_true) / len(is_true) if is_true else math.nan


def _thought(response: str) -> str:
    """The text up to the first `</think>`, or all of a response that was cut off inside it."""
    return response.partition("</think>")[0]


TASK = Task(
    name="countdown",
    load=load,
    formats={"base": format_base, "instruct": format_instruct, "r1_prefix": format_r1_prefix},
    rewards={"equation": equation, "format": exact_format, "graded": graded},
    solved="equation",
    verify=verify,
    columns=("nums", "target"),
    difficulty=difficulty,
    solve=lambda row: solve(row["nums"], row["target"]),
    behaviours={
        "attempts/mean": num_attempts,
        "verified/share": is_verified,
        "true_values/share": share_of_true_values,
    },
)
