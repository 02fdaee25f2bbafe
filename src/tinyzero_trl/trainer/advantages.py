"""Advantages of a group whose rewards are all the same are exactly 0.

Axes: N = completions of a generation batch over all processes, F = reward functions, B = this process's completions.
"""

from __future__ import annotations

from typing import Any

import torch
from trl import GRPOTrainer


def is_constant(rewards_N: torch.Tensor, *, num_generations: int) -> torch.Tensor:
    """Whether each completion's group has one reward only (max == min, unscored NaN ones left out); bool, [N]."""
    groups = rewards_N.view(-1, num_generations)
    high = torch.where(groups.isnan(), -torch.inf, groups).amax(dim=1)
    low = torch.where(groups.isnan(), torch.inf, groups).amin(dim=1)
    return (high <= low).repeat_interleave(num_generations)


class ExactAdvantages(GRPOTrainer):
    """TRL's advantages, with the rounding noise of constant groups removed.

    TRL subtracts a float32 mean that is often not exactly the constant (eight times 0.1 leave -7.5e-5 after scaling),
    which Adam, blind to scale, turns into full-size steps. Everything else is TRL's number, bit for bit.
    """

    rewards_NF: torch.Tensor | None = None
    """Rewards of the last generation batch as TRL sees them, NaN where there is none."""

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        self.rewards_NF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        return self.rewards_NF

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        scored = super()._generate_and_score_completions(inputs)
        # normalize_then_sum whitens over the whole batch: a constant group is not without signal there.
        if self.multi_objective_aggregation != "sum_then_normalize" or self.rewards_NF is None:
            return scored
        mode = "train" if self.model.training else "eval"
        num_generations = self.num_generations if mode == "train" else self.num_generations_eval
        rewards_N = (self.rewards_NF * self.reward_weights.to(self.rewards_NF.device)).nansum(dim=1)
        rewards_N[self.rewards_NF.isnan().all(dim=1)] = torch.nan
        constant_N = is_constant(rewards_N, num_generations=num_generations)
        first = self.accelerator.process_index * len(inputs)
        constant_B = constant_N[first : first + len(inputs)]
        scored["advantages"] = torch.where(constant_B, torch.zeros_like(scored["advantages"]), scored["advantages"])
        if self.scale_rewards != "batch":
            # TRL's own test is isclose(std, 0), which rounding fools both ways.
            self._metrics[mode]["frac_reward_zero_std"][-1] = constant_N.float().mean().item()
        scored["advantages"] = self._advantages(scored, rewards_N)
        logged = self._logs["advantages"]
        for offset, is_zero in enumerate(constant_N.tolist()[-len(logged) :]):
            if is_zero:
                logged[offset - min(len(constant_N), len(logged))] = 0.0
        return scored

    def _advantages(self, scored: dict[str, Any], rewards_N: torch.Tensor) -> torch.Tensor:
        """This process's advantages, [B] or a number a token."""
        advantages_B: torch.Tensor = scored["advantages"]
        return advantages_B
