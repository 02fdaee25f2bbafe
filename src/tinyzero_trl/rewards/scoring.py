"""Scores of responses by one reward: each alone, a batch by TRL's signature, or a group. No error of a reward leaves this file."""

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
"""The range of a valid reward."""
FROM_TRAINER = ("completion_ids", "is_truncated", "verdict")
"""Columns that only training has: the token ids of the completion, if it reached the token limit, and the task's verdict on it.
A reward that reads one gives the parameter a default."""
FROM_TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""Arguments that TRL passes to a reward besides the columns of the rows, each for a whole batch."""
AT_ONCE = 64
"""Most calls of an async reward that wait at the same time."""


def is_for_trl(reward: Callable[..., Any]) -> bool:
    """True if `reward` takes a batch, as TRL calls it: f(prompts, completions, **kwargs), f(completions, answer), f(**kwargs)."""
    parameters = list(inspect.signature(reward).parameters.values())
    names = [parameter.name for parameter in parameters]
    if [parameter.kind for parameter in parameters] == [inspect.Parameter.VAR_KEYWORD]:
        return True
    return "completions" in names or "prompts" in names or names[:1] == ["completion_ids"]


@dataclass(frozen=True)
class GroupReward:
    """A reward that compares the completions of one prompt: each is measured alone, then all measures get their rewards together."""

    measure: Callable[..., Any]
    """(response, *, columns of the row) -> anything; None leaves the response out of the comparison."""
    compare: Callable[[Sequence[Any]], list[float]]
    """(measures of a group) -> a reward for each."""

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.measure)

    def __call__(self, response: str, **columns: Any) -> float | None:
        """The reward of the response as the only one of its group."""
        measure = self.measure(response, **columns)
        return None if measure is None else self.compare([measure])[0]


class Score(NamedTuple):
    """The reward of one response, or the reason why it has none."""

    number: float | None
    """None: the reward does not apply, or there was an error."""
    error: str | None = None
    """Kind of error: `range`, `shape`, `length`, the class of an exception, or one of batch.LOST; None if there was none."""
    detail: str = ""
    """The error in words, for the log."""


class RewardCall(NamedTuple):
    """The arguments of one call: reward(response, **columns)."""

    response: str
    columns: dict[str, Any]


def score_response(
    reward: Callable[..., float | None], call: RewardCall, *, low: float = LOW, high: float = HIGH
) -> Score:
    """The score of one response. A reward may raise or return anything: training goes on without this response."""
    try:
        value = reward(call.response, **call.columns)
        return _checked(_awaited(value), repr(call.response[-200:]), low=low, high=high)
    except (Exception, SystemExit) as error:
        return _raised(error, call)


def score_all(
    reward: Callable[..., Any], calls: Sequence[RewardCall], *, low: float = LOW, high: float = HIGH
) -> list[Score]:
    """The score of each response; calls of an async reward wait side by side, at most AT_ONCE of them."""
    call = getattr(reward, "__call__", None)  # noqa: B004 the method of an instance may be async where the instance is not
    if not inspect.iscoroutinefunction(reward) and not inspect.iscoroutinefunction(call):
        return [score_response(reward, call, low=low, high=high) for call in calls]

    import asyncio

    async def score_side_by_side() -> list[Score]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(call: RewardCall) -> Score:
            try:
                async with gate:
                    value = await reward(call.response, **call.columns)
                return _checked(value, repr(call.response[-200:]), low=low, high=high)
            except (Exception, SystemExit, asyncio.CancelledError) as error:
                return _raised(error, call)

        return await asyncio.gather(*map(one, calls))

    return _runner().run(score_side_by_side())


def score_batch(
    reward: Callable[..., Any], arguments: Mapping[str, Any], *, size: int, low: float = LOW, high: float = HIGH
) -> list[Score]:
    """The scores of a batch of `size` completions by a reward written for TRL; all are None if it raises or their number is wrong."""
    try:
        values = _awaited(reward(**arguments))
        if isinstance(values, (str, bytes, Mapping)):
            raise TypeError(f"it returned {values!r:.200}, not a list of numbers")
        numbers = list(values.tolist() if hasattr(values, "tolist") else values)
    except (Exception, SystemExit) as error:
        return [Score(None, type(error).__name__, f"raised {error!r:.200} for a batch")] * size
    if len(numbers) != size:
        return [Score(None, "length", f"returned {len(numbers)} rewards for {size} completions")] * size
    scores = []
    for index, value in enumerate(numbers):
        shown = f"completion {index} of a batch"
        try:
            scores.append(_checked(value, shown, low=low, high=high))
        except (TypeError, ValueError, OverflowError) as error:
            scores.append(Score(None, type(error).__name__, f"returned {value!r:.200} for {shown}"))
    return scores


def score_groups(
    reward: GroupReward, calls: Sequence[RewardCall], prompts: Sequence[Any], *, low: float = LOW, high: float = HIGH
) -> list[Score]:
    """The score of each response; responses to equal prompts that follow each other are a group."""
    scores: list[Score] = []
    for _, members in groupby(zip(prompts, calls, strict=True), key=lambda item: item[0]):
        # A response without a measure has its score already, and is not compared.
        measured = [_measured(reward, call) for _, call in members]
        measures = [measure for measure in measured if not isinstance(measure, Score)]
        try:
            numbers = [float(number) for number in reward.compare(measures)] if measures else []
            if len(numbers) != len(measures):
                raise ValueError(f"it gave {len(numbers)} numbers for {len(measures)} measures")
            compared = [
                _checked(number, f"{measure!r:.200}", low=low, high=high)
                for number, measure in zip(numbers, measures, strict=True)
            ]
        except (Exception, SystemExit) as error:
            compared = [Score(None, type(error).__name__, f"compare raised {error!r:.200}")] * len(measures)
        left = iter(compared)
        scores += [measure if isinstance(measure, Score) else next(left) for measure in measured]
    return scores


def _measured(reward: GroupReward, call: RewardCall) -> Any:
    """The measure of a response, or a Score of None if there is none."""
    try:
        measure = reward.measure(call.response, **call.columns)
    except (Exception, SystemExit) as error:
        return _raised(error, call)
    return Score(None) if measure is None else measure


def _raised(error: BaseException, call: RewardCall) -> Score:
    return Score(None, type(error).__name__, f"raised {error!r:.200} for {call.response[-200:]!r}")


def _checked(value: Any, shown: str, *, low: float, high: float) -> Score:
    """The score with this number, or with the error `range`. Raises: TypeError, ValueError, OverflowError for other things."""
    if value is None:
        return Score(None)
    number = float(value) if not isinstance(value, str) else math.nan
    if math.isfinite(number) and low <= number <= high:
        return Score(number)
    return Score(None, "range", f"returned {value!r:.200}, which is not a number in [{low:g}, {high:g}], for {shown}")


def _awaited(value: Any) -> Any:
    """The value itself, or its result if it is awaitable."""
    if not inspect.isawaitable(value):
        return value

    async def wait() -> Any:
        return await value

    return _runner().run(wait())


@cache
def _runner() -> asyncio.Runner:
    """One event loop for all calls: a client that a reward keeps belongs to the loop in which it was made."""
    import asyncio

    return asyncio.Runner()
