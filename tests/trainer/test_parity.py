"""With every extra off our trainer is TRL's; with them on, only what they are for differs."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from tinyzero_trl.trainer import TinyZeroTrainer
from tinyzero_trl.trainer.advantages import is_constant
from tinyzero_trl.trainer.batching import Batching


def digest(trainer: Any) -> str:
    content = hashlib.sha256()
    for name, value in sorted(trainer.model.state_dict().items()):
        content.update(name.encode() + value.numpy().tobytes())
    return content.hexdigest()


def always(value: float) -> Any:
    def constant(completions: list[str], **columns: Any) -> list[float]:
        return [value] * len(completions)

    return constant


@pytest.mark.parametrize(
    "method", [{}, {"loss_type": "dr_grpo", "scale_rewards": "none"}, {"beta": 0.1, "num_iterations": 2}]
)
def test_with_every_extra_off_the_trainer_is_grpo_trainer_bit_for_bit(
    build: Any, method: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batching, "_may_deal", lambda self: False)
    digests, losses = [], []
    for trainer_class in (GRPOTrainer, TinyZeroTrainer):
        trainer = build(trainer_class, max_steps=3, **method)
        trainer.train()
        digests.append(digest(trainer))
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_even_micro_batches_change_nothing_but_rounding(
    build: Any, loss_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    for may_deal in (True, False):
        with monkeypatch.context() as patch:
            if not may_deal:
                patch.setattr(Batching, "_may_deal", lambda self: False)
            # Adam would blow rounding of gradients near 0 up to full steps.
            trainer = build(TinyZeroTrainer, max_steps=3, loss_type=loss_type, optim="sgd", learning_rate=0.1)
            trainer.train()
        weights.append(torch.cat([value.flatten() for value in trainer.model.state_dict().values()]))
    assert not torch.equal(weights[0], torch.zeros(1))
    assert (weights[0] - weights[1]).abs().max() <= 1e-6


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


def test_a_group_is_constant_when_its_scored_rewards_are_all_the_same() -> None:
    nan = float("nan")
    rewards_N = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.1, 0.1, nan, 0.3, 0.3, nan, nan, nan, nan, nan])
    assert is_constant(rewards_N, num_generations=4).view(4, 4)[:, 0].tolist() == [True, False, True, True]
