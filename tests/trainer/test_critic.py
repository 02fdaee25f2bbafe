"""PPO's value model: it learns, the policy learns from it, and a resumed run has it as it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from critic_program import learned, rows
from transformers import AutoModel

from tinyzero_trl.algorithms.ppo import value_loss
from tinyzero_trl.config import CriticSettings
from tinyzero_trl.failures import NumericFailure
from tinyzero_trl.trainer import TinyZeroTrainer
from tinyzero_trl.trainer.critic import ValueLearner, ValueModel, explained_variance


def settings(**changes: Any) -> CriticSettings:
    return CriticSettings(**{"learning_rate": 3e-3, "num_minibatches": 1, "warm_start_prompts": 0, **changes})


def logged(trainer: Any, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.fixture
def learner(tiny_llama: Path) -> Callable[..., ValueLearner]:
    def make(**changes: Any) -> ValueLearner:
        torch.manual_seed(0)
        model = ValueModel(AutoModel.from_pretrained(tiny_llama, dtype=torch.float32))
        arguments = {"learning_rate": 1e-3, "clip_range": 10.0, "max_grad_norm": 0.0, "rows_at_once": 64}
        return ValueLearner(model, **{**arguments, **changes})

    return make


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in model.state_dict().values()])


def test_values_start_at_0_and_do_not_depend_on_how_rows_are_cut(learner: Any) -> None:
    batch = rows([9, 1, 5, 7])
    one = learner()
    assert not one.values(batch).any()
    for _ in range(3):
        one.learn([batch])
    many = learner(tokens_at_once=12)
    many.load(one.state())
    assert one.values(batch).abs().max() > 0
    assert torch.allclose(one.values(batch), many.values(batch), atol=1e-6)
    assert not one.values(batch)[batch["completion_mask"] == 0].any()


def test_the_value_of_a_token_does_not_see_the_token(learner: Any) -> None:
    batch = rows([6, 6])
    model = learner()
    for _ in range(3):
        model.learn([batch])
    changed = {**batch, "completion_ids": batch["completion_ids"].clone()}
    changed["completion_ids"][:, 3] = 7
    before, after = model.values(batch), model.values(changed)
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert (before[:, 4:] - after[:, 4:]).abs().max() > 1e-6


def test_a_step_on_chunks_is_the_step_on_the_mean_loss_of_all_tokens(learner: Any) -> None:
    slices = [rows([9, 1, 5, 7], seed=1), rows([2, 3], seed=2)]
    slices[0]["returns"][1] = torch.nan  # a row without a reward
    chunked, whole = learner(tokens_at_once=20), learner()
    metrics = chunked.learn(slices)
    losses = []
    for part in slices:
        values = whole.model(part)
        is_target = ~part["returns"].isnan()
        losses.append(
            value_loss(
                values[is_target],
                old_values_BT=part["values"][is_target],
                returns_BT=part["returns"][is_target],
                clip_range=10.0,
            )
        )
    loss = torch.cat(losses).mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(whole.model.parameters(), float("inf"))
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert metrics["explained_variance"] == pytest.approx(0.0, abs=1e-6)  # of values that are all 0


def test_minibatches_are_steps_on_shares_of_the_rows(learner: Any) -> None:
    batch = rows([9, 1, 5, 7, 3])
    at_once, one_by_one = learner(), learner()
    at_once.learn([batch], num_minibatches=7)  # more than there are rows: two of them have none
    for index in range(5):
        one_by_one.step([{key: value[index : index + 1] for key, value in batch.items()}])
    assert torch.allclose(flat(at_once.model), flat(one_by_one.model), atol=1e-6)


def test_explained_variance_is_the_share_of_the_variance_that_values_take_away() -> None:
    batch = rows([9, 4])
    is_target = ~batch["returns"].isnan()
    batch["values"] = torch.where(is_target, batch["returns"] * 0.5, 7.0)
    assert explained_variance([batch]) == pytest.approx(0.75)
    batch["returns"] = torch.where(is_target, 1.0, torch.nan)
    assert math.isnan(explained_variance([batch]))


def test_a_gradient_that_is_not_finite_moves_no_weight(learner: Any) -> None:
    model = learner()
    before = flat(model.model)
    with pytest.raises(NumericFailure, match=r"lower critic\.learning_rate"):
        model.learn([{**rows([3, 3]), "returns": torch.full((2, 3), torch.inf)}])
    assert torch.equal(flat(model.model), before)


def letters(completions: list[str], **columns: object) -> list[float]:
    """A reward that each token has its part in, so that a prefix says something of it: the share of lower-case letters."""
    return [sum("a" <= character <= "z" for character in text) / 8 for text in completions]


@pytest.mark.slow
@pytest.mark.nightly
def test_the_critic_learns_what_to_expect_and_then_the_policy_to_write_letters(build: Any) -> None:
    """By day: test_every_algorithm_learns_to_write_letters[ppo], without a warm start of the critic, in a quarter of the steps."""
    trainer = build(
        TinyZeroTrainer,
        reward_funcs=letters,
        algorithm="ppo",
        critic=settings(warm_start_prompts=40 * 16),
        max_steps=60,
        per_device_train_batch_size=64,
        num_generations=8,
        learning_rate=2e-2,
        lr_scheduler_type="constant",
        loss_type="dapo",
    )
    trainer.train()
    rewards, explained = logged(trainer, "reward"), logged(trainer, "critic/explained_variance")
    assert explained[0] == 0
    assert sum(explained[35:40]) / 5 > 0.2
    assert sum(rewards[-5:]) > 3 * sum(rewards[35:40])


def test_the_warm_start_moves_the_critic_and_not_the_policy(build: Any) -> None:
    # 16 rows a step with 4 generations are 4 prompts: 8 prompts are two steps.
    for num_steps, has_moved in ((2, False), (3, True)):
        trainer = build(TinyZeroTrainer, algorithm="ppo", critic=settings(warm_start_prompts=8), max_steps=num_steps)
        policy, critic = flat(trainer.model), flat(trainer.critic.learner.model)
        trainer.train()
        assert torch.equal(flat(trainer.model), policy) is not has_moved
        assert not torch.equal(flat(trainer.critic.learner.model), critic)


def test_the_divergence_from_the_reference_is_paid_for_token_by_token(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(TinyZeroTrainer, algorithm="ppo", critic=settings(), max_steps=1, beta=0.25)
    assert (trainer.beta, trainer.ref_model is None) == (0.0, False)
    monkeypatch.setattr(trainer, "policy_logps", lambda batch: trainer.reference_logps(batch) + 2.0)
    seen: list[dict[str, Any]] = []
    learn = trainer.critic.learner.learn
    monkeypatch.setattr(
        trainer.critic.learner, "learn", lambda slices, **given: seen.extend(slices) or learn(slices, **given)
    )
    trainer.train()
    (rewards,) = logged(trainer, "reward")
    first_returns = torch.cat([part["returns"][:, 0] for part in seen])
    num_tokens = torch.cat([part["completion_mask"].sum(1) for part in seen])
    # Values are 0 and lambda is 1: what is still to come at the first token is the reward less 0.25 * 2 for each token.
    assert (first_returns + 0.5 * num_tokens).mean().item() == pytest.approx(rewards, abs=1e-5)


@pytest.mark.parametrize("method", [{"num_iterations": 2}, {"steps_per_generation": 1}, {"steps_per_generation": 4}])
def test_the_critic_takes_its_steps_with_each_step_of_the_policy(build: Any, method: dict[str, int]) -> None:
    trainer = build(TinyZeroTrainer, algorithm="ppo", critic=settings(num_minibatches=2), max_steps=3, **method)
    trainer.train()
    assert len(logged(trainer, "critic/loss")) == 3
    assert {int(state["step"]) for state in trainer.critic.learner.optimizer.state_dict()["state"].values()} == {6}


def test_a_critic_that_is_loaded_goes_on_bit_for_bit(build: Any, learner: Any) -> None:
    first, second = rows([4, 2, 3], seed=1), rows([1, 5, 3], seed=2)
    through, stopped, resumed = learner(), learner(), learner(learning_rate=1e-3)
    for part in (first, second):
        through.learn([part])
    stopped.learn([first])
    resumed.load({key: {k: _copy(v) for k, v in value.items()} for key, value in stopped.state().items()})
    resumed.learn([second])
    assert torch.equal(flat(through.model), flat(resumed.model))
    trainer = build(TinyZeroTrainer, algorithm="ppo", critic=settings(), max_steps=1, num_iterations=2)
    trainer.train()
    fresh = build(TinyZeroTrainer, algorithm="ppo", critic=settings(), max_steps=1, num_iterations=2)
    state = trainer.resume_state()
    assert len(state["critic"]["rows"]) == 2  # one of two iterations is done: the rows are still needed
    fresh.load_resume_state(state)
    assert torch.equal(flat(fresh.critic.learner.model), flat(trainer.critic.learner.model))
    assert fresh.critic.num_prompts == 4


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("config", ["ddp", pytest.param("zero1", marks=pytest.mark.nightly), "zero2"])
def test_the_critics_of_two_processes_stay_the_same(config: str, launched: Callable[[str], Path]) -> None:
    run = launched(config) / "critic"
    assert (run / "critic.0").read_text() == (run / "critic.1").read_text()
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["critic/loss"] for entry in entries if "reward" in entry]
    assert len(losses) == 3
    assert all(loss > 0 for loss in losses)
    assert [entry["grad_norm"] > 0 for entry in entries if "reward" in entry] == [False, True, True]


@pytest.mark.slow
@pytest.mark.alone
def test_two_processes_learn_what_one_learns_from_the_rows_of_both(launched: Callable[[str], Path]) -> None:
    folder = launched("ddp")
    two = [torch.load(folder / f"learned.{rank}", weights_only=True) for rank in range(2)]
    assert torch.equal(*two)
    assert torch.allclose(two[0], learned(folder / "model", ranks=(0, 1)), atol=1e-5)
