"""Runs that end with their tokens: the step that reaches the budget is the last, and the learning rate falls to it."""

from __future__ import annotations

from typing import Any

import pytest

from tinyzero_trl.trainer import TinyZeroTrainer


def test_a_run_stops_with_the_step_that_reaches_its_budget_and_its_rate_falls_with_the_tokens(build: Any) -> None:
    trainer = build(TinyZeroTrainer, max_steps=50, max_generated_tokens=500, learning_rate=1e-3)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "reward" in entry]
    spent = [entry["generated_tokens"] for entry in entries]
    assert spent == sorted(spent)
    assert spent[-2] < 500 <= spent[-1] == trainer.num_generated_tokens
    assert len(entries) < 50
    lengths = [entry["completions/mean_length"] * 16 for entry in entries]
    assert spent[-1] == pytest.approx(sum(lengths))
    for entry, before in zip(entries, [0, *spent], strict=False):
        assert entry["learning_rate"] == pytest.approx(1e-3 * (1 - before / 500))


def test_the_count_goes_on_in_a_resumed_run(build: Any) -> None:
    trainer = build(TinyZeroTrainer, max_generated_tokens=500)
    trainer.num_generated_tokens = 321
    again = build(TinyZeroTrainer, max_generated_tokens=500)
    again.load_resume_state(trainer.resume_state())
    assert again.num_generated_tokens == 321
