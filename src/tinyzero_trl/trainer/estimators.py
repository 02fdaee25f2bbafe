"""From the rewards of a batch to its advantages, by the algorithm the recipe names; the formulas are in algorithms/.

Axes: N = completions of a generation batch over all processes, F = reward functions, B = this process's completions, C = completion tokens,
PG = prompts x completions of each.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from trl import GRPOTrainer

from tinyzero_trl.algorithms import ALGORITHMS, dapo, dr_grpo, grpo, raft, reinforce, reinforce_pp, remax, rloo
from tinyzero_trl.algorithms.groups import is_constant
from tinyzero_trl.trainer.extra_rollout import extra_rollout

EPSILON = 1e-8
"""Added to the deviation when whitening."""
MEAN_BASELINE = {"grpo": grpo.advantages, "dapo": grpo.advantages, "gspo": grpo.advantages}
GROUP_BASELINE = (*MEAN_BASELINE, "dr_grpo", "rloo", "raft")
"""Algorithms that a constant group teaches nothing."""


class Estimators(GRPOTrainer):
    """TRL's advantages replaced by those of `algorithm`; the penalties that are part of the reward put in before.

    With algorithm grpo they are TRL's bit for bit, but for constant groups, which have exactly 0.
    """

    algorithm: str
    advantage_whitening: str | None
    soft_overlong_tokens: int
    rollout_temperature: float | None
    rewards_NF: torch.Tensor
    """Rewards of the last generation batch as TRL sees them, NaN where there is none."""
    beta: float
    _pending_metrics: defaultdict[str, list[Any]]
    _pending_extra_logs: defaultdict[str, list[Any]]
    kl_in_reward: float = 0.0
    """trainer.beta, where the method has the divergence in its reward and not in its loss."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if ALGORITHMS[self.algorithm].kl == "reward":
            # TRL made a reference model for it, and is to leave it alone from here on.
            self.kl_in_reward, self.beta = self.beta, 0.0

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        rewards_NF: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.rollout_temperature is None:
            self.rewards_NF = rewards_NF
            # Counted here: the mask of a truncated completion may be empty (mask_truncated_completions).
            self._lengths_B = torch.tensor([len(ids) for ids in completion_ids_list], device=rewards_NF.device)
        return rewards_NF

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        greedy_B = self._greedy_rewards(inputs)
        scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        mode = "train" if self.model.training else "eval"
        num_generations = (self.num_generations if mode == "train" else self.num_generations_eval) or 1
        if self.multi_objective_aggregation != "sum_then_normalize":
            self._silence_constant_groups(scored, num_generations, mode)
            return scored
        if greedy_B is not None:
            scored["greedy_rewards"] = greedy_B
        rewards_N = (self.rewards_NF * self.reward_weights.to(self.rewards_NF.device)).nansum(dim=1)
        rewards_N[self.rewards_NF.isnan().all(dim=1)] = torch.nan
        if self.soft_overlong_tokens:
            penalty_N = dapo.soft_overlong_penalty(
                self.accelerator.gather(self._lengths_B),
                max_length=self.max_completion_length,
                num_soft=self.soft_overlong_tokens,
            )
            self._metrics[mode]["rewards/soft_overlong/mean"].append(penalty_N.mean().item())
            rewards_N = rewards_N + penalty_N
        scored["advantages"] = self._advantages(scored, rewards_N)
        scored.pop("greedy_rewards", None)
        constant_N = is_constant(rewards_N.view(-1, num_generations)).repeat_interleave(num_generations)
        # TRL's own test is isclose(std, 0), which rounding fools both ways, and of the batch's deviation where that scales.
        self._metrics[mode]["frac_reward_zero_std"][-1] = constant_N.float().mean().item()
        self._rewrite_log(scored["advantages"])
        return scored

    def _silence_constant_groups(self, scored: dict[str, Any], num_generations: int, mode: str) -> None:
        """For normalize_then_sum, whose advantages are TRL's own, exactly 0 where each reward is constant in the group.

        Up to rounding they are 0 as they come; but where all groups are like that, TRL divides what is rounding by its deviation.
        """
        is_constant_PF = torch.stack([is_constant(r.view(-1, num_generations)) for r in self.rewards_NF.unbind(1)], 1)
        is_constant_N = is_constant_PF.all(1).repeat_interleave(num_generations)
        self._metrics[mode]["frac_reward_zero_std"][-1] = is_constant_N.float().mean().item()
        num_rows = len(scored["advantages"])
        first = self.accelerator.process_index * num_rows
        is_constant_B = is_constant_N[first : first + num_rows]
        scored["advantages"] = torch.where(is_constant_B, 0.0, scored["advantages"])
        self._rewrite_log(scored["advantages"])

    def _advantages(self, scored: dict[str, Any], rewards_N: torch.Tensor) -> torch.Tensor:
        """This process's advantages, [B] or [B, C]."""
        num_rows = len(scored["completion_ids"])
        mine = slice(self.accelerator.process_index * num_rows, (self.accelerator.process_index + 1) * num_rows)
        if not self.model.training and self.algorithm not in MEAN_BASELINE:
            return torch.zeros(num_rows, device=rewards_N.device)  # only the loss of an evaluation reads them
        num_generations = (self.num_generations if self.model.training else self.num_generations_eval) or 1
        if self.algorithm == "reinforce_pp":
            mask_BC = _loss_mask(scored)
            advantages_BC = reinforce_pp.advantages(rewards_N[mine], kl_BT=self._kl(scored), mask_BT=mask_BC)
            return self._whitened(advantages_BC, mask_BC & ~rewards_N[mine].isnan()[:, None])
        if self.kl_in_reward:
            # One number a completion, log(pi_old / pi_ref) summed over its tokens, as TRL's RLOOTrainer has it.
            rewards_N = rewards_N - self.accelerator.gather(self._kl(scored).sum(1))
        rewards_PG = rewards_N.view(-1, num_generations)
        if self.algorithm in MEAN_BASELINE:
            advantages_PG = MEAN_BASELINE[self.algorithm](rewards_PG, scale=self.scale_rewards)
        elif self.algorithm == "dr_grpo":
            advantages_PG = dr_grpo.advantages(rewards_PG)
        elif self.algorithm == "rloo":
            advantages_PG = rloo.advantages(rewards_PG)
        elif self.algorithm == "reinforce":
            advantages_PG = reinforce.advantages(rewards_PG)
        elif self.algorithm == "remax":
            greedy_N = self.accelerator.gather(scored["greedy_rewards"])
            advantages_PG = remax.advantages(rewards_PG, greedy_B=greedy_N)
        else:
            lengths_PG = self.accelerator.gather(self._lengths_B).view(-1, num_generations)
            advantages_PG = raft.advantages(rewards_PG, lengths_BG=lengths_PG)
        learns_PG = ~rewards_PG.isnan()
        if self.algorithm in GROUP_BASELINE:
            learns_PG = learns_PG & ~is_constant(rewards_PG)[:, None]
        return self._whitened(advantages_PG.flatten()[mine], learns_PG.flatten()[mine])

    def _whitened(self, advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean 0 and standard deviation 1 over what is in the mask, of all processes; 0 elsewhere; as they are where not wanted."""
        if (self.advantage_whitening or ALGORITHMS[self.algorithm].whitening) == "none":
            return torch.where(mask, advantages, 0.0)
        kept = advantages[mask].double()
        num, total = self.accelerator.reduce(torch.stack([kept.new_tensor(len(kept)), kept.sum()]), reduction="sum")
        mean = total / num.clamp(min=1)
        variance = self.accelerator.reduce(((kept - mean) ** 2).sum(), reduction="sum") / num.clamp(min=1)
        # Of what is all the same, rounding alone would be whitened.
        ends = torch.stack([kept.max(), -kept.min()]) if len(kept) else mean.new_full((2,), -torch.inf)
        highest, minus_lowest = self.accelerator.gather(ends[None]).amax(0)
        if highest <= -minus_lowest:
            return torch.zeros_like(advantages)
        whitened = (advantages - mean) / (variance.sqrt() + EPSILON)
        return torch.where(mask, whitened, 0.0).to(advantages.dtype)

    def _kl(self, scored: dict[str, Any]) -> torch.Tensor:
        """beta log(pi_old / pi_ref) of each token, 0 outside the loss mask and without a reference model; [B, C]."""
        mask_BC = _loss_mask(scored)
        if not self.kl_in_reward or not self.model.training:
            return torch.zeros(mask_BC.shape, device=mask_BC.device)
        old_BC = scored.get("sampling_per_token_logps")
        old_BC = self.policy_logps(scored) if old_BC is None else old_BC
        # A sampler that does not know a token's log-probability says NaN.
        kl_BC = torch.where(mask_BC, old_BC - self.reference_logps(scored), 0.0).nan_to_num(nan=0.0)
        totals = self.accelerator.reduce(torch.stack([kl_BC.sum(), mask_BC.sum().float()]), reduction="sum")
        self._metrics["train"]["kl"].append((totals[0] / totals[1].clamp(min=1.0)).item())
        return self.kl_in_reward * kl_BC

    def _greedy_rewards(self, inputs: list[dict[str, Any]]) -> torch.Tensor | None:
        """For ReMax, the reward of the greedy response to each of this process's prompts; [prompts], NaN where it has none.

        Its tokens are counted, its lengths and rewards are in no metric but `reward_greedy`. It pays no overlong penalty: any
        number that does not depend on the completion is a baseline.
        """
        if self.algorithm != "remax" or not self.model.training:
            return None
        rows = inputs[:: self.num_generations]
        prompts = [row["prompt"] for row in rows]
        with extra_rollout(self, temperature=0.0, mode="train"):
            _, completion_ids, _, completions, *_ = self._generate(prompts)
            rewards_NF = self._calculate_rewards(rows, prompts, completions, completion_ids)
        rewards_N = (rewards_NF * self.reward_weights.to(rewards_NF.device)).nansum(dim=1)
        rewards_N[rewards_NF.isnan().all(dim=1)] = torch.nan
        self._metrics["train"]["reward_greedy"].append(torch.nanmean(rewards_N).item())
        first = self.accelerator.process_index * len(rows)
        return rewards_N[first : first + len(rows)]

    def _rewrite_log(self, advantages: torch.Tensor) -> None:
        """TRL's table of completions shows the advantages that are trained on."""
        per_row = advantages if advantages.dim() == 1 else advantages.sum(1) / advantages.ne(0).sum(1).clamp(min=1)
        shown = self.accelerator.gather(per_row).tolist()
        logged = self._logs["advantages"]
        for offset in range(1, min(len(shown), len(logged)) + 1):
            logged[-offset] = shown[-offset]


def _loss_mask(scored: dict[str, Any]) -> torch.Tensor:
    mask_BC: torch.Tensor = scored["completion_mask"].bool()
    return mask_BC & scored["tool_mask"].bool() if "tool_mask" in scored else mask_BC
