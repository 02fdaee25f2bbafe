"""The algorithms in the trainer: what reaches the loss, what the recipe must say, that each learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from estimators_program import all_advantages

from tinyzero_trl.algorithms import ALGORITHMS
from tinyzero_trl.config import check_method, compose
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.generation.transformers_rollout import transformers_rollout
from tinyzero_trl.trainer import TinyZeroTrainer

SETTINGS: dict[str, dict[str, Any]] = {
    "rloo": {"loss_type": "dr_grpo"},
    "remax": {"loss_type": "dr_grpo"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
}


def scored_by(trainer: Any) -> list[dict[str, Any]]:
    """The batches a trainer makes of its rollouts, as it trains."""
    batches: list[dict[str, Any]] = []
    score = trainer._generate_and_score_completions

    def noted(inputs: Any) -> Any:
        batches.append({**score(inputs), "rewards_N": trainer.rewards_NF.nansum(1)})
        return batches[-1]

    trainer._generate_and_score_completions = noted
    return batches


def plain_letters(completions: list[str], **columns: Any) -> list[float]:
    """The share of the eight tokens that are ASCII letters: random weights begin at a fifth."""
    return [sum(char.isascii() and char.isalpha() for char in text) / 8 for text in completions]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_learns_to_write_letters(build: Any, algorithm: str) -> None:
    trainer = build(
        TinyZeroTrainer,
        algorithm=algorithm,
        rollout_func=transformers_rollout,
        reward_funcs=plain_letters,
        max_steps=16,
        learning_rate=1e-2,
        per_device_train_batch_size=16,
        **SETTINGS.get(algorithm, {}),
    )
    trainer.critic_settings.warm_start_prompts = 0
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.05


def test_whitened_advantages_have_mean_0_and_deviation_1(build: Any) -> None:
    for algorithm, whitening in (("reinforce", None), ("rloo", "batch"), ("reinforce_pp", None)):
        trainer = build(TinyZeroTrainer, algorithm=algorithm, advantage_whitening=whitening, max_steps=1)
        batches = scored_by(trainer)
        trainer.train()
        batch = batches[0]
        values = batch["advantages"]
        values = values[values != 0] if values.dim() == 1 else values[batch["completion_mask"].bool()]
        assert values.mean().abs() < 1e-5
        assert values.std(unbiased=False) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "rloo", "raft"])
def test_whitening_leaves_constant_groups_at_zero(build: Any, algorithm: str) -> None:
    def half(completions: list[str], **columns: Any) -> list[float]:
        return [0.1 if index < 8 else len(text) * index for index, text in enumerate(completions)]

    settings: dict[str, Any] = {"advantage_whitening": "batch", "reward_funcs": half, "max_steps": 1}
    trainer = build(TinyZeroTrainer, algorithm=algorithm, **settings)
    batches = scored_by(trainer)
    trainer.train()
    assert batches[0]["advantages"][:8].count_nonzero() == 0
    assert batches[0]["advantages"][8:].count_nonzero() > 0


def test_small_rewards_are_whitened_as_large_ones_are(build: Any) -> None:
    def small(completions: list[str], **columns: Any) -> list[float]:
        return [1e-6 * (index % 3) for index in range(len(completions))]

    trainer = build(TinyZeroTrainer, algorithm="reinforce", reward_funcs=small, max_steps=1)
    batches = scored_by(trainer)
    trainer.train()
    assert batches[0]["advantages"].std(unbiased=False) == pytest.approx(1, abs=0.02)


def test_a_truncated_completion_that_is_masked_out_still_pays_for_its_length(build: Any) -> None:
    def always(completions: list[str], **columns: Any) -> list[float]:
        return [1.0] * len(completions)

    settings: dict[str, Any] = {"advantage_whitening": "none", "reward_funcs": always, "max_steps": 1}
    trainer = build(
        TinyZeroTrainer, algorithm="reinforce", soft_overlong_tokens=4, mask_truncated_completions=True, **settings
    )
    batches = scored_by(trainer)
    trainer.train()
    is_masked = batches[0]["completion_mask"].sum(1) == 0
    assert is_masked.any()
    assert batches[0]["advantages"][is_masked].count_nonzero() == 0  # 1 - 1


@pytest.mark.parametrize("algorithm", ["rloo", "reinforce", "remax", "reinforce_pp"])
def test_the_divergence_is_in_the_reward_where_the_method_has_it_there(build: Any, algorithm: str) -> None:
    settings = {"rollout_func": transformers_rollout, "advantage_whitening": "none", "max_steps": 2}
    trainer = build(TinyZeroTrainer, algorithm=algorithm, beta=0.5, learning_rate=1e-2, **settings)
    assert (trainer.beta, trainer.kl_in_reward) == (0.0, 0.5)
    assert trainer.ref_model is not None
    batches = scored_by(trainer)
    trainer.train()
    first, second = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert abs(first) < 1e-5
    assert abs(second) > 1e-4
    batch = batches[1]
    if algorithm == "reinforce":
        mask = batch["completion_mask"].bool()
        log_ratio = batch["sampling_per_token_logps"] - trainer.reference_logps(batch)
        expected = batch["rewards_N"] - 0.5 * torch.where(mask, log_ratio, 0).sum(1)
        assert torch.allclose(batch["advantages"], expected, atol=1e-5)


def test_remax_counts_its_greedy_rollouts_and_shows_them_in_no_other_metric(build: Any) -> None:
    settings: dict[str, Any] = {"rollout_func": transformers_rollout, "max_steps": 1}
    plain = build(TinyZeroTrainer, algorithm="reinforce", **settings)
    plain.train()
    remax = build(TinyZeroTrainer, algorithm="remax", **settings)
    remax.train()
    ours, theirs = (next(e for e in t.state.log_history if "reward" in e) for t in (remax, plain))
    for name in ("reward", "completions/mean_length", "rewards/shortness/mean"):
        assert ours[name] == theirs[name]
    assert remax.num_generated_tokens > plain.num_generated_tokens
    assert ours["num_tokens"] > theirs["num_tokens"]
    assert 0 < ours["reward_greedy"] <= 1


def test_the_overlong_penalty_is_part_of_what_is_learned_from(build: Any) -> None:
    def always(completions: list[str], **columns: Any) -> list[float]:
        return [1.0] * len(completions)

    trainer = build(
        TinyZeroTrainer,
        algorithm="reinforce",
        advantage_whitening="none",
        reward_funcs=always,
        soft_overlong_tokens=4,
        max_steps=1,
    )
    batches = scored_by(trainer)
    trainer.train()
    lengths = batches[0]["completion_mask"].sum(1)
    assert torch.allclose(batches[0]["advantages"], 1 + ((4 - lengths) / 4).clamp(-1, 0))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["algorithm=gspo"], "algorithm gspo needs trainer.loss_type=grpo trainer.importance_sampling_level=sequence"),
        (["algorithm=dapo"], "algorithm dapo needs trainer.loss_type=dapo trainer.scale_rewards=group trainer.epsilon_high=0.28"),
        (["algorithm=rloo", "trainer.scale_rewards=group"], "algorithm rloo needs trainer.scale_rewards=none"),
        (["algorithm=ppo", "trainer.importance_sampling_level=sequence", "trainer.loss_type=sapo"],
         "algorithm ppo needs trainer.loss_type=dapo trainer.importance_sampling_level=token"),
        (["algorithm=reinforce", "trainer.loss_type=grpo"], "algorithm reinforce needs trainer.loss_type=dr_grpo"),
        (["algorithm=raft", "trainer.steps_per_generation=8"], "algorithm raft needs trainer.steps_per_generation=4"),
        (["algorithm=raft", "replay.num_groups=8"], "algorithm raft needs replay.num_groups=0"),
        (["advantage_whitening=batch", "trainer.multi_objective_aggregation=normalize_then_sum"],
         "advantage_whitening=batch with trainer.multi_objective_aggregation=normalize_then_sum"),
        (["soft_overlong_tokens=9", "trainer.multi_objective_aggregation=normalize_then_sum"],
         "soft_overlong_tokens=9 with trainer.multi_objective_aggregation=normalize_then_sum"),
        (["algorithm=rlo"], "there is no algorithm 'rlo'; .* did you mean rloo"),
        (["advantage_whitening=group"], "advantage_whitening: there is no 'group'; there is none, batch"),
        (["soft_overlong_tokens=256"], "soft_overlong_tokens must be at least 0 and less than .* 256, got 256"),
    ],
)  # fmt: skip
def test_a_recipe_that_is_not_what_it_says_is_refused_with_what_to_set(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_method(compose(["+countdown=grpo-tiny", *words]))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_has_a_recipe_for_the_tiny_model(algorithm: str) -> None:
    cfg = compose([f"+countdown={algorithm}-tiny"])
    assert cfg.algorithm == algorithm
    check_method(cfg)


@pytest.mark.slow
@pytest.mark.alone
def test_two_processes_have_the_advantages_that_one_has(launched: Callable[[str], Path]) -> None:
    one = all_advantages(Accelerator(cpu=True))
    two = torch.load(launched("ddp") / "advantages.pt", weights_only=True)
    assert len(one) == 54
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-6), name
        assert torch.equal(one[name] == 0, two[name] == 0), name
        assert one[name].isfinite().all()
