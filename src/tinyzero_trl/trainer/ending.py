"""Training ends before its last step at a signal, or when a budget of generated tokens is spent.

Ctrl-C and SIGTERM end the step, save a sealed checkpoint and stop, on all processes at the same step.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

PATIENCE_SECONDS = 2.0
"""A launcher repeats a signal to its processes at once; a person who means `now` does it later."""


class Signals(TrainerCallback):
    """The first signal stops training after the step, the second at once."""

    def __init__(self, accelerator: Any):
        self.accelerator = accelerator
        self.stopped_by = 0
        """The number of the signal that ended training, 0 if none did."""
        self._signal = 0
        self._signalled_at = 0.0

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note signals within the block, where this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal and time.monotonic() - self._signalled_at > PATIENCE_SECONDS:
            raise KeyboardInterrupt(number)
        if not self._signal:
            self._signal, self._signalled_at = number, time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        noted = torch.tensor(self._signal, device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            # A signal may reach one process and not the others; they must leave at the same step or hang.
            torch.distributed.all_reduce(noted, op=torch.distributed.ReduceOp.MAX)
        if noted.item():
            self.stopped_by = int(noted.item())
            control.should_save = True
            control.should_training_stop = True
        return control


class TokenBudget(TrainerCallback):
    """Training stops after the step that reaches the budget: methods are compared by generated tokens, which are their cost."""

    def __init__(self, max_tokens: int, num_generated: Callable[[], int]):
        """num_generated: completion tokens of all processes so far."""
        self.max_tokens = max_tokens
        self._num_generated = num_generated

    def share_left(self) -> float:
        """The share of the budget that is left, which a linear learning rate falls with."""
        return max(0.0, 1.0 - self._num_generated() / self.max_tokens)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self._num_generated() >= self.max_tokens:
            control.should_training_stop = True
            control.should_save |= args.save_strategy == "steps"  # as the last of max_steps is
        return control
