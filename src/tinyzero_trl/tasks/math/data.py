"""Mathematics problems from data sets with columns of any name: reads, maps, filters and mixes them, and finds the bare gold."""

from __future__ import annotations

import inspect
import random
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyzero_trl.data import CARD, Problems, load_rows, read_source
from tinyzero_trl.task import Row
from tinyzero_trl.tasks.math.verdict import why_not_a_gold
from tinyzero_trl.tasks.math.word_problems import generate

if TYPE_CHECKING:
    from datasets import Dataset

_why_not_a_gold = lru_cache(maxsize=2**16)(why_not_a_gold)  # DAPO repeats each of its problems a hundred times

_GSM8K = re.compile(r"####\s*(.+?)\s*\Z", re.DOTALL)
_THOUSANDS = re.compile(r"-?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")
MIXTURE = "mixture"
"""Name of the source that mixes several others by weights."""
_OF_THE_WHOLE = {"split", "split_rule", "num_rows", "seed", "mixture"}
"""Arguments of `load` that an entry of a mixture does not have."""
_IRRELEVANT = re.compile(r"\\left|\\right|\\displaystyle|\\[!,;:()\[\] ]|[\s$~]|(?<=\\)[dt](?=frac)")


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a data set; `a.b` is the column of this name, or field b of column a."""

    problem: str = "problem"
    answer: str = "answer"
    """A bare gold, a GSM8K solution that ends in `####`, or a solution with the gold in a \\boxed."""
    level: str | None = None
    """Column of the difficulty: a number, or text that ends in one (`Level 5`)."""
    pass_rate: str | None = None
    """Column of the share of a model's answers that were right."""
    config: str | None = None
    """Configuration of the hub dataset."""

    def __post_init__(self) -> None:
        """Raises: ValueError if a name is not text, as in `problem_column=3`."""
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
"""Data sets of the hub with known columns; the third part of a name is a folder in the data set."""


