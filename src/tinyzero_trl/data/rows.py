"""Raw rows of a task: read from the hub, a file or a prepared folder, or generated; then checked, split, and without duplicates.

A split is a rule on the problem itself (`split_of_key`). So two rows with the same problem (numbers in another order) always
belong to the same split, from whichever file they come.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyzero_trl.data.sources import read_source
from tinyzero_trl.task import Row

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
CARD = "card.json"
"""Name of the file in a prepared folder, beside `<split>.parquet`, that describes the rows and their source."""

TINYZERO_TRAIN = 327_680
TINYZERO_TEST = 1_024
"""Number of rows in TinyZero's split, taken in the order of the file.

Source: TinyZero, examples/data_preprocess/countdown.py.
"""

MAX_MISSES = 50_000
"""Candidates without a new problem, one after the other, after which a generator counts as exhausted."""


@dataclass(frozen=True)
class Problems:
    """The rules of a task's rows that `load_rows` applies."""

    columns: tuple[str, ...]
    """Columns that each row has."""
    fault: Callable[[Row], str | None]
    """Function that returns the reason why a row is no valid problem, or None."""
    key: Callable[[Row], str]
    """Function that returns the same text for two rows exactly if they are the same problem."""


def split_of_key(key: str) -> str:
    """The split of a problem: of every 100, two are test, one is validation, 97 are train, by a hash of its key."""
    bucket = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") % 100
    return "test" if bucket < 2 else "validation" if bucket == 2 else "train"


def load_rows(
    problems: Problems,
    *,
    split: str,
    source: str,
    split_rule: str,
    num_rows: int | None,
    seed: int,
    candidates: Callable[[random.Random], Iterator[Row]],
    read: Callable[[str], list[Row]] | None = None,
) -> Dataset:
    """The rows of `split`: all of them in their order, or a sample of `num_rows` drawn with `seed`.

    source: "generated", a file or a folder of files (`sources`), a folder made by a prepare script, or a dataset of the hub.
    split_rule: "problem" (`split_of_key`; duplicates removed) or "tinyzero" (by place in the file; 107 of its test
    problems are also among its training rows, and are left out of them here).
    candidates: endless problems, which may repeat, for "generated".
    read: reads a file or hub dataset whose columns are not the task's own; None reads the task's columns.

    Raises: ValueError or FileNotFoundError of one line that names the file, the row and the reason.
    """
    from datasets import Dataset

    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; there is {', '.join(SPLITS)}")
    if split_rule not in ("problem", "tinyzero"):
        raise ValueError(f"there is no split rule {split_rule!r}; there is problem, tinyzero")
    if num_rows is not None and num_rows < 1:
        raise ValueError(f"num_rows must be at least 1, got {num_rows}")
    if source == "generated":
        if num_rows is None or split_rule != "problem":
            raise ValueError("source 'generated' needs num_rows, and split rule 'problem'")
        # The seed of a str does not depend on PYTHONHASHSEED. Splits draw from one stream and differ by the rule alone.
        rows = _distinct(candidates(random.Random(f"tinyzero {seed}")), problems, split=split, num_rows=num_rows)
    elif (Path(source).expanduser() / CARD).is_file():
        rows = _sample(
            _read_prepared(Path(source).expanduser(), problems, split, split_rule), num_rows, seed, source, split
        )
    else:
        rows = checked(read(source), source, problems) if read else read_rows(source, problems)
        if split_rule == "tinyzero":
            rows = _tinyzero(rows, problems, split, source)
        else:
            rows = _distinct(rows, problems, split=split, num_rows=None)
        rows = _sample(rows, num_rows, seed, source, split)
    return Dataset.from_list([{column: row[column] for column in problems.columns} for row in rows])


def read_rows(source: str, problems: Problems) -> list[Row]:
    """Every row of a file or hub dataset, checked.

    Raises: ValueError that names the first row that is no valid problem.
    """
    return checked(read_source(source, columns=problems.columns), source, problems)


def checked(rows: list[Row], source: str, problems: Problems) -> list[Row]:
    """The rows, with cells converted to the right types.

    Raises: ValueError that names the first row that is no valid problem.
    """
    if not rows:
        raise ValueError(f"{source} has no rows")
    found = []
    for index, raw in enumerate(rows):
        row = _typed(raw, problems)
        if reason := _why_not_a_problem(row, problems):
            raise ValueError(f"{source}, row {index} (from 0): {reason}; the row is {_shown(row)}")
        found.append(row)
    return found


