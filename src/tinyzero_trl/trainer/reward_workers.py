"""Rewards that take long: begun in worker processes as soon as completions are there, and named where they hold up a run."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

import torch
from trl import GRPOTrainer

from tinyzero_trl.rewards import BatchReward

logger = logging.getLogger(__name__)
MAX_SHARE = 0.2
"""Share of a step's time in rewards from which on the run says so."""
NUM_STEPS = 10
"""Optimizer steps over which it is measured."""


class RewardWorkers(GRPOTrainer):
    """Sends completions to the rewards' worker processes before all other work on them; adds `rewards/time_share`."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._rows: list[dict[str, Any]] = []
        self._reward_seconds = 0.0
        self._step_seconds = 0.0
        self._last_steps: deque[tuple[float, float]] = deque(maxlen=NUM_STEPS)
        """Seconds in rewards and in all, by optimizer step."""
        self._has_said_slow = False
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:
            for reward in self._batch_rewards():
                if reward.workers is not None:
                    reward.workers.close()

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = inputs
        return super()._generate_and_score_completions(inputs)

    def _generate(self, prompts: list[Any]) -> Any:
        generated = super()._generate(prompts)
        completions = generated[3]
        if len(completions) == len(self._rows):
            columns = {key: [row[key] for row in self._rows] for key in self._rows[0]}
            for reward in self._batch_rewards():
                reward.submit(completions, columns)
        return generated

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        start = time.perf_counter()
        rewards_NF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._reward_seconds += time.perf_counter() - start
        return rewards_NF

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        is_last = self.accelerator.sync_gradients
        start = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_seconds += time.perf_counter() - start
        if is_last:
            self._metrics["train"]["rewards/time_share"].append(self._reward_seconds / max(self._step_seconds, 1e-9))
            self._last_steps.append((self._reward_seconds, self._step_seconds))
            self._reward_seconds = self._step_seconds = 0.0
            self._say_if_slow()
        return loss

    def _say_if_slow(self) -> None:
        in_rewards, in_all = (sum(seconds) for seconds in zip(*self._last_steps, strict=True))
        share = in_rewards / max(in_all, 1e-9)
        if self._has_said_slow or len(self._last_steps) < NUM_STEPS or share <= MAX_SHARE:
            return
        self._has_said_slow = True
        advice = "reward_workers.rewards computes rewards in other processes"
        if rewards := self._batch_rewards():
            slowest = max(rewards, key=lambda reward: reward.seconds)
            name = slowest.__name__
            advice = f"{name} takes most of it; " + (
                f"reward_workers.rewards=[{name}] computes it in other processes"
                if slowest.workers is None
                else "raise reward_workers.num_workers"
            )
        if self.accelerator.is_main_process:
            logger.warning("rewards took %.0f %% of the last %d steps: %s", 100 * share, NUM_STEPS, advice)

    def _batch_rewards(self) -> list[BatchReward]:
        return [reward for reward in self.reward_funcs if isinstance(reward, BatchReward)]
