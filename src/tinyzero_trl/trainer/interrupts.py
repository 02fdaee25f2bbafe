"""Ctrl-C and SIGTERM end the step, save a sealed checkpoint and stop, on all processes at the same step."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer

PATIENCE_SECONDS = 2.0
"""A launcher repeats a signal to its processes at once; a person who means `now` does it later."""


class Interrupts(GRPOTrainer):
    """`train` that answers the first signal by stopping after the step, and the second by stopping at once."""

    interrupted_by: int = 0
    """The number of the signal that ended training, 0 if none did."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._signal = 0
        self._signalled_at = 0.0
        super().__init__(*args, **kwargs)
        self.add_callback(_StopAfterStep(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return super().train(*args, **kwargs)
        previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return super().train(*args, **kwargs)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal and time.monotonic() - self._signalled_at > PATIENCE_SECONDS:
            raise KeyboardInterrupt(number)
        if not self._signal:
            self._signal, self._signalled_at = number, time.monotonic()


class _StopAfterStep(TrainerCallback):
    def __init__(self, trainer: Interrupts):
        self.trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        noted = torch.tensor(self.trainer._signal, device=self.trainer.accelerator.device)
        if self.trainer.accelerator.num_processes > 1:
            # One process may have been told and not the others; they must leave at the same step or hang.
            torch.distributed.all_reduce(noted, op=torch.distributed.ReduceOp.MAX)
        if noted.item():
            self.trainer.interrupted_by = int(noted.item())
            control.should_save = True
            control.should_training_stop = True
        return control
