"""The verdict of a task on one response, in training and in evaluation; a verifier that fails ends the run with one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyzero_trl.failures import VerifierFailure
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
