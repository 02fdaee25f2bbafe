"""Rewards that any task may use, and the adapter from "one response" to TRL's signature for a batch."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tinyzero_trl.answer import split_response
from tinyzero_trl.rewards.scoring import (
    FROM_TRAINER,
    FROM_TRL,
    HIGH,
    LOW,
    GroupReward,
    RewardCall,
    Score,
    is_for_trl,
    score_all,
    score_batch,
    score_groups,
)
from tinyzero_trl.task import Outcome, RewardFn, Verdict

logger = logging.getLogger(__name__)
LOST = ("seconds_per_call", "seconds_per_batch", "died")
"""Errors of worker processes: the reward itself gave no number."""


def exact_format(response: str) -> float:
    """1.0 if the response is exactly one thought and one answer (`Parts.is_exact`), else 0.0."""
    return float(split_response(response).is_exact)


def ladder(verdict: Verdict) -> float:
    """1.0 for a right answer, 0.1 for a complete answer that is wrong, 0.0 without one.

    Source: Jiayi-Pan/TinyZero, verl/utils/reward_score/countdown.py. We read the answer by our own rule (it needs a
    closed thought, and one block only) where TinyZero takes the last block of the last line.
    """
    if verdict.outcome is Outcome.correct:
        return 1.0
    return 0.0 if verdict.answer is None else 0.1


def columns_of(reward: RewardFn) -> tuple[str, ...]:
    """The columns a row must have for `reward`: its parameters after the response that have no default."""
    given = FROM_TRL if is_for_trl(reward) else ()
    named = _columns(reward).items()
    return tuple(key for key, one in named if one.default is inspect.Parameter.empty and key not in given)


def why_not_a_reward(reward: Any) -> str | None:
    """The reason why `reward` is not a reward, to follow its name; None if it is f(response, *, columns) or written for TRL."""
    if not callable(reward):
        return f"is a {type(reward).__name__}, and a reward is a function: def reward(response, *, column, ...)"
    if inspect.isclass(reward):
        return f"is a class; name a function, or an instance of it: {reward.__name__.lower()} = {reward.__name__}()"
    for function in (reward, getattr(reward, "__call__", None)):  # noqa: B004 the method itself is looked at
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            return "yields; a reward returns a number, or None where it does not apply"
    try:
        parameters = list(inspect.signature(reward).parameters.values())
        named = _columns(reward)
    except (ValueError, TypeError) as error:
        return f"is no reward: {error}"
    first = 0 if is_for_trl(reward) else 1
    if bare := [one.name for one in parameters[first:] if one.kind is inspect.Parameter.POSITIONAL_ONLY]:
        return f"takes {', '.join(bare)} by place alone; columns are given by name: def reward(response, *, {bare[0]})"
    if is_for_trl(reward):
        return None
    if taken := [name for name in named if name in FROM_TRL and name not in FROM_TRAINER]:
        return (
            f"reads {', '.join(taken)}, which TRL passes for a whole batch; write it as TRL calls it, "
            "def reward(prompts, completions, **kwargs), or name the parameter otherwise"
        )
    if bare := [name for name in FROM_TRAINER if name in named and named[name].default is inspect.Parameter.empty]:
        return f"reads {', '.join(bare)}, which training alone gives; write {bare[0]}=None"
    return None


class Workers(Protocol):
    """Processes that compute rewards (`rewards.pool.RewardPool`)."""

    def submit(self, name: str, calls: Sequence[RewardCall]) -> None:
        """Start these calls in the background; `score` of the same calls waits only for those that are not done."""

    def score(self, name: str, calls: Sequence[RewardCall]) -> list[Score]:
        """The score of each call by the reward called `name`."""

    def close(self) -> None:
        """End the processes."""


def for_trl(
    reward: RewardFn,
    *,
    name: str,
    low: float = LOW,
    high: float = HIGH,
    workers: Workers | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> BatchReward:
    """The reward in TRL's signature: (prompts, completions, **columns) -> a number or None for each completion.

    workers: processes that compute it, by its name; None calls `reward` here. parameters: keyword arguments of every call.
    """
    return BatchReward(reward, name=name, low=low, high=high, workers=workers, parameters=parameters or {})


class BatchReward:
    """A reward for a batch, in which a failed call does not end the run.

    A reward written for TRL, f(prompts, completions, **kwargs), gets TRL's arguments; its completions are without the prefill, which
    ends the prompt and is the column `prefill`. Any other reward is called for each response, which is the row's `prefill` (default
    "") plus the completion (text or chat messages), and gets only the columns that its signature names.
    A completion of another shape has the reward 0.0. A reward that raises, is not a number, not finite or outside [low, high] becomes
    None, which TRL leaves out of the group. Each kind of error is logged once; the share of such completions is the metric
    `rewards/<name>/rejected`, and of those that workers lost `rewards/<name>/lost`.
    """

    def __init__(
        self,
        reward: RewardFn,
        *,
        name: str,
        low: float,
        high: float,
        workers: Workers | None,
        parameters: Mapping[str, Any],
    ):
        self.__name__ = name
        self.seconds = 0.0
        """Seconds of all calls so far."""
        self.workers = workers
        self._reward, self._low, self._high = reward, low, high
        self._parameters, self._fixed = _columns(reward), dict(parameters)
        self._required = columns_of(reward)
        self._is_for_trl = is_for_trl(reward)
        self._reported: set[str] = set()

    def submit(self, completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> None:
        """Start the calls in the workers; does nothing if a column that the reward reads is not there yet."""
        awaited = [*self._required, *(key for key in FROM_TRAINER if key in self._parameters)]
        if self.workers is not None and not self._is_for_trl and all(key in columns for key in awaited):
            calls = self._calls(completions, columns)
            self.workers.submit(self.__name__, [call for call in calls if call is not None])

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        name = self.__name__
        if missing := [key for key in self._required if key not in columns]:
            raise ValueError(f"reward {name} reads {missing}, which the rows do not have; they have {sorted(columns)}")
        start = time.perf_counter()
        if self._is_for_trl:
            given = {"prompts": prompts, "completions": completions, "trainer_state": None, "log_extra": _unheard}
            given |= {**columns, "log_metric": log_metric or _unheard, **self._fixed}
            results = self._scored_at_once(given, len(completions))
        else:
            results = self._scored_each(prompts, completions, columns)
        self.seconds += time.perf_counter() - start
        for result in results:
            if result.error is not None and result.error not in self._reported:
                self._reported.add(result.error)
                logger.warning("reward %s: %s (logged once)", name, result.detail)
        if log_metric is not None:
            num_lost = sum(result.error in LOST for result in results)
            num_rejected = sum(result.error is not None for result in results) - num_lost
            log_metric(f"rewards/{name}/rejected", num_rejected / max(len(results), 1))
            if self.workers is not None:
                log_metric(f"rewards/{name}/lost", num_lost / max(len(results), 1))
        return [result.number for result in results]

    def _scored_at_once(self, given: Mapping[str, Any], size: int) -> list[Score]:
        kinds = [parameter.kind for parameter in inspect.signature(self._reward).parameters.values()]
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            given = {key: value for key, value in given.items() if key in self._parameters}
        return score_batch(self._reward, given, size=size, low=self._low, high=self._high)

    def _scored_each(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]
    ) -> list[Score]:
        calls = self._calls(completions, columns)
        real = [call for call in calls if call is not None]
        scored = iter(
            self._scored(real, [prompt for prompt, call in zip(prompts, calls, strict=True) if call is not None])
        )
        return [
            Score(0.0, "shape", f"a completion is neither text nor messages with content: {completion!r:.200}")
            if call is None
            else next(scored)
            for call, completion in zip(calls, completions, strict=True)
        ]

    def _scored(self, calls: list[RewardCall], prompts: list[Any]) -> list[Score]:
        if self.workers is not None:
            return self.workers.score(self.__name__, calls)
        if isinstance(self._reward, GroupReward):
            return score_groups(self._reward, calls, prompts, low=self._low, high=self._high)
        return score_all(self._reward, calls, low=self._low, high=self._high)

    def _calls(self, completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> list[RewardCall | None]:
        """The call for each completion; None for one that is neither text nor messages."""
        prefills = columns.get("prefill") or [""] * len(completions)
        keys = [key for key in self._parameters if key in columns]
        return [
            None
            if (text := text_of(completion)) is None
            else RewardCall((prefills[index] or "") + text, {key: columns[key][index] for key in keys} | self._fixed)
            for index, completion in enumerate(completions)
        ]


def _unheard(*args: Any, **kwargs: Any) -> None:
    """Replaces TRL's functions for logging if there is no trainer."""


def text_of(completion: Any) -> str | None:
    """The text of a completion, plain or conversational; None for any other shape.

    >>> text_of("a"), text_of([{"role": "assistant", "content": "a"}]), text_of([]), text_of(None)
    ('a', 'a', None, None)
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, list) or not completion:
        return None
    contents = []
    for message in completion:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            texts = [part.get("text") if isinstance(part, dict) else None for part in content]
            known = [text for text in texts if isinstance(text, str)]
            content = "".join(known) if known and len(known) == len(texts) else None
        if not isinstance(content, str):
            return None
        contents.append(content)
    return "".join(contents)


def _columns(reward: RewardFn) -> dict[str, inspect.Parameter]:
    """The parameters of `reward` after the response by name; all parameters of one for TRL. Raises: ValueError if there is no response."""
    parameters = list(inspect.signature(reward).parameters.values())
    catch_all = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if is_for_trl(reward):
        return {parameter.name: parameter for parameter in parameters if parameter.kind not in catch_all}
    if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
        raise ValueError(f"a reward takes the response first: def reward(response, *, column, ...); got {reward!r}")
    return {parameter.name: parameter for parameter in parameters[1:] if parameter.kind not in catch_all}
