"""The verdict of a task on one response, and the record it begins, in training and in evaluation; a verifier that fails ends both with one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tinyzero_trl.failures import VerifierFailure
from tinyzero_trl.rollout import NOT_RAW, Rollout
from tinyzero_trl.task import Task, Verdict


def verdict_of(task: Task, response: str, *, row: Mapping[str, Any], is_truncated: bool) -> Verdict:
    """The verdict of `task.verify` on `response` (prefill and completion) to the problem `row`.

    Raises: VerifierFailure if `verify` raises, exits or returns no verdict: accuracy would then measure the verifier, not the model.
    """
    try:
        verdict = task.verify(response, is_truncated=is_truncated, **{column: row[column] for column in task.columns})
    except (Exception, SystemExit) as error:  # a person's verifier may do anything
        raise VerifierFailure(
            f"verify of task {task.name} raised {error!r:.200} for the response {response[-200:]!r}; "
            "it has to give a verdict on any text"
        ) from error
    if not isinstance(verdict, Verdict) or str(verdict.outcome) not in map(str, task.outcomes):
        known = ", ".join(map(str, task.outcomes))
        raise VerifierFailure(
            f"verify of task {task.name} returned {verdict!r:.200} for the response {response[-200:]!r}; it has to return a "
            f"Verdict with one of the task's outcomes: {known}"
        )
    return verdict


def verified(
    task: Task,
    row: Mapping[str, Any],
    *,
    completion: str,
    num_completion_tokens: int,
    is_truncated: bool,
    **origin: Any,
) -> Rollout:
    """The record of a completion to a worded row (columns of the task, prompt, prefill), with its verdict, not scored yet.

    origin: fields of Rollout that say where it comes from.
    Raises: VerifierFailure.
    """
    prompt, prefill = row["prompt"], row.get("prefill") or ""
    return Rollout(
        row={name: value for name, value in row.items() if name not in NOT_RAW},
        prompt=prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False),
        prefill=prefill,
        completion=completion,
        num_completion_tokens=num_completion_tokens,
        is_truncated=is_truncated,
        verdict=verdict_of(task, prefill + completion, row=row, is_truncated=is_truncated),
        **origin,
    )
