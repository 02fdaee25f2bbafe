"""A task: where its rows come from, how they are worded, and what a response is worth."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyzero_trl.answer import Parts

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]
"""One problem: the task's own columns, and later `prompt` and `prefill`."""

FormatFn = Callable[[Row], Row]
"""Raw row -> {"prompt": text or chat messages, "prefill": the end of the prompt that already belongs to the response}."""

RewardFn = Callable[..., float | None]
"""(response, *, columns of the row that it reads) -> a number in a finite range, for any text; None if it does not apply."""


class Outcome(StrEnum):
    """The result of verifying a response; exactly one applies."""

    no_answer = "no_answer"
    """The response ended without any `<answer>` or `</answer>`."""
    bad_format = "bad_format"
    """The response has answer tags, but not exactly one complete block after the one `</think>`."""
    illegal_expression = "illegal_expression"
    """The answer is outside the task's grammar."""
    wrong_numbers = "wrong_numbers"
    """A legal answer that does not use the given numbers, each exactly once."""
    wrong_value = "wrong_value"
    """A legal answer worth something else."""
    correct = "correct"
    """Solved."""
    truncated = "truncated"
    """The response reached the token limit before it had an answer."""
    undecided = "undecided"
    """The verifier gave up (time, memory, a lost worker or an error of its library), so it is unknown whether the answer is right."""


DECIDED = tuple(outcome for outcome in Outcome if outcome is not Outcome.undecided)
"""The outcomes of a verifier that cannot give up."""


MAX_SHOWN = 60
"""Characters of an answer that an explanation shows."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a verifier."""

    outcome: Outcome
    value: Fraction | None = None
    """The value of the answer, if it is legal."""
    answer: str | None = None
    """The answer as written, if there is exactly one."""
    explanation: str = field(default="", compare=False)
    """Why it is not correct, in a few words for a person: "uses 19 twice", "5/2 is not 72"; empty if there is nothing to say."""


def without_answer(parts: Parts, *, is_truncated: bool) -> Verdict:
    """The verdict on a response without an answer by the rule of `answer.py`."""
    if is_truncated:
        return Verdict(Outcome.truncated, explanation="cut off before there was an answer")
    if parts.has_answer_tag:
        return Verdict(Outcome.bad_format, explanation="not one thought and then one answer block")
    return Verdict(Outcome.no_answer, explanation="no answer block")


def shortened(text: str) -> str:
    """The text in one line of at most 60 characters, for an explanation.

    >>> shortened("1 +\\n2"), len(shortened("9" * 99))
    ('1 + 2', 60)
    """
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else line[: MAX_SHOWN - 3] + "..."


@dataclass(frozen=True)
class Task:
    """A family of problems: `+countdown=...` is Task("countdown", ...)."""

    name: str
    """Name of the recipe folder, the module, its test and its outputs."""
    load: Callable[..., Dataset]
    """(*, split, source, split_rule, num_rows, seed, ...) -> raw rows; two splits never share a problem."""
    formats: Mapping[str, FormatFn]
    """Formats by their name in a recipe."""
    rewards: Mapping[str, RewardFn]
    """Rewards by their name in a recipe."""
    solved: str
    """Name of the reward that is 1.0 exactly if the problem is solved; evaluation reports it."""
    verify: Callable[..., Verdict]
    """(response, *, columns..., is_truncated=False) -> Verdict; the same rule for training and evaluation."""
    columns: tuple[str, ...]
    """Columns of a raw row that `verify` reads."""
    difficulty: Callable[[Row], str]
    """Row -> a label such as "3 numbers", or "" without one; tables are broken down by it."""
    outcomes: tuple[Outcome, ...] = DECIDED
    """Outcomes that `verify` may return; the share of each is a metric of training and of evaluation."""
    solve: Callable[[Row], str | None] | None = None
    """Row -> a reference answer, or None if there is none; preparation checks the rewards with it."""
    wording: Callable[[Row], str] | None = None
    """Row -> the text of the problem, by which preparation looks for evaluation problems among training problems. None if the
    key of a problem is enough."""
    canonical: Callable[[str], str] = lambda answer: "".join(answer.split())
    """Answer -> a text that is the same for answers of the same meaning; maj@k votes by it."""
    behaviours: Mapping[str, Callable[..., float]] = field(default_factory=dict)
    """Further metrics of evaluation: (response, *, columns...) -> a number, NaN if it does not apply. Names that end in `/share`
    are shares, others means."""


