"""Mathematics problems out of data sets with columns of any name: read, mapped, filtered."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyzero_trl.data import CARD, Problems, load_rows, read_source
from tinyzero_trl.task import Row
from tinyzero_trl.tasks.math.golds import bare, level_of
from tinyzero_trl.tasks.math.verdict import gold_fault
from tinyzero_trl.tasks.math.word_problems import generate

if TYPE_CHECKING:
    from datasets import Dataset

_fault_of_gold = lru_cache(maxsize=2**16)(gold_fault)  # DAPO has each of its problems a hundred times

_IRRELEVANT = re.compile(r"\\left|\\right|\\displaystyle|\\[!,;:()\[\] ]|[\s$~]|(?<=\\)[dt](?=frac)")


@dataclass(frozen=True)
class Columns:
    """Where a data set keeps what a row needs; `a.b` is the column of that name, or else the field b of column a."""

    problem: str = "problem"
    answer: str = "answer"
    """A bare gold, a GSM8K solution that ends in `####`, or a solution with the gold in a \\boxed."""
    level: str | None = None
    """Column of the difficulty: a number, or text that ends in one (`Level 5`)."""
    pass_rate: str | None = None
    """Column of the share of some model's answers that were right."""
    config: str | None = None
    """Configuration of the hub dataset."""

    def __post_init__(self) -> None:
        """Raises: ValueError where a name is no text, as `problem_column=3` is not."""
        for name, value in vars(self).items():
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{name if name == 'config' else f'{name}_column'} must be a name, got {value!r}")


_DAPO_BEFORE, _DAPO_AFTER = "Answer: $Answer (without quotes) where $Answer is the answer to the problem.", "Remember to put your answer on its own line"  # fmt: skip

KNOWN: dict[str, Columns] = {
    "DigitalLearningGmbH/MATH-lighteval": Columns(answer="solution", level="level"),
    "openai/gsm8k": Columns(problem="question", config="main"),
    "agentica-org/DeepScaleR-Preview-Dataset": Columns(),
    "BytedTsinghua-SIA/DAPO-Math-17k": Columns(problem="prompt", answer="reward_model.ground_truth"),
    "open-r1/DAPO-Math-17k-Processed": Columns(problem="prompt", answer="solution", config="all"),
    **{
        f"hkust-nlp/SimpleRL-Zoo-Data/simplelr_{kind}": Columns("extra_info.question", "extra_info.answer")
        for kind in (
            "qwen_gsm8k_level1",
            "qwen_level1to4",
            "qwen_level3to5",
            "abel_gsm8k_level1",
            "abel_level1to4",
            "abel_level3to5",
        )
    },
}
"""Data sets of the hub whose columns are known; the third part of a name is a folder of the data set."""


