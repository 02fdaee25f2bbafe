"""What one reward gives for responses: one at a time, or over the completions of a prompt. Nothing a reward does gets out."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

LOW, HIGH = -100.0, 100.0
"""The range a reward is to be in."""
FROM_TRAINER = ("completion_ids", "is_truncated")
"""What a reward may read in training besides the row, as a parameter with a default: the token ids of its completion, and
whether it ran into the token limit."""


@dataclass(frozen=True)
class OverGroup:
    """A reward that compares the completions of one prompt: each is measured alone, then all measures together are paid."""

    measure: Callable[..., Any]
    """(response, *, columns of the row it reads) -> anything; None leaves the response out."""
    compare: Callable[[Sequence[Any]], list[float]]
    """The measures of a group -> a number for each."""

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.measure)

    def __call__(self, response: str, **columns: Any) -> float | None:
        """What the response earns in a group of its own."""
        measure = self.measure(response, **columns)
        return None if measure is None else self.compare([measure])[0]


class Earned(NamedTuple):
    """What a reward gave for one response."""

    number: float | None
    """None: the reward does not apply, or there was trouble."""
    trouble: str | None = None
    """What kind: `range`, `shape`, the class of an exception, or one of LOST; None where there was none."""
    detail: str = ""


class Job(NamedTuple):
    """One call of a reward: reward(response, **columns)."""

    response: str
    columns: dict[str, Any]


def earn(reward: Callable[..., float | None], job: Job, *, low: float = LOW, high: float = HIGH) -> Earned:
    """What `reward` gives for one response; whatever it raises or returns, this returns."""
    try:
        value = reward(job.response, **job.columns)
        if value is None:
            return Earned(None)
        number = float(value) if not isinstance(value, str) else math.nan
        if math.isfinite(number) and low <= number <= high:
            return Earned(number)
        shown = f"{value!r:.200}"
    except Exception as error:  # a custom reward may raise anything; training goes on without this sample
        return Earned(None, type(error).__name__, f"raised {error!r:.200} for {job.response[-200:]!r}")
    return Earned(
        None, "range", f"returned {shown}, which is not a number in [{low:g}, {high:g}], for {job.response[-200:]!r}"
    )


def earn_in_groups(
    reward: OverGroup, jobs: Sequence[Job], prompts: Sequence[Any], *, low: float = LOW, high: float = HIGH
) -> list[Earned]:
    """What `reward` gives for each response; those of equal prompts that follow each other are a group."""
    earned: list[Earned] = []
    for _, members in groupby(zip(prompts, jobs, strict=True), key=lambda item: item[0]):
        measured = [_measured(reward, job) for _, job in members]
        known = [measure for measure in measured if not isinstance(measure, Earned)]
        try:
            numbers = iter(_compared(reward, known))
        except Exception as error:  # as in `earn`
            failed = Earned(None, type(error).__name__, f"compare raised {error!r:.200}")
            earned += [measure if isinstance(measure, Earned) else failed for measure in measured]
            continue
        for measure in measured:
            if isinstance(measure, Earned):
                earned.append(measure)
            else:
                number = next(numbers)
                is_fit = math.isfinite(number) and low <= number <= high
                detail = f"returned {number!r}, which is not a number in [{low:g}, {high:g}], for {measure!r:.200}"
                earned.append(Earned(number) if is_fit else Earned(None, "range", detail))
    return earned


def _compared(reward: OverGroup, measures: Sequence[Any]) -> list[float]:
    numbers = [float(number) for number in reward.compare(measures)] if measures else []
    if len(numbers) != len(measures):
        raise ValueError(f"it gave {len(numbers)} numbers for {len(measures)} measures")
    return numbers


def _measured(reward: OverGroup, job: Job) -> Any:
    """The measure of a response, or an `Earned` of None where there is none."""
    try:
        measure = reward.measure(job.response, **job.columns)
    except Exception as error:  # as in `earn`
        return Earned(None, type(error).__name__, f"raised {error!r:.200} for {job.response[-200:]!r}")
    return Earned(None) if measure is None else measure