def prompts(dataset: Dataset, format_fn: FormatFn) -> Dataset:
    """The rows of `dataset` with `prompt` and `prefill` added.

    Raises: ValueError if the format is no function, raises, or does not return both.
    """
    name = getattr(format_fn, "__name__", repr(format_fn))
    if not callable(format_fn) or inspect.iscoroutinefunction(format_fn):
        what = "async" if callable(format_fn) else f"a {type(format_fn).__name__}"
        raise ValueError(
            f"format {name} is {what}; a format is a function, def {name if callable(format_fn) else 'f'}(row)"
        )

    def worded(row: Row) -> Row:
        try:
            columns = format_fn(row)
        except (Exception, SystemExit) as error:  # a user's format may raise anything
            raise ValueError(f"format {name} raised {raised(error)} on the row {row!r:.200}") from error
        if not isinstance(columns, Mapping):
            raise ValueError(
                f"format {name} must return a dict with 'prompt' and 'prefill'; it returned {columns!r:.80}"
            )
        if missing := {"prompt", "prefill"} - columns.keys():
            raise ValueError(f"format {name} must return 'prompt' and 'prefill'; it left out {sorted(missing)}")
        return {"prompt": columns["prompt"], "prefill": columns["prefill"]}

    # The cache of datasets knows a function by its pickle: after an edit elsewhere it would return old prompts.
    return dataset.map(worded, load_from_cache_file=False)


def resolve(name: str, *, among: Mapping[str, Any], kind: str) -> Any:
    """The object called `name`: a key of `among`, `pkg.module:name` or `path/file.py:name`.

    Raises: ValueError that lists the known names.
    """
    if name in among:
        return among[name]
    where, colon, attribute = name.rpartition(":")
    if not (colon and where and attribute):
        raise ValueError(
            f"there is no {kind} {name!r}; there is {', '.join(sorted(among)) or 'none'}, "
            f"or one of your own as pkg.module:name or path/file.py:name"
        )
    try:
        module = _module_of_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except (Exception, SystemExit) as error:  # a user's file may raise anything; every error becomes one line
        hint = "; a file ends in .py" if not where.endswith(".py") and Path(where).exists() else ""
        raise ValueError(f"{kind} {name!r}: {where} cannot be imported: {raised(error, where)}{hint}") from error
    if not hasattr(module, attribute):
        defined = sorted(key for key in vars(module) if not key.startswith("_"))
        raise ValueError(f"{kind} {name!r}: {where} has no {attribute}; it has {', '.join(defined)}")
    return getattr(module, attribute)


def raised(error: BaseException, where: str = "") -> str:
    """An exception as one line: its class, its message and, if the file `where` raised it, the line number."""
    message = (str(error).strip().splitlines() or [""])[0]
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if where and frame.filename.endswith(Path(where).name)
    ]
    line = f" (line {frames[-1].lineno})" if frames and not isinstance(error, SyntaxError) else ""
    return f"{type(error).__name__}: {message}{line}" if message else f"{type(error).__name__}{line}"


def loaded(task: Task, **arguments: Any) -> Dataset:
    """The rows of `task.load`.

    Raises: ValueError of one line for an argument that is no int although the signature says int, for any unexpected exception of a
    user's task, and for a result that is no Dataset.
    """
    for name, parameter in inspect.signature(task.load).parameters.items():
        kind = getattr(parameter.annotation, "__name__", str(parameter.annotation))
        value = arguments.get(name, 0)
        if kind in ("int", "int | None") and type(value) is not int and not (value is None and kind != "int"):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
    try:
        rows = task.load(**arguments)
    except (ValueError, OSError):
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"the load of task {task.name} raised {raised(error)}") from error
    if not hasattr(rows, "column_names"):
        raise ValueError(
            f"the load of task {task.name} must return a datasets.Dataset, it returned a {type(rows).__name__}"
        )
    return rows


def _module_of_file(path: Path) -> Any:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.absolute()}")
    # Kept in sys.modules under the whole path, so that a second look-up gives the same objects and pickling works.
    module_name = "tinyzero_file_" + "".join(c if c.isalnum() else "_" for c in str(path.resolve()))
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module
