"""Rewards that are not numbers, gradients that are not finite, runs that cannot learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tinyzero_trl.failures import NumericFailure, RewardFailure
from tinyzero_trl.trainer import TinyZeroTrainer


def spoiled(bad: float | None) -> Any:
    """A reward that gives `bad` to the first completion of each batch."""

    def reward(completions: list[str], **columns: Any) -> list[float | None]:
        return [bad, *(1.0 / (1 + len(text)) for text in completions[1:])]

    return reward


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 1e38, None])
def test_a_reward_that_is_no_number_leaves_weights_finite(build: Any, bad: float | None) -> None:
    trainer = build(TinyZeroTrainer, reward_funcs=spoiled(bad), scale_rewards="none")
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    entries = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert all(abs(entry["reward"]) <= 1 for entry in entries)
    if bad is not None and not math.isnan(bad):
        assert [entry["rewards/out_of_range"] for entry in entries] == [pytest.approx(1 / 16)] * 2


def test_a_run_without_a_single_score_stops_and_shows_samples(build: Any) -> None:
    def nothing(completions: list[str], **columns: Any) -> list[None]:
        return [None] * len(completions)

    trainer = build(TinyZeroTrainer, reward_funcs=nothing, max_steps=10)
    with pytest.raises(RewardFailure, match="no reward function gave a number") as stop:
        trainer.train()
    assert trainer.state.global_step == 2
    assert str(stop.value).count("completion:") == 3


def test_a_run_in_which_nothing_earns_anything_stops_after_the_batches_the_recipe_says(build: Any) -> None:
    def zero(completions: list[str], **columns: Any) -> list[float]:
        return [0.0] * len(completions)

    with pytest.raises(RewardFailure, match="first 4 batches") as stop:
        build(TinyZeroTrainer, reward_funcs=zero, max_steps=10, give_up_after=4).train()
    assert stop.value.exit_code == 3
    build(TinyZeroTrainer, reward_funcs=zero, max_steps=5, give_up_after=0).train()


def test_penalties_that_differ_are_something_to_learn_from(build: Any) -> None:
    def penalty(completions: list[str], **columns: Any) -> list[float]:
        return [-float(len(text)) for text in completions]

    trainer = build(TinyZeroTrainer, reward_funcs=penalty, max_steps=4, give_up_after=2)
    trainer.train()
    assert trainer.state.global_step == 4


def poison(trainer: Any, *, steps: set[int]) -> None:
    """A NaN in one gradient at these steps."""
    compute = trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = compute(*args, **kwargs)
        return loss * float("nan") if trainer.state.global_step + 1 in steps else loss

    trainer.compute_loss = compute_loss


def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_and_the_next_goes_on(build: Any) -> None:
    trainer = build(TinyZeroTrainer, max_steps=3)
    poison(trainer, steps={2})
    seen: list[torch.Tensor] = []
    log = trainer.log

    def spy(logs: dict[str, float], start_time: float | None = None) -> None:
        seen.append(trainer.model.model.norm.weight.detach().clone())
        log(logs, start_time)

    trainer.log = spy
    trainer.train()
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    skipped = [entry["skipped_steps"] for entry in trainer.state.log_history if "skipped_steps" in entry]
    assert skipped == [0.0, 1.0, 0.0]


def test_three_such_steps_in_a_row_end_the_run_with_the_weights_from_before(build: Any) -> None:
    trainer = build(TinyZeroTrainer, max_steps=9)
    poison(trainer, steps={2, 3, 4})
    with pytest.raises(NumericFailure, match="3 steps in a row") as stop:
        trainer.train()
    assert stop.value.exit_code == 4
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
