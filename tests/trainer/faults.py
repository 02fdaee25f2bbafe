"""The seam that tests put faults into a run by: one line says what goes wrong, before which method, in which step."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NoReturn


def at(trainer: Any, method: str, *, step: int, do: Callable[[], Any]) -> None:
    """`do` is called before `method` of the trainer is, while optimizer step `step` (from 1) is under way or being saved."""
    whole = getattr(trainer, method)

    def with_fault(*args: Any, **kwargs: Any) -> Any:
        # The step counts as made once it is saved; a model in training mode makes the one after.
        if trainer.state.global_step + (method in DURING) == step:
            do()
        return whole(*args, **kwargs)

    setattr(trainer, method, with_fault)


DURING = ("training_step", "_generate", "_calculate_rewards", "compute_loss", "_get_grad_norm")
"""Methods that run before the step is counted."""


def fails(error: BaseException) -> Callable[[], NoReturn]:
    """A fault that is an exception."""

    def fault() -> NoReturn:
        raise error

    return fault


def signals(number: int) -> Callable[[], None]:
    """A fault that is a signal to this process."""
    return lambda: os.kill(os.getpid(), number)
