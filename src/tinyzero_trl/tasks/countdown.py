"""Countdown: write an expression that uses each of the given numbers exactly once and equals the target.

>>> row = {"nums": [44, 19, 35], "target": 98}  # the first of HUB_SOURCE
>>> print(format_base(row)["prompt"].splitlines()[1])  # doctest: +ELLIPSIS
User: Using every one of the numbers [44, 19, 35] exactly once, write an expression that equals 98. Only +, -, *, / ...
>>> verify("<think> 44 + 19 = 63, 63 + 35 = 98, yes </think> <answer>44 + 19 + 35</answer>", **row).outcome
<Outcome.correct: 'correct'>
>>> verify("<think> twice 49 </think> <answer>2 * 49</answer>", **row).outcome
<Outcome.wrong_numbers: 'wrong_numbers'>
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tinyzero_trl.answer import split_response
from tinyzero_trl.data import Problems, load_rows, split_of_key
from tinyzero_trl.expression import parse
from tinyzero_trl.rewards import exact_format, ladder
from tinyzero_trl.task import Outcome, Row, Task, Verdict, shortened, without_answer

if TYPE_CHECKING:
    from datasets import Dataset

HUB_SOURCE = "Jiayi-Pan/Countdown-Tasks-3to4"
"""490,364 rows: 3 or 4 numbers from 1 to 99, targets from 10 to 100; each can be solved."""

TRANSCRIPT = (
    "A conversation between User and Assistant. The User asks a question and the Assistant solves it. "
    "The Assistant first thinks about the reasoning process and then gives the answer. "
    "The reasoning is enclosed in <think> </think> and the answer in <answer> </answer>.\n"
    "User: Using every one of the numbers {nums} exactly once, write an expression that equals {target}. "
    "Only +, -, *, / and parentheses are allowed. "
    "Give the expression in <answer> </answer>, for example <answer>(1 + 2) / 3</answer>.\n"
    "Assistant: Let me solve this step by step.\n<think>"
)
"""The shipped tiny model was trained on exactly these bytes."""

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
"""Draws in a row without a problem after which `generate` gives up; the default ranges need about ten."""

OPENING = "Let me solve this step by step.\n<think>"
PREFILL = "<think>"


def format_base(row: Row) -> Row:
    """Plain text for base models that ends inside an open `<think>`."""
    return {"prompt": TRANSCRIPT.format(nums=list(row["nums"]), target=row["target"]), "prefill": PREFILL}


def format_instruct(row: Row) -> Row:
    """Chat messages; the model writes `<think>` itself."""
    question = QUESTION.format(nums=list(row["nums"]), target=row["target"])
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"prompt": messages, "prefill": ""}


def format_r1_prefix(row: Row) -> Row:
    """Chat messages whose last one is the start of the answer, inside an open `<think>`."""
    messages = [*format_instruct(row)["prompt"], {"role": "assistant", "content": OPENING}]
    return {"prompt": messages, "prefill": PREFILL}


def format_countdown(row: Row, tokenizer: Any) -> Row:
    """{"prompt", "target", "nums"} with the prompt as text: `r1_prefix` in the tokenizer's chat template, or `base` if it has none.

    The prompt has no BOS if the tokenizer adds one when it reads the text.
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
    """The verdict on `response`: `correct` exactly if its only answer uses every number once and equals the target.

    is_truncated: the response reached the token limit; without an answer it is then `truncated`.
    A minus sign in front of a number or a parenthesis gains nothing over `+ - * /` between the numbers (see `Expression.needs_sign`):
    for a target below zero, an answer that needs its sign is an `illegal_expression`; for other targets there is no such answer.

    >>> verify("<think>40 + 5 ...</think><answer>40 + 5 - 3</answer>", nums=[3, 5, 40], target=42).outcome
    <Outcome.correct: 'correct'>
    """
    parts = split_response(response)
    if parts.answer is None:
        return without_answer(parts, is_truncated=is_truncated)
    expression = parse(parts.answer)
    if expression is None:
        or_zero = ", or divides by zero" if "/" in parts.answer else ""
        why = f"{shortened(parts.answer)!r} is no expression of + - * / and whole numbers{or_zero}"
        return Verdict(Outcome.illegal_expression, None, parts.answer, why)
    if sorted(expression.numbers) != sorted(nums):
        return Verdict(Outcome.wrong_numbers, expression.value, parts.answer, _misuse(expression.numbers, nums))
    if expression.needs_sign and expression.value == target < 0:
        return Verdict(
            Outcome.illegal_expression, None, parts.answer, "needs a minus in front of a number or parenthesis"
        )
    if expression.value == target:
        return Verdict(Outcome.correct, expression.value, parts.answer)
    why = f"{shortened(str(expression.value))} is not {target}"
    return Verdict(Outcome.wrong_value, expression.value, parts.answer, why)


