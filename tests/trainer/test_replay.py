"""Solved groups come again where others teach nothing, weighed by how far the policy has moved from the one that wrote them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tinyzero_trl.config import BatchingSettings, ReplaySettings
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.generation.transformers_rollout import transformers_rollout
from tinyzero_trl.trainer import TinyZeroTrainer
from tinyzero_trl.trainer.batches import groups_with_signal
from tinyzero_trl.trainer.logprobs import sampling_metrics

GROUP = 4


class Rewards:
    """Alternating rewards in the groups that are to teach, 0 elsewhere."""

    def __init__(self) -> None:
        self.teaches = [True] * 4
        self.__name__ = "rewards"

    def __call__(self, completions: list[Any], **columns: Any) -> list[float]:
        return [float(i % 2) * self.teaches[i // GROUP] for i in range(len(completions))]


@pytest.fixture
def make(build: Any) -> Any:
    def made(**settings: Any) -> Any:
        rewards = Rewards()
        values = {
            "rollout_func": transformers_rollout,
            "replay": ReplaySettings(num_groups=3, max_age=2),
            "loss_type": "dr_grpo",
            "scale_rewards": "none",
            **settings,
        }
        trainer = build(TinyZeroTrainer, reward_funcs=rewards, **values)
        trainer.model.train()
        trainer.rewards = rewards
        return trainer

    return made


def generate(trainer: Any, teaches: list[bool]) -> dict[str, Any]:
    trainer.rewards.teaches = teaches
    scored: dict[str, Any] = trainer._generate_and_score_completions(
        [trainer.train_dataset[n] for n in range(4) for _ in range(GROUP)]
    )
    return scored


def completions(batch: dict[str, Any], rows: Any = slice(None)) -> list[list[int]]:
    ids, mask = batch["completion_ids"][rows], batch["completion_mask"][rows].bool()
    return [row[used].tolist() for row, used in zip(ids, mask, strict=True)]


def test_groups_without_signal_make_room_for_the_last_solved_ones(make: Any) -> None:
    trainer = make()
    first = generate(trainer, [True, False, True, True])
    assert "is_replayed" not in first, "nothing was solved before"
    second = generate(trainer, [False, True, True, False])
    is_replayed = second["is_replayed"]
    assert is_replayed.sum() == 2 * GROUP
    assert completions(second, is_replayed) == completions(first, slice(12, 16)) + completions(first, slice(8, 12))
    assert torch.equal(second["advantages"][is_replayed], first["advantages"][[*range(12, 16), *range(8, 12)]])
    assert groups_with_signal(second["advantages"], num_generations=GROUP).all()
    assert second["num_items_in_batch"] == second["completion_mask"].sum()
    assert trainer._metrics["train"]["replay/groups"] == [0, 2]
    third = generate(trainer, [False, False, False, False])
    again = completions(third, third["is_replayed"])
    assert len(again) == 3 * GROUP, "three are kept, each comes once"
    assert again[: 2 * GROUP] == completions(second, slice(4, 8)) + completions(second, slice(0, 4))
    assert again[2 * GROUP :] == completions(first, slice(0, 4))


def test_old_policy_of_a_replayed_row_is_the_one_that_wrote_it(make: Any) -> None:
    trainer = make()
    first = generate(trainer, [True] * 4)
    second = generate(trainer, [True, True, True, False])
    is_replayed = second["is_replayed"]
    old = second["old_per_token_logps"]
    width = min(old.shape[1], first["completion_ids"].shape[1])
    assert torch.equal(old[is_replayed][:, :width], first["sampling_per_token_logps"][12:][:, :width])
    assert old[~is_replayed].isnan().all(), "the current policy, which the loss will know"


def test_a_group_is_forgotten_when_it_is_too_old(make: Any) -> None:
    trainer = make()
    generate(trainer, [True] * 4)
    assert len(trainer.replay.kept) == 3
    trainer.state.global_step = 3
    assert "is_replayed" not in generate(trainer, [False] * 4)
    assert trainer.replay.kept == []


@pytest.mark.parametrize("accumulation", [2, 1])
def test_the_gradient_is_the_one_of_clipped_importance_weights(make: Any, accumulation: int) -> None:
    """Against the formula: min(r A, clip(r) A) with r = pi_now / pi_behaviour for rows that came again, 1 for the others."""
    trainer = make(max_completion_length=8, beta=0.0, gradient_accumulation_steps=accumulation, steps_per_generation=2)
    generate(trainer, [True] * 4)
    with torch.no_grad():  # the policy moves on
        torch.manual_seed(3)
        for weight in trainer.model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    batch = generate(trainer, [True, False, False, True])
    trainer.current_gradient_accumulation_steps = accumulation
    trainer.model.zero_grad()
    trainer._compute_loss(trainer.model, batch).backward()
    gradients = torch.cat([weight.grad.flatten() for weight in trainer.model.parameters()])

    trainer.model.zero_grad()
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask_BT = batch["completion_mask"]
    logits = trainer.model(ids, attention_mask=torch.cat([batch["prompt_mask"], mask_BT], 1)).logits
    logps_BT = torch.log_softmax(logits, -1)[:, -mask_BT.shape[1] - 1 : -1].gather(
        2, batch["completion_ids"][:, :, None]
    )[:, :, 0]
    behaviour_BT = torch.where(batch["is_replayed"][:, None], batch["sampling_per_token_logps"], logps_BT.detach())
    ratio_BT = (logps_BT - behaviour_BT).exp()
    assert (ratio_BT[batch["is_replayed"]] * mask_BT[batch["is_replayed"]] > 1.2).any(), "clipping is put to the test"
    advantages_B1 = batch["advantages"][:, None]
    terms_BT = torch.minimum(ratio_BT * advantages_B1, ratio_BT.clamp(0.8, 1.2) * advantages_B1) * mask_BT
    (-terms_BT.sum() / (len(ids) * 8) / accumulation).backward()
    expected = torch.cat([weight.grad.flatten() for weight in trainer.model.parameters()])
    assert expected.abs().max() > 1e-3
    assert torch.allclose(gradients, expected, atol=1e-6)


def test_what_is_kept_survives_a_resume(make: Any) -> None:
    whole, resumed = make(), make()
    generate(whole, [True] * 4)
    tensors = [tensor for kept in whole.resume_state()["replay"] for tensor in kept["rows"].values()]
    assert all(tensor.is_contiguous() for tensor in tensors), "safetensors writes no views"
    resumed.load_resume_state(whole.resume_state())
    expected, got = (generate(trainer, [True, False, False, True]) for trainer in (whole, resumed))
    for key in ("prompt_ids", "completion_ids", "advantages", "old_per_token_logps", "is_replayed"):
        assert torch.equal(expected[key].nan_to_num(), got[key].nan_to_num())


def test_a_run_with_replay_trains_and_says_how_much_came_again(make: Any) -> None:
    trainer = make(max_steps=3)
    trainer.rewards.teaches = [True, False, True, False]
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert [entry["replay/groups"] for entry in entries] == [0, 2, 2]
    assert all(entry["grad_norm"] > 0 for entry in entries)


def flat(trainer: Any) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in trainer.model.state_dict().values()])


@pytest.mark.parametrize("cycle", [{}, {"num_iterations": 2}, {"steps_per_generation": 4}])
def test_replay_learns_the_same_whether_rows_are_dealt_anew_or_stay_where_trl_has_them(
    make: Any, cycle: dict[str, int]
) -> None:
    weights = []
    for batching in (BatchingSettings(), BatchingSettings(False, False, None, False, False)):
        trainer = make(
            max_steps=6, optim="sgd", learning_rate=2.0, batching=batching, per_device_train_batch_size=4, **cycle
        )
        trainer.rewards.teaches = [True, False] * 4
        before = flat(trainer)
        trainer.train()
        assert any(entry.get("replay/groups") for entry in trainer.state.log_history)
        weights.append(flat(trainer))
    moved = (weights[0] - before).abs().max()
    assert (weights[0] - weights[1]).abs().max() < 1e-4 * moved


def test_without_sampling_log_probabilities_replay_is_refused(make: Any) -> None:
    trainer = make(rollout_func=None)
    with pytest.raises(ConfigError, match="needs the log-probabilities completions were sampled with"):
        generate(trainer, [True] * 4)


def test_without_replay_nothing_is_kept(make: Any) -> None:
    trainer = make(replay=ReplaySettings())
    generate(trainer, [True] * 4)
    assert "is_replayed" not in generate(trainer, [False] * 4)
    assert trainer.replay.kept == []


def test_the_gap_to_the_sampler_is_that_of_rows_which_were_sampled_now() -> None:
    """Old policy and sampler of a row that came again are one; a dummy has no sampler."""
    chunk = {
        "completion_mask": torch.ones(3, 2),
        "is_replayed": torch.tensor([True, False, False]),
        "importance_sampling_ratio": torch.tensor([[1.0], [0.5], [1.0]]),
    }
    gap_BT = torch.tensor([[0.0, 0.0], [0.2, 0.4], [torch.nan, torch.nan]])
    metrics = sampling_metrics(chunk, gap_BT, gather=lambda values: values)
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(0.3)
    for name in ("min", "mean", "max"):
        assert metrics[f"sampling/importance_sampling_ratio/{name}"] == 0.5
