"""With every extra off our trainer is TRL's; with them on, only what they are for differs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forced_runs import SAMPLED, always, digest, forced, now_and_then, trained
from trl import GRPOTrainer, RLOOTrainer

from tinyzero_trl.config import BatchingSettings
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
    """If this fails, TRL mends it itself and `zeroed` in algorithms/groups.py can go."""
    trainer = build(GRPOTrainer, reward_funcs=always(0.1), num_generations=8)
    before = digest(trainer)
    trainer.train()
    assert digest(trainer) != before


def two_rewards(value: float) -> list[Any]:
    """One that is constant everywhere, and one that is constant in each group, 0.1 in half of them."""

    def by_group(prompts: list[str], **columns: Any) -> list[float]:
        return [0.1 if int(prompt.split()[0]) % 2 else value for prompt in prompts]

    return [always(0.7), by_group]


def test_each_reward_normalised_alone_makes_no_signal_of_rounding_either(build: Any) -> None:
    """TRL divides what rounding leaves of 0.1 and 0.3 by its own deviation, and trains on advantages of about 1."""
    settings = {
        "reward_funcs": two_rewards(0.3),
        "num_generations": 6,
        "per_device_train_batch_size": 12,
        "multi_objective_aggregation": "normalize_then_sum",
    }
    moved = []
    for trainer_class in (GRPOTrainer, TinyZeroTrainer):
        trainer = build(trainer_class, beta=0.0, **settings)
        before = digest(trainer)
        trainer.train()
        moved.append(digest(trainer) != before)
    assert moved == [True, False]


def test_each_reward_normalised_alone_is_trls_where_there_is_signal(build: Any) -> None:
    settings = {
        **SAMPLED,
        "reward_funcs": [now_and_then, always(0.5)],
        "multi_objective_aggregation": "normalize_then_sum",
    }
    theirs = trained(forced(build(GRPOTrainer, **settings)))
    ours = trained(forced(build(TinyZeroTrainer, **settings)))
    assert (theirs - ours).abs().max() <= 1e-6


@pytest.mark.parametrize("method", [{"scale_rewards": "batch"}, {"multi_objective_aggregation": "normalize_then_sum"}])
def test_the_share_of_constant_groups_is_that_of_groups_whatever_scales(build: Any, method: dict[str, str]) -> None:
    """TRL's says 0 here: it looks at the deviation of the whole batch."""
    trainer = build(TinyZeroTrainer, reward_funcs=now_and_then, max_steps=1, **method)
    trainer.train()
    (share,) = [entry["frac_reward_zero_std"] for entry in trainer.state.log_history if "reward" in entry]
    assert 0 < share < 1


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_rloo_is_trls_rloo_trainer(build: Any, beta: float) -> None:
    """Its loss is a sum over tokens, ours the same over max_completion_length: SGD makes that a learning rate."""
    shared = {"num_generations": 4, "optim": "sgd", "max_steps": 3, "beta": beta, "max_grad_norm": 0.0}
    shared |= {"max_completion_length": 16, "reward_funcs": now_and_then}
    stock = forced(build(RLOOTrainer, learning_rate=0.02, lr_scheduler_type="constant", **shared))
    with_logps = stock._generate_single_turn
    stock._generate_single_turn = lambda *arguments, **options: with_logps(*arguments, **options)[0]
    theirs = trained(stock)
    method: dict[str, Any] = {"algorithm": "rloo", "loss_type": "dr_grpo", "scale_rewards": "none"}
    trainer = build(TinyZeroTrainer, learning_rate=0.02 * 16, lr_scheduler_type="constant", **method, **shared)
    before = torch.cat([value.flatten().clone() for value in trainer.model.state_dict().values()])
    ours = trained(forced(trainer))
    assert (theirs - before).abs().max() > 1e-3
    assert (theirs - ours).abs().max() <= 1e-6
    kl = [[entry["kl"] for entry in t.state.log_history if "kl" in entry] for t in (stock, trainer)]
    assert len(kl[0]) == (3 if beta else 0)
    assert kl[1] == pytest.approx(kl[0], abs=1e-6)