def _misuse(used: Sequence[int], nums: Sequence[int]) -> str:
    """The first number that is used too often or not given, and the first that is left out.

    >>> _misuse([19, 19, 3], [19, 36, 3]), _misuse([5], [3])
    ('uses 19 twice, leaves out 36', 'uses 5, which is not given, leaves out 3')
    """
    counts, given = Counter(used), Counter(nums)
    extra, missing = list((counts - given).elements()), list((given - counts).elements())
    found = []
    if extra:
        number = extra[0]
        times = {1: "once", 2: "twice"}.get(counts[number], f"{counts[number]} times")
        found.append(
            f"uses {shortened(str(number))} {times}"
            if number in given
            else f"uses {shortened(str(number))}, which is not given"
        )
    if missing:
        found.append(f"leaves out {missing[0]}")
    return ", ".join(found)


def equation(response: str, *, nums: Sequence[int], target: int, verdict: Verdict | None = None) -> float:
    """1.0 for a right answer, else 0.0."""
    return float((verdict or verify(response, nums=nums, target=target)).outcome is Outcome.correct)


def graded(response: str, *, nums: Sequence[int], target: int, verdict: Verdict | None = None) -> float:
    """0, 0.1 or 1: see `rewards.ladder`."""
    return ladder(verdict or verify(response, nums=nums, target=target))


def exploration(
    response: str, *, nums: Sequence[int], target: int, verdict: Verdict | None = None, attempts: int = 60
) -> float:
    """1.0 for a right answer, otherwise how many of `attempts` different expressions the thought calculated; at most 1.

    attempts: number of expressions that is worth as much as a right answer. An expression counts if it uses each number once and its
    value is right, the first time. So a response gains by searching on, also where no sample of its group finds a solution.
    """
    if equation(response, nums=nums, target=target, verdict=verdict):
        return 1.0
    given, tried = sorted(nums), set()
    for line in evaluations(_thought(response)):
        expression = parse(line.expression)
        if expression is not None and sorted(expression.numbers) == given and line.claims(expression.value):
            tried.add(line.expression)
    return min(len(tried) / attempts, 1.0)


def difficulty(row: Row) -> str:
    """The number of numbers."""
    return f"{len(row['nums'])} numbers"


def key_of(row: Row) -> str:
    """The problem as text, the same for any order of its numbers.

    >>> key_of({"nums": [36, 19, 55], "target": 74})
    '[19, 36, 55]|74'
    """
    return f"{sorted(row['nums'])}|{row['target']}"


def split_of(row: Row) -> str:
    """The split of `row` by the rule "problem", the same for any order of its numbers."""
    return split_of_key(key_of(row))


def why_not_a_problem(row: Row) -> str | None:
    """The reason why `row` is not a Countdown problem, or None. It does not check that there is a solution."""
    nums, target = row["nums"], row["target"]
    if not isinstance(nums, list) or not 2 <= len(nums) <= 6:
        return "'nums' must be a list of 2 to 6 integers"
    # type() and not isinstance: True is an int, and a float or text would never equal a parsed number.
    if any(type(number) is not int or not 0 <= number < 10**9 for number in nums):
        return "'nums' must be integers from 0 to 999,999,999"
    if type(target) is not int or abs(target) >= 10**9:
        return "'target' must be an integer of at most nine digits"
    return None


PROBLEMS = Problems(columns=("nums", "target"), fault=why_not_a_problem, key=key_of)


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
    """Rows {"nums", "target"} of a split: see `data.load_rows`. The ranges are for source="generated" alone."""
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
    """An endless stream of solvable problems, with each count of numbers equally often; the ranges are inclusive.

    Numbers are drawn uniformly, then a random operator combines two at a time until one value is left. This value is the
    target if it is in range and all values before it were positive integers, so that a person could find it on paper.

    Raises: ValueError if `MAX_DRAWS` draws in a row give no target in range.
    """
    uniform = draw.random
    low, width = numbers[0], numbers[1] - numbers[0] + 1
    fewest, spread = num_numbers[0], num_numbers[1] - num_numbers[0] + 1
    num_draws = 0
    # The count is drawn for each problem and not for each try, because tries with many numbers rarely succeed.
    count = fewest + int(uniform() * spread)
    while num_draws < MAX_DRAWS:
        num_draws += 1
        # int(random() * n) is several times faster than randrange(n), which would take most of this loop's time.
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
    """An expression that uses every number once and equals `target`, or None if there is none; exact and exhaustive.

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


@dataclass(frozen=True)
class Evaluation:
    """One line of a thought that says what an expression is worth."""

    expression: str
    """All of it without spaces, with the steps of the lines that this one goes on from."""
    step: str
    """The line's own calculation: the expression, or the value it goes on from with one operator and number."""
    claimed: str
    """The text behind the last equals sign."""
    written: str
    """The expression and all that the line says behind it, without spaces."""
    is_continued: bool
    """A line below goes on from its value: it is a step of attempts, not an attempt of its own."""

    def claims(self, value: Fraction) -> bool | None:
        """True if the line says that it is worth `value`; None where it says no whole number."""
        claimed = re.match(r"\s*(-?[0-9]{1,30})(?![0-9]|[./*+-][0-9])", self.claimed)
        return None if claimed is None else value == int(claimed[1])


