"""A verifier of one's own that fails: training and evaluation end with one line, exit code 3."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tinyzero_trl.failures import VerifierFailure
from tinyzero_trl.rewards.verdict import verdict_of
from tinyzero_trl.task import Outcome, Verdict
from tinyzero_trl.tasks import TASKS

COUNTDOWN = TASKS["countdown"]
ROW = {"nums": [1, 2, 3], "target": 6, "prompt": "...", "prefill": "<think>"}
RIGHT = "<think> x </think>\n<answer>1 + 2 + 3</answer>"


def fails(response: str, **columns: Any) -> Any:
    return 1 / 0


def leaves(response: str, **columns: Any) -> Any:
    raise SystemExit(0)


def test_a_verdict_is_the_tasks_own() -> None:
    assert verdict_of(COUNTDOWN, RIGHT, row=ROW, is_truncated=False).outcome is Outcome.correct


@pytest.mark.parametrize(
    ("verify", "message"),
    [
        (fails, "verify of task countdown raised ZeroDivisionError('division by zero') for the response"),
        (leaves, "verify of task countdown raised SystemExit(0) for the response"),
        (lambda response, **columns: None, "verify of task countdown returned None for the response"),
        (lambda response, **columns: float("nan"), "verify of task countdown returned nan"),
        (lambda response, **columns: "correct", "verify of task countdown returned 'correct'"),
        (lambda response: None, "verify of task countdown raised TypeError("),
        (
            lambda response, **columns: Verdict(Outcome.undecided),
            "with one of the task's outcomes: no_answer, bad_format",
        ),
    ],
)
def test_a_verifier_that_gives_no_verdict_is_told_with_the_response(verify: Any, message: str) -> None:
    with pytest.raises(VerifierFailure) as error:
        verdict_of(replace(COUNTDOWN, verify=verify), RIGHT, row=ROW, is_truncated=False)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 3
