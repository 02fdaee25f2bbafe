"""Rewards any task may use, and the lift from "one response" to TRL's batch signature."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from tinyzero_trl.answer import split_response
from tinyzero_trl.task import Outcome, RewardFn, Verdict

logger = logging.getLogger(__name__)


def exact_format(response: str) -> float:
    """1.0 where the response is exactly one thought and one answer (`Parts.is_exact`), else 0.0."""
    return float(split_response(response).is_exact)


def ladder(verdict: Verdict) -> float:
    """1.0 where solved, 0.1 for a complete answer that is wrong, 0.0 without one.

    Source: Jiayi-Pan/TinyZero, verl/utils/reward_score/countdown.py. We read the answer by our own rule (it needs a
    closed thought, and one block only) where TinyZero takes the last block of the last line.
    """
    if verdict.outcome is Outcome.correct:
        return 1.0
    return 0.0 if verdict.answer is None else 0.1


def columns_of(reward: RewardFn) -> tuple[str, ...]:
    """The columns a row must have for `reward`: its parameters after the response that have no default."""
    return tuple(key for key, parameter in _columns(reward).items() if parameter.default is inspect.Parameter.empty)


def for_trl(
    reward: RewardFn, *, name: str, low: float = -100.0, high: float = 100.0
) -> Callable[..., list[float | None]]:
    """`reward` over a batch, as TRL calls it: (prompts, completions, **columns) -> one number or None per sample.

    The response is the row's `prefill` (none: "") plus the completion, a text or chat messages. The reward gets only
    the columns that its signature names. One sample never ends the run: a completion of another shape earns 0.0; a
    reward that raises, is not a number, not finite or outside [low, high] becomes None (TRL leaves it out of the
    group). Each kind of trouble is logged once; the share of such samples is the metric `rewards/<name>/rejected`.
    """
    parameters = _columns(reward)
    required = columns_of(reward)
    reported: set[str] = set()

    def report(kind: str, detail: str) -> None:
        if kind not in reported:
            reported.add(kind)
            logger.warning("reward %s: %s (logged once)", name, detail)

    def score(response: str, columns: dict[str, Any]) -> float | None:
        try:
            earned = reward(response, **columns)
            if earned is None:
                return None
            number = float(earned) if not isinstance(earned, str) else math.nan
        except Exception as error:  # a custom reward may raise anything; training goes on without this sample
            report(type(error).__name__, f"raised {error!r} for {response[-200:]!r}")
            return math.nan
        if math.isfinite(number) and low <= number <= high:
            return number
        report("range", f"returned {earned!r}, which is not a number in [{low:g}, {high:g}], for {response[-200:]!r}")
        return math.nan

    def batch(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        if missing := [key for key in required if key not in columns]:
            raise ValueError(f"reward {name} reads {missing}, which the rows do not have; they have {sorted(columns)}")
        prefills = columns.get("prefill") or [""] * len(completions)
        scores: list[float | None] = []
        num_rejected = 0
        for index, completion in enumerate(completions):
            text = text_of(completion)
            if text is None:
                report("shape", f"a completion is neither text nor messages with content: {completion!r:.200}")
                scores.append(0.0)
                num_rejected += 1
                continue
            row = {key: columns[key][index] for key in parameters if key in columns}
            earned = score((prefills[index] or "") + text, row)
            if earned is not None and math.isnan(earned):
                earned = None
                num_rejected += 1
            scores.append(earned)
        if log_metric is not None:
            log_metric(f"rewards/{name}/rejected", num_rejected / max(len(scores), 1))
        return scores

    batch.__name__ = name
    return batch


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
    """The parameters of `reward` after the response, by name; raises ValueError on a signature that is no reward's."""
    parameters = list(inspect.signature(reward).parameters.values())
    if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
        raise ValueError(f"a reward takes the response first: def reward(response, *, column, ...); got {reward!r}")
    catch_all = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {parameter.name: parameter for parameter in parameters[1:] if parameter.kind not in catch_all}