_CONTINUATION = re.compile(
    r"(?P<indent> +)(?P<operator>[-+*/]|from|into) (?P<number>[0-9]{1,9}) = (?P<value>[0-9]{1,30})\b"
)


def evaluations(thought: str) -> list[Evaluation]:
    """The lines of a thought that evaluate an expression.

    A line is a whole expression and its value, `(1 + 2) * 3 = 3 * 3 = 9`, or one step from the value of the nearest line above that is
    less indented, `  * 3 = 9` below `1 + 2 = 3`. `from 9` subtracts that value from 9, `into 9` divides 9 by it.
    """
    found: list[Evaluation] = []
    path: list[tuple[int, int]] = []  # indentation and index in `found` of the lines that the next one may go on from
    for line in thought.splitlines():
        if "=" not in line:
            continue
        match = _CONTINUATION.match(line)
        indent = len(line) - len(line.lstrip())
        while path and path[-1][0] >= indent:
            path.pop()
        if match and path:
            above = found[path[-1][1]]
            found[path[-1][1]] = replace(above, is_continued=True)
            operator, number, value = match["operator"], match["number"], match["value"]
            sign = {"from": "-", "into": "/"}.get(operator)
            inner, before = f"({above.expression})", above.claimed.strip()
            expression = f"{number}{sign}{inner}" if sign else f"{inner}{operator}{number}"
            step = f"{number} {sign} {before}" if sign else f"{before} {operator} {number}"
            found.append(Evaluation(expression, step, value, f"{expression}={value}", is_continued=False))
        else:
            left, claimed = line.partition("=")[0].strip(), line.rpartition("=")[2]
            found.append(Evaluation("".join(left.split()), left, claimed, "".join(line.split()), is_continued=False))
        path.append((indent, len(found) - 1))
    return found


def num_attempts(response: str, **_: object) -> float:
    """Number of expressions that the thought evaluates and does not go on from.

    >>> num_attempts("<think>\\n1 + 2 = 3, no\\nhm\\n2 * 2 = 4, yes\\n</think>")
    2.0
    >>> num_attempts("<think>\\n1 + 2 = 3\\n  * 3 = 9\\n  - 3 = 0\\n</think>")
    2.0
    """
    return float(sum(not line.is_continued for line in evaluations(_thought(response))))


def share_of_repeats(response: str, **_: object) -> float:
    """Share of the attempts that an earlier one made in the same words; NaN without an attempt.

    >>> share_of_repeats("<think>\\n1 + 2 = 3, no\\n2 * 2 = 4, no\\n1 + 2 = 3, no\\n1+2 = 3, no\\n</think>")
    0.5
    """
    tried = [line.expression for line in evaluations(_thought(response)) if not line.is_continued]
    return 1 - len(set(tried)) / len(tried) if tried else math.nan


def is_verified(response: str, *, target: int, **_: object) -> float:
    """1.0 if the thought evaluates the answered expression to the target and does not call it `no`, else 0.0.

    NaN without an answer. It measures what the text claims; the arithmetic may be wrong.
    """
    answer = split_response(response).answer
    if answer is None:
        return math.nan
    left = "".join(answer.split()) + "="
    for line in evaluations(_thought(response)):
        at = line.written.find(left)
        if (
            at >= 0
            and re.search(rf"={target}(?!\d|[./*+-]\d)", line.written[at:])
            and not line.written.lower().endswith(",no")
        ):
            return 1.0
    return 0.0


def share_of_true_values(response: str, **_: object) -> float:
    """Share of the lines `expression = ... = value` of the thought with the right value; NaN without such a line.

    It measures if the model calculates; the other two measure if it searches. A line that goes on from another is right if its own step is.

    >>> share_of_true_values("<think>\\n1 + 2 = 3, no\\n2 * (3 + 1) = 2 * 4 = 9, no\\n</think>")
    0.5
    >>> share_of_true_values("<think>\\n1 + 2 = 4\\n  * 3 = 12\\n</think>")
    0.5
    """
    lines = [(line, parse(line.step)) for line in evaluations(_thought(response))]
    claims = [line.claims(expression.value) for line, expression in lines if expression is not None]
    is_true = [claim for claim in claims if claim is not None]
    return sum(is_true) / len(is_true) if is_true else math.nan


def _thought(response: str) -> str:
    """The text up to the first `</think>`; all of a response without one."""
    return response.partition("</think>")[0]


TASK = Task(
    name="countdown",
    load=load,
    formats={"base": format_base, "instruct": format_instruct, "r1_prefix": format_r1_prefix},
    rewards={"equation": equation, "exploration": exploration, "format": exact_format, "graded": graded},
    solved="equation",
    verify=verify,
    columns=("nums", "target"),
    difficulty=difficulty,
    solve=lambda row: solve(row["nums"], row["target"]),
    behaviours={
        "attempts/mean": num_attempts,
        "repeated/share": share_of_repeats,
        "verified/share": is_verified,
        "true_values/share": share_of_true_values,
    },
)
