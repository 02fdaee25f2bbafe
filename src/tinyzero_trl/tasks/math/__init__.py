"""Mathematics: problems with one answer, judged by `verdict.verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinyzero_trl.rewards import boxed, coin, exact_format, reasoning_steps, repetition, tag_count
from tinyzero_trl.task import Outcome, Row, Task
from tinyzero_trl.tasks.math.data import PROBLEMS, Filters, key_of, load_one
from tinyzero_trl.tasks.math.formats import FORMATS, format_math
from tinyzero_trl.tasks.math.mixture import MIXTURE, load_mixture
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
    """Rows {"problem", "answer", "source", "level"} of a split: see `rows.load_rows`.

    source: also `mixture`, with the list `mixture`; `generated` makes word problems (`word_problems`).
    *_column: where `source` keeps what a row needs (`a.b` is field b of column a); None: as `data.KNOWN` has it.
    config: of a hub dataset. The limits are inclusive; a row without the number that a limit is about is left out.
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
    """The level that the data set gives the problem, or nothing."""
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