def _typed(row: Any, problems: Problems) -> Any:
    """The row with texts converted to numbers and lists, if it is no valid problem without that: a .csv file has only texts.

    A list may be written as JSON, as numpy prints it ([19 36 55]) or bare (19 36 55).
    """
    if not isinstance(row, dict) or not row or not all(cell is None or isinstance(cell, str) for cell in row.values()):
        return row
    try:
        if not _why_not_a_problem(row, problems):
            return row
    except (TypeError, ValueError):
        pass  # the task's own check expects numbers
    return {name: _cell(cell) if name in problems.columns else cell for name, cell in row.items()}


def _cell(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    bare = text.strip()
    bare = bare[1:-1] if bare[:1] + bare[-1:] in ("[]", "()") else bare
    numbers = re.split(r"[,;\s]+", bare.strip())
    return (
        [int(number) for number in numbers] if all(re.fullmatch(r"-?\d{1,18}", number) for number in numbers) else text
    )


def _why_not_a_problem(row: Any, problems: Problems) -> str | None:
    if not isinstance(row, dict):
        return f"a row is an object with {', '.join(problems.columns)}"
    for column in problems.columns:
        if column not in row:
            return f"it has no {column!r}"
    return problems.fault(row)


def _shown(row: Any) -> str:
    text = repr(row)
    return text if len(text) <= 200 else text[:197] + "..."


def _read_prepared(folder: Path, problems: Problems, split: str, split_rule: str) -> list[Row]:
    """The rows of one split of a prepared folder, as they were split when the folder was made."""
    card = _card_of(folder)
    if card["split_rule"] != split_rule:
        raise ValueError(
            f"{folder} was prepared with split_rule={card['split_rule']}, and split_rule={split_rule} asked"
        )
    if not (folder / f"{split}.parquet").is_file():
        raise ValueError(f"{folder} has no split {split}; it has {', '.join(sorted(card['num_rows']))}")
    return read_rows(str(folder / f"{split}.parquet"), problems)


def _card_of(folder: Path) -> dict[str, Any]:
    """Content of card.json. Raises: ValueError if it is not what a prepare script writes."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / CARD} cannot be read: {error}; prepare the data again") from error
    if not isinstance(card, dict) or "split_rule" not in card or not isinstance(card.get("num_rows"), dict):
        raise ValueError(f"{folder / CARD} does not say split_rule and num_rows; prepare the data again")
    return card


def _distinct(rows: Iterable[Row], problems: Problems, *, split: str, num_rows: int | None) -> list[Row]:
    """The first `num_rows` rows of `split` (None: all), each problem once.

    Raises: ValueError if `MAX_MISSES` candidates one after the other bring no new problem.
    """
    seen: set[str] = set()
    kept: list[Row] = []
    misses = 0
    for row in rows:
        key = problems.key(row)
        if key not in seen and split_of_key(key) == split:
            seen.add(key)
            kept.append(row)
            misses = 0
            if len(kept) == num_rows:
                break
        elif num_rows is not None:
            misses += 1
            if misses > MAX_MISSES:
                raise ValueError(
                    f"cannot generate {num_rows} distinct {split} problems in these ranges: stuck at {len(kept)}; "
                    f"widen the ranges or ask for fewer"
                )
    return kept


def _sample(rows: list[Row], num_rows: int | None, seed: int, source: str, split: str) -> list[Row]:
    if not rows:
        raise ValueError(f"{source} has no {split} rows: of every 100 problems 97 are train, 1 validation, 2 test")
    if num_rows is None:
        return rows
    if num_rows > len(rows):
        raise ValueError(f"{num_rows} {split} rows were asked of {source}, which has {len(rows)}")
    return random.Random(f"tinyzero {seed}").sample(rows, num_rows)


def _tinyzero(rows: list[Row], problems: Problems, split: str, source: str) -> list[Row]:
    """TinyZero's own test rows; its training rows without problems of the test; and for validation the rows behind the test.

    A problem is the same in any order of its numbers. Validation rows are without problems of the other two.
    """
    begin, end = TINYZERO_TRAIN, TINYZERO_TRAIN + TINYZERO_TEST
    if len(rows) < end:
        raise ValueError(f"TinyZero's split needs {end} rows; {source} has {len(rows)}")
    test = rows[begin:end]
    if split == "test":
        return test
    used = set(map(problems.key, test if split == "train" else rows[:end]))
    return [row for row in (rows[:begin] if split == "train" else rows[end:]) if problems.key(row) not in used]
