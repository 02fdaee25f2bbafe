"""Lines that a person sees while a run trains."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from tinyzero_trl.trainer import TinyZeroTrainer


def test_without_a_terminal_there_is_one_plain_line_a_step(build: Any, capsys: pytest.CaptureFixture[str]) -> None:
    build(TinyZeroTrainer, max_steps=3).train()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1/3", "step 2/3", "step 3/3"]
    assert all("reward 0." in line and line.endswith(" left") and "\x1b" not in line for line in lines)


def test_transformers_own_displays_are_gone(build: Any) -> None:
    trainer = build(TinyZeroTrainer)
    kinds = {type(callback) for callback in trainer.callback_handler.callbacks}
    assert not kinds & {PrinterCallback, ProgressCallback}
