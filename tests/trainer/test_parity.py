"""With every extra off our trainer is TRL's; with them on, only what they are for differs."""

from __future__ import annotations

from typing import Any

import pytest
from forced_runs import SAMPLED, always, digest, forced, now_and_then, trained
from trl import GRPOTrainer

from tinyzero_trl.settings import BatchingSettings
from tinyzero_trl.trainer import TinyZeroTrainer

OFF = BatchingSettings(False, False, None, False, False)


def largest_difference(build: Any, *, batching: BatchingSettings | None = None, **settings: Any) -> float:
    """Between the parameters that TRL's trainer and ours end with, on the same completions."""
    settings = SAMPLED | settings
    theirs = trained(forced(build(GRPOTrainer, reward_funcs=now_and_then, **settings)))
    ours = trained(forced(build(TinyZeroTrainer, reward_funcs=now_and_then, batching=batching, **settings)))
    return float((theirs - ours).abs().max())


@pytest.mark.parametrize(
    "method", [{}, {"loss_type": "dr_grpo", "scale_rewards": "none"}, {"beta": 0.1, "num_iterations": 2}]
)
def test_with_every_extra_off_the_trainer_is_grpo_trainer_bit_for_bit(build: Any, method: dict[str, Any]) -> None:
    digests, losses = [], []
    for trainer_class, extras in ((GRPOTrainer, {}), (TinyZeroTrainer, {"batching": OFF})):
        trainer = build(trainer_class, max_steps=3, **extras, **method)
        trainer.train()
        digests.append(digest(trainer))
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "sapo", "luspo", "cispo", "bnpo", "vespo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_chunks_change_nothing_but_rounding_whatever_the_loss(build: Any, loss_type: str, level: str) -> None:
    settings = {"loss_type": loss_type, "importance_sampling_level": level}
    assert largest_difference(build, num_iterations=2, **settings) <= 1e-6


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize(("accumulation", "steps"), [(2, 2), (2, 4), (4, 2), (3, 2), (1, 4)])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_chunks_change_nothing_however_generation_and_accumulation_interlock(
    build: Any, accumulation: int, steps: int, iterations: int, loss_type: str
) -> None:
    settings = {"gradient_accumulation_steps": accumulation, "steps_per_generation": steps}
    assert largest_difference(build, loss_type=loss_type, num_iterations=iterations, **settings) <= 1e-6


@pytest.mark.parametrize(
    "batching",
    [
        BatchingSettings(True, False, None, False, False),
        BatchingSettings(False, True, None, False, False),
        BatchingSettings(False, False, None, True, False),
        BatchingSettings(False, False, 60, False, False),
        BatchingSettings(True, True, 40, True, False),
        BatchingSettings(True, True, None, False, False),
        BatchingSettings(True, True, None, True, True),
    ],
    ids=["skip", "sort", "fold", "budget", "small", "unfolded", "packed"],
)
def test_each_setting_alone_changes_nothing_but_rounding(build: Any, batching: BatchingSettings) -> None:
    settings = {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2}
    assert largest_difference(build, batching=batching, **settings) <= 1e-6


def test_with_a_kl_term_all_rows_are_dealt_and_none_is_dropped(build: Any) -> None:
    assert largest_difference(build, beta=0.1, num_iterations=2, steps_per_generation=4) <= 1e-6


def test_truncated_completions_that_are_masked_out_cost_nothing_and_change_nothing(build: Any) -> None:
    assert largest_difference(build, mask_truncated_completions=True, loss_type="grpo") <= 1e-6


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("num_generations", [4, 8])
def test_constant_rewards_move_no_weight_whatever_the_constant(build: Any, value: float, num_generations: int) -> None:
    trainer = build(TinyZeroTrainer, reward_funcs=always(value), num_generations=num_generations, beta=0.0)
    before = digest(trainer)
    trainer.train()
    assert digest(trainer) == before
    assert [e["frac_reward_zero_std"] for e in trainer.state.log_history if "reward" in e] == [1.0, 1.0]


def test_trl_itself_moves_weights_on_constant_rewards(build: Any) -> None:
    """If this fails, TRL mends it itself and trainer/advantages.py can go."""
    trainer = build(GRPOTrainer, reward_funcs=always(0.1), num_generations=8)
    before = digest(trainer)
    trainer.train()
    assert digest(trainer) != before