@dataclass(frozen=True)
class Filters:
    """Limits on the problems of a source that are kept; None keeps all."""

    min_level: int | None = None
    max_level: int | None = None
    min_pass_rate: float | None = None
    max_pass_rate: float | None = None
    max_problem_characters: int | None = None

    def __post_init__(self) -> None:
        """Raises: ValueError for a limit that is not a number, and for limits that exclude all problems."""
        for name, value in vars(self).items():
            if value is not None and type(value) not in (int, float):
                raise ValueError(f"{name} must be a number, got {value!r}")
        for low, high in (("min_level", "max_level"), ("min_pass_rate", "max_pass_rate")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(f"{low} {least} is above {high} {most}")


def key_of(row: Row) -> str:
    r"""The problem as text, the same for other blanks, dollars, case, and LaTeX that looks the same.

    >>> key_of({"problem": r"Find $\dfrac{1}{2} + x$."}) == key_of({"problem": r"Find \( \frac{1}{2}+x \)."})
    True
    """
    return _IRRELEVANT.sub("", row["problem"]).casefold()


def why_not_a_problem(row: Row) -> str | None:
    """The reason why `row` is not a problem, or None."""
    for column in ("problem", "answer"):
        if not isinstance(row[column], str) or not row[column].strip():
            return f"{column!r} must be text that is not blank"
    return None


PROBLEMS = Problems(columns=("problem", "answer", "source", "level"), fault=why_not_a_problem, key=key_of)


def load_one(
    *, split: str, source: str, split_rule: str, num_rows: int | None, seed: int, columns: Mapping[str, Any], filters: Filters
) -> Dataset:  # fmt: skip
    """Rows {"problem", "answer", "source", "level"} of one source: see `data.load_rows`.

    columns: fields of `Columns` that differ from those known for `source`.
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
    """The rows of the task that pass the filters; those without a problem or a usable gold are left out, with a warning.

    Raises: ValueError if a column is missing, a filter has no column to read, or no row is left.
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
        if not problem or _why_not_a_gold(answer):
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
    """The value at `path` as the only item of a list; an empty list if there is none. The name of a column may have dots.

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
    """A gold as text, also from a list with one item; "" for several items, none, or NaN."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return str(value) if isinstance(value, (str, int, float)) and value == value else ""


def _problem_text(value: Any) -> str:
    """A problem as text, also from the last message of a chat, without the instruction that DAPO puts around it."""
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
    if isinstance(value, str):  # all values of a .csv file are text
        try:
            value = float(value)
        except ValueError:
            return False
    return type(value) in (int, float) and (low is None or value >= low) and (high is None or value <= high)


def bare(text: str) -> str:
    r"""The gold alone: the text after GSM8K's `####`, or the inside of the last \boxed, or `text` without its dollars.

    Commas that separate thousands are removed. "" if there is no gold.

    >>> bare("48/2 = <<48/2=24>>24\n#### 1,072"), bare(r"so $x=\boxed{\frac{1}{2}}$."), bare("$(1,2)$")
    ('1072', '\\frac{1}{2}', '(1,2)')
    """
    if match := _GSM8K.search(text):
        text = match[1].rsplit("####", 1)[-1].strip().lstrip("$")
    elif (inside := last_boxed(text)) is not None:
        text = inside
    text = text.strip()
    if len(text) > 2 and text[0] == text[-1] == "$" and "$" not in text[1:-1]:
        text = text[1:-1].strip()
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


def last_boxed(text: str) -> str | None:
    r"""The inside of the last \boxed{...} or \fbox{...} whose braces close, or of `\boxed 5`; None if there is none."""
    for match in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*", text))):
        at = match.end()
        if text[at : at + 1] != "{":
            if short := re.match(r"[^\s${}.]+", text[at:]):
                return short[0]
            continue
        depth = 0
        for end in range(at, len(text)):
            if text[end] in "{}" and text[end - 1] != "\\":
                depth += 1 if text[end] == "{" else -1
                if depth == 0:
                    return text[at + 1 : end].strip()
    return None


def level_of(value: Any) -> str:
    """The number at the end of a level as text, or "".

    >>> level_of("Level 5"), level_of(3), level_of(None), level_of("Level ?")
    ('5', '3', '', '')
    """
    match = re.search(r"([0-9]+)(\.0*)?\s*\Z", "" if value is None else str(value))
    return match[1] if match else ""


def load_mixture(
    entries: Any, *, load: Callable[..., Dataset], split: str, split_rule: str, num_rows: int | None, seed: int
) -> Dataset:
    """Rows of several sources in shares by weight, shuffled; a problem in two sources counts for the first.

    entries: a list of {"source", "weight", and keyword arguments of `load`}. num_rows: None takes the most that the shares
    allow. Raises: ValueError.
    """
    from datasets import Dataset

    if (
        not isinstance(entries, (list, tuple))
        or not entries
        or not all(isinstance(entry, Mapping) for entry in entries)
    ):
        raise ValueError("mixture must be a list of {source: ..., weight: ...}")
    seen: set[str] = set()
    parts: list[tuple[Fraction, list[Row]]] = []
    for entry in entries:
        options = {key: value for key, value in entry.items() if key != "weight"}
        weight = entry.get("weight")
        if "source" not in options or options["source"] == MIXTURE:
            raise ValueError(f"an entry of mixture has source, weight and what load takes besides, got {dict(entry)}")
        takes = set(inspect.signature(load).parameters) - _OF_THE_WHOLE
        if unknown := options.keys() - takes:
            raise ValueError(
                f"mixture: {options['source']} takes no {', '.join(sorted(unknown))}; it takes {', '.join(sorted(takes))}"
            )
        if type(weight) not in (int, float) or not weight > 0:
            raise ValueError(f"mixture: {options['source']} needs a weight above 0, got {weight!r}")
        rows = []
        for row in load(split=split, split_rule=split_rule, seed=seed, **options).to_list():
            if (key := key_of(row)) not in seen:
                seen.add(key)
                rows.append(row)
        parts.append((Fraction(str(weight)), rows))
    whole = sum(weight for weight, _ in parts)
    possible = min(int(len(rows) * whole / weight) for weight, rows in parts)
    wanted = possible if num_rows is None else num_rows
    if wanted > possible or wanted < 1:
        raise ValueError(
            f"{wanted} {split} rows were asked of a mixture whose sources and weights give 1 to {possible}"
        )
    rng = random.Random(f"tinyzero mixture {seed}")
    mixed = [row for weight, rows in parts for row in rng.sample(rows, int(wanted * weight / whole))]
    taken = {key_of(row) for row in mixed}
    rest = [row for _, rows in parts for row in rows if key_of(row) not in taken]
    mixed += rest[: wanted - len(mixed)]
    rng.shuffle(mixed)
    return Dataset.from_list(mixed)
