r"""Mathematics: problems with one final answer, compared with the gold by text and by sympy.

    >>> row = {"problem": "Evaluate $\\log_3\\frac{1}{\\sqrt3}$.", "answer": "-\\frac12", "source": HUB_SOURCE, "level": "3"}
    >>> print(FORMATS["boxed"](row)["prompt"][0]["content"])
    Evaluate $\log_3\frac{1}{\sqrt3}$.
    Please reason step by step, and put your final answer within \boxed{}.
    >>> verify(r"It is $3^x = 3^{-1/2}$, so $\boxed{x = -0.5}$.", answer=row["answer"]).outcome
    <Outcome.correct: 'correct'>
    >>> verify("The answer is 3.", answer=row["answer"]).outcome
    <Outcome.wrong_value: 'wrong_value'>

    response ─> final_answer.py ─> spelling.py ─> units.py ─> normal_form.py ─┐
                (the answer)       (characters,   (5 cm: 5)   (a Form)        ├─> readings.py, sets.py ─> verdict.py ─> same by text?
    gold ──────────────────────>    macros) ──────────────────────────────────┘   (decimal commas,       │ not decided
                                                                                   intervals)            └─> workers.py ─> equivalence.py
                                                                                                             (processes)   (sympy)

`data.py` reads, filters and mixes problems of any data set, `word_problems.py` makes problems, `formats.py` has the prompts and
`rewards.py` the rewards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinyzero_trl.rewards import boxed, coin, exact_format, reasoning_steps, repetition, tag_count
from tinyzero_trl.task import Outcome, Row, Task
from tinyzero_trl.tasks.math.data import MIXTURE, PROBLEMS, Filters, key_of, load_mixture, load_one
from tinyzero_trl.tasks.math.formats import FORMATS, format_math
from tinyzero_trl.tasks.math.rewards import accuracy, cosine, length
from tinyzero_trl.tasks.math.verdict import canonical, verify

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["PROBLEMS", "TASK", "accuracy", "canonical", "format_math", "key_of", "load", "verify"]

HUB_SOURCE = "DigitalLearningGmbH/MATH-lighteval"
"""The 7,500 training problems of MATH, with levels 1 to 5."""


def load(
    *,
    split: str,
    source: str = HUB_SOURCE,
    split_rule: str = "problem",
    num_rows: int | None = None,
    seed: int = 0,
    mixture: Any = None,
    problem_column: str | None = None,
    answer_column: str | None = None,
    level_column: str | None = None,
    pass_rate_column: str | None = None,
    config: str | None = None,
    min_level: int | None = None,
    max_level: int | None = None,
    min_pass_rate: float | None = None,
    max_pass_rate: float | None = None,
    max_problem_characters: int | None = None,
) -> Dataset:
    """Rows {"problem", "answer", "source", "level"} of a split: see `data.load_rows`.

    source: also `mixture`, with the list `mixture`, or `generated` for word problems (`word_problems`).
    *_column: name of the column in `source` (`a.b` is field b of column a); None is the name in `KNOWN`.
    config: configuration of a hub dataset. Limits are inclusive; a row without the number that is limited is left out.
    """
    columns = {
        "problem": problem_column,
        "answer": answer_column,
        "level": level_column,
        "pass_rate": pass_rate_column,
        "config": config,
    }
    given = {name: value for name, value in columns.items() if value is not None}
    filters = Filters(min_level, max_level, min_pass_rate, max_pass_rate, max_problem_characters)
    if (source == MIXTURE) != (mixture is not None):
        raise ValueError("source: mixture and the list mixture go together: set both or neither")
    if source == MIXTURE:
        if given or filters != Filters():
            raise ValueError("source: mixture: columns and limits belong to its entries")
        return load_mixture(mixture, load=load, split=split, split_rule=split_rule, num_rows=num_rows, seed=seed)
    return load_one(
        split=split, source=source, split_rule=split_rule, num_rows=num_rows, seed=seed, columns=given, filters=filters
    )


def difficulty(row: Row) -> str:
    """The level of the problem in its data set, or ""."""
    return f"level {row['level']}" if row.get("level") else ""


TASK = Task(
    name="math",
    load=load,
    formats=FORMATS,
    rewards={
        "accuracy": accuracy,
        "boxed": boxed,
        "coin": coin,
        "cosine": cosine,
        "format": exact_format,
        "length": length,
        "reasoning_steps": reasoning_steps,
        "repetition": repetition,
        "tag_count": tag_count,
    },
    solved="accuracy",
    verify=verify,
    columns=("answer",),
    difficulty=difficulty,
    outcomes=tuple(outcome for outcome in Outcome if outcome is not Outcome.wrong_numbers),
    solve=lambda row: str(row["answer"]),
    wording=lambda row: str(row["problem"]),
    canonical=canonical,
)
