"""Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from tinyzero_trl.storage import manifest
from tinyzero_trl.trainer import TinyZeroTrainer


class SendAt(TrainerCallback):
    """Sends this process signals while a step is under way."""

    def __init__(self, *signals: int, step: int):
        self.signals, self.step = signals, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            for number in self.signals:
                os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_leaves_a_sealed_checkpoint(build: Any, number: int) -> None:
    """T-5."""
    before = signal.getsignal(number)
    trainer = build(TinyZeroTrainer, max_steps=9, callbacks=[SendAt(number, number, step=3)])
    trainer.train()
    assert trainer.interrupted_by == number
    assert trainer.state.global_step == 3
    assert manifest.newest_usable(Path(trainer.args.output_dir)).path == Path(trainer.args.output_dir) / "checkpoint-3"
    assert signal.getsignal(number) is before


def test_a_second_signal_after_a_while_stops_at_once(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """T-7."""
    monkeypatch.setattr("tinyzero_trl.trainer.ending.PATIENCE_SECONDS", -1.0)
    trainer = build(TinyZeroTrainer, max_steps=9, callbacks=[SendAt(signal.SIGINT, signal.SIGINT, step=3)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 2