@dataclass(frozen=True)
class Filters:
    """Which problems of a source are kept; None keeps all."""

    min_level: int | None = None
    max_level: int | None = None
    min_pass_rate: float | None = None
    max_pass_rate: float | None = None
    max_problem_characters: int | None = None

    def __post_init__(self) -> None:
        """Raises: ValueError for a limit that is no number, and for limits that leave nothing between them."""
        for name, value in vars(self).items():
            if value is not None and type(value) not in (int, float):
                raise ValueError(f"{name} must be a number, got {value!r}")
        for low, high in (("min_level", "max_level"), ("min_pass_rate", "max_pass_rate")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(f"{low} {least} is above {high} {most}")


def key_of(row: Row) -> str:
    r"""The problem, whatever its blanks, dollars, case, and spelling of LaTeX that looks the same.

    >>> key_of({"problem": r"Find $\dfrac{1}{2} + x$."}) == key_of({"problem": r"Find \( \frac{1}{2}+x \)."})
    True
    """
    return _IRRELEVANT.sub("", row["problem"]).casefold()


def fault_of(row: Row) -> str | None:
    """What keeps `row` from being a problem, or None."""
    for column in ("problem", "answer"):
        if not isinstance(row[column], str) or not row[column].strip():
            return f"{column!r} must be text that is not blank"
    return None


PROBLEMS = Problems(columns=("problem", "answer", "source", "level"), fault=fault_of, key=key_of)


def load_one(
    *, split: str, source: str, split_rule: str, num_rows: int | None, seed: int, columns: Mapping[str, Any], filters: Filters
) -> Dataset:  # fmt: skip
    """Rows {"problem", "answer", "source", "level"} of one source: see `rows.load_rows`.

    columns: fields of `Columns` that differ from what is known about `source`.
    Raises: ValueError or FileNotFoundError with one line.
    """
    if split_rule != "problem":
        raise ValueError(f"math has the split rule problem only, got {split_rule!r}")

    if (source == "generated" or (Path(source).expanduser() / CARD).is_file()) and (columns or filters != Filters()):
        raise ValueError(f"columns and limits are for files and hub datasets; {source} is ready as it is")

    def read(name: str) -> list[Row]:
        known = KNOWN.get(name, Columns())
        where = Columns(**{item.name: columns.get(item.name, getattr(known, item.name)) for item in fields(Columns)})
        return mapped(read_source(name, config=where.config), name, where, filters)

    return load_rows(
        PROBLEMS,
        split=split,
        source=source,
        split_rule=split_rule,
        num_rows=num_rows,
        seed=seed,
        candidates=generate,
        read=read,
    )


def mapped(rows: Sequence[Row], source: str, where: Columns, filters: Filters) -> list[Row]:
    """The rows as the task has them, less those that are filtered out, and those without a problem or a gold that can be met (warned of).

    Raises: ValueError where a column is missing, a filter has no column to read, or nothing is left.
    """
    if not rows:
        raise ValueError(f"{source} has no rows")
    if not isinstance(rows[0], dict):
        raise ValueError(f"{source}, row 0 (from 0): a row is an object with columns")
    if (filters.min_level, filters.max_level) != (None, None) and where.level is None:
        raise ValueError(f"{source}: min_level and max_level need level_column")
    if (filters.min_pass_rate, filters.max_pass_rate) != (None, None) and where.pass_rate is None:
        raise ValueError(f"{source}: min_pass_rate and max_pass_rate need pass_rate_column")
    kept, num_unfit = [], 0
    for index, raw in enumerate(rows):
        values = {
            name: _value(raw, path, f"{source}, row {index} (from 0)")
            for name in ("problem", "answer", "level", "pass_rate")
            if (path := getattr(where, name)) is not None
        }
        problem, level = _problem_text(values["problem"]), level_of(values.get("level"))
        if not _is_kept(problem, level, values.get("pass_rate"), filters):
            continue
        answer = bare(_answer_text(values["answer"]))
        if not problem or _fault_of_gold(answer):
            num_unfit += 1
            continue
        kept.append({"problem": problem, "answer": answer, "source": source, "level": level})
    if num_unfit:
        warnings.warn(f"{source}: {num_unfit} of {len(rows)} rows have no problem, or no gold that an answer could meet, and are left out", stacklevel=2)  # fmt: skip
    if not kept:
        raise ValueError(f"{source}: none of {len(rows)} rows is left; look at the columns and filters")
    return kept


def _value(row: Row, path: str, where: str) -> Any:
    found = _found(row, path)
    if not found:
        has = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise ValueError(f"{where}: there is no column {path!r}; it has {has}")
    return found[0]


def _found(value: Any, path: str) -> list[Any]:
    """The cell at `path` as the one item of a list; nothing where there is none. A column may itself have dots in its name.

    >>> _found({"q.text": 1}, "q.text"), _found({"q": {"text": 2}}, "q.text"), _found({"a.b": {"c": 3}}, "a.b.c"), _found({}, "q")
    ([1], [2], [3], [])
    """
    if not isinstance(value, Mapping):
        return []
    if path in value:
        return [value[path]]
    parts = path.split(".")
    heads = [(".".join(parts[:cut]), ".".join(parts[cut:])) for cut in range(len(parts) - 1, 0, -1)]
    return next((found for head, rest in heads if head in value and (found := _found(value[head], rest))), [])


def _answer_text(value: Any) -> str:
    """A gold, also as the one item of a list; "" for several, none, and NaN, of which none says what would be right."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return str(value) if isinstance(value, (str, int, float)) and value == value else ""


def _problem_text(value: Any) -> str:
    """A problem, also as the last user message of a chat; DAPO's standing instruction is cut off."""
    if isinstance(value, list):
        value = next((item.get("content") for item in reversed(value) if isinstance(item, Mapping)), None)
    text = "" if value is None else str(value)
    if _DAPO_BEFORE in text and _DAPO_AFTER in text:
        text = text.split(_DAPO_BEFORE, 1)[1].rsplit(_DAPO_AFTER, 1)[0]
    return text.strip()


def _is_kept(problem: str, level: str, pass_rate: Any, filters: Filters) -> bool:
    if filters.max_problem_characters is not None and len(problem) > filters.max_problem_characters:
        return False
    return _is_within(int(level) if level else None, filters.min_level, filters.max_level) and _is_within(
        pass_rate, filters.min_pass_rate, filters.max_pass_rate
    )


def _is_within(value: Any, low: float | None, high: float | None) -> bool:
    if low is None and high is None:
        return True
    if isinstance(value, str):  # a .csv file has texts alone
        try:
            value = float(value)
        except ValueError:
            return False
    return type(value) in (int, float) and (low is None or value >= low) and (high is None or value <= high)
