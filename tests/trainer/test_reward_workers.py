"""Rewards in worker processes, in a training run: begun early, the same numbers, and what they cost is said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tinyzero_trl.config import RewardWorkerSettings
from tinyzero_trl.rewards import BatchReward, for_trl
from tinyzero_trl.rewards.pool import RewardPool
from tinyzero_trl.task import resolve
from tinyzero_trl.tasks.reward_worker import score_here
from tinyzero_trl.trainer import TinyZeroTrainer, timing

REWARD = """
import os
def short(response, *, target):
    return target / (1 + len(response))
def fragile(response, *, target):
    if sum(map(ord, response)) % 3 == 0:
        os._exit(1)
    return short(response, target=target)
"""


def reward_of(folder: Path, name: str, *, in_workers: bool) -> BatchReward:
    (folder / "mine.py").write_text(REWARD)
    spec = f"{folder}/mine.py:{name}"
    pool = RewardPool("countdown", RewardWorkerSettings(rewards=[spec]), score=score_here) if in_workers else None
    return for_trl(resolve(spec, among={}, kind="reward"), name=spec, workers=pool)


def weights_of(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def test_a_run_with_workers_is_the_run_without_them_and_begins_their_work_before_it_asks(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = build(TinyZeroTrainer, reward_funcs=reward_of(tmp_path, "short", in_workers=False), max_steps=2)
    here.train()
    reward = reward_of(tmp_path, "short", in_workers=True)
    there = build(TinyZeroTrainer, reward_funcs=reward, max_steps=2)
    begun: list[int] = []
    assert isinstance(reward.workers, RewardPool)
    begin = reward.workers._begin
    monkeypatch.setattr(reward.workers, "_begin", lambda name, jobs: begun.append(len(jobs)) or begin(name, jobs))
    there.train()
    assert begun == [16, 16]  # once a generation batch: what was begun early is what was asked for
    assert all(torch.equal(value, weights_of(there)[name]) for name, value in weights_of(here).items())
    assert reward.workers._pool is None


def test_a_reward_that_ends_its_process_costs_those_samples_only(build: Any, tmp_path: Path) -> None:
    reward = reward_of(tmp_path, "fragile", in_workers=True)
    trainer = build(TinyZeroTrainer, reward_funcs=reward, max_steps=1, per_device_train_batch_size=4)
    trainer.train()
    entry = trainer.state.log_history[0]
    assert 0 < entry[f"rewards/{reward.__name__}/lost"] < 1
    assert entry[f"rewards/{reward.__name__}/rejected"] == 0
    assert all(torch.isfinite(value).all() for value in weights_of(trainer).values())


@pytest.mark.parametrize(("seconds", "is_said"), [(0.2, True), (0.0, False)])
def test_rewards_that_take_a_fifth_of_the_time_are_named_once(
    build: Any, caplog: pytest.LogCaptureFixture, seconds: float, is_said: bool
) -> None:
    def slow(response: str) -> float:
        return 1 / (1 + len(response))

    class Slow(TinyZeroTrainer):
        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.clock.seconds["rewards"] += seconds  # as if it had taken that long
            self.clock.seconds["scoring"] += seconds
            return super()._calculate_rewards(*args, **kwargs)

    trainer = build(
        Slow, reward_funcs=for_trl(slow, name="slow"), max_steps=timing.NUM_STEPS + 2, max_completion_length=2
    )
    with caplog.at_level(logging.WARNING, logger=timing.__name__):
        trainer.train()
    lines = [record.getMessage() for record in caplog.records if "of the last 10 steps" in record.getMessage()]
    assert len(lines) == int(is_said)
    assert all("slow takes most of it; reward_workers.rewards=[slow]" in line for line in lines)
    shares = [entry["rewards/time_share"] for entry in trainer.state.log_history if "rewards/time_share" in entry]
    assert len(shares) == timing.NUM_STEPS + 2
    assert all((share > 0.2) is is_said for share in shares)
