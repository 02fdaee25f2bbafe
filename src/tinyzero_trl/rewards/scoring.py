"""What one reward gives for responses: one at a time, or over the completions of a prompt. Nothing a reward does gets out."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import asyncio

LOW, HIGH = -100.0, 100.0
"""The range a reward is to be in."""
FROM_TRAINER = ("completion_ids", "is_truncated")
"""What a reward may read in training besides the row, as a parameter with a default: the token ids of its completion, and
whether it ran into the token limit."""


FROM_TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""What TRL passes to a reward besides the columns of the rows, each for a whole batch."""
AT_ONCE = 64
"""Calls of an async reward that wait at the same time."""


def is_for_trl(reward: Callable[..., Any]) -> bool:
    """Whether `reward` is written as TRL calls one, for a batch: f(prompts, completions, **kwargs), f(completions, answer), f(**kwargs)."""
    parameters = list(inspect.signature(reward).parameters.values())
    names = [parameter.name for parameter in parameters]
    if [parameter.kind for parameter in parameters] == [inspect.Parameter.VAR_KEYWORD]:
        return True
    return "completions" in names or "prompts" in names or names[:1] == ["completion_ids"]


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
        return _judged(_awaited(value), f"{job.response[-200:]!r}", low=low, high=high)
    except (Exception, SystemExit) as error:  # a custom reward may raise anything; training goes on without this sample
        return Earned(None, type(error).__name__, f"raised {error!r:.200} for {job.response[-200:]!r}")


def earn_all(reward: Callable[..., Any], jobs: Sequence[Job], *, low: float = LOW, high: float = HIGH) -> list[Earned]:
    """`earn` for each job; calls of an async reward wait for what they wait for side by side."""
    call = getattr(reward, "__call__", None)  # noqa: B004 the method of an instance may be async where the instance is not
    if not inspect.iscoroutinefunction(reward) and not inspect.iscoroutinefunction(call):
        return [earn(reward, job, low=low, high=high) for job in jobs]

    import asyncio

    async def all_of_them() -> list[Earned]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(job: Job) -> Earned:
            try:
                async with gate:
                    value = await reward(job.response, **job.columns)
                return _judged(value, f"{job.response[-200:]!r}", low=low, high=high)
            except (Exception, SystemExit, asyncio.CancelledError) as error:  # as in `earn`
                return Earned(None, type(error).__name__, f"raised {error!r:.200} for {job.response[-200:]!r}")

        return await asyncio.gather(*map(one, jobs))

    return _runner().run(all_of_them())


def earn_batch(
    reward: Callable[..., Any], arguments: Mapping[str, Any], *, size: int, low: float = LOW, high: float = HIGH
) -> list[Earned]:
    """What a reward written for TRL gives for a batch of `size` completions; one that raises, or counts wrongly, gives none of them any."""
    try:
        values = _awaited(reward(**arguments))
        if isinstance(values, (str, bytes, Mapping)):
            raise TypeError(f"it returned {values!r:.200}, not a list of numbers")
        numbers = list(values.tolist() if hasattr(values, "tolist") else values)
    except (Exception, SystemExit) as error:  # as in `earn`
        return [Earned(None, type(error).__name__, f"raised {error!r:.200} for a batch")] * size
    if len(numbers) != size:
        return [Earned(None, "length", f"returned {len(numbers)} rewards for {size} completions")] * size
    earned = []
    for place, value in enumerate(numbers):
        try:
            earned.append(_judged(value, f"completion {place} of a batch", low=low, high=high))
        except (TypeError, ValueError, OverflowError) as error:
            earned.append(
                Earned(None, type(error).__name__, f"returned {value!r:.200} for completion {place} of a batch")
            )
    return earned


def _judged(value: Any, shown: str, *, low: float, high: float) -> Earned:
    if value is None:
        return Earned(None)
    number = float(value) if not isinstance(value, str) else math.nan
    if math.isfinite(number) and low <= number <= high:
        return Earned(number)
    return Earned(None, "range", f"returned {value!r:.200}, which is not a number in [{low:g}, {high:g}], for {shown}")


def _awaited(value: Any) -> Any:
    """The value itself, or what it comes to where it is to be awaited."""
    if not inspect.isawaitable(value):
        return value

    async def wait() -> Any:
        return await value

    return _runner().run(wait())


@cache
def _runner() -> asyncio.Runner:
    """One event loop for all calls: a client that a reward keeps belongs to the loop that it was made in."""
    import asyncio

    return asyncio.Runner()


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
        except (Exception, SystemExit) as error:  # as in `earn`
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
    except (Exception, SystemExit) as error:  # as in `earn`
        return Earned(None, type(error).__name__, f"raised {error!r:.200} for {job.response[-200:]!r}")
    return Earned(None) if measure is None else measure
