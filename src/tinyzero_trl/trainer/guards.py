"""What must never reach the weights: rewards that are not numbers, gradients that are not finite.

Axes: N = completions of a generation batch over all processes, F = reward functions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate.utils import DistributedType
from trl import GRPOTrainer

from tinyzero_trl.failures import NumericFailure, RewardFailure
from tinyzero_trl.rewards import text_of

MAX_REWARD = 1e6
"""Absolute reward from which on a number is taken for a mistake; for_trl has a narrower range of its own."""
MAX_UNSCORED = 3
"""Generation batches in a row without a single reward after which a run stops."""
MAX_SKIPPED = 3
"""Optimizer steps in a row with a non-finite gradient after which a run stops."""


class Guards(GRPOTrainer):
    """Rejects rewards that are not numbers, skips steps that are not finite, stops a run that cannot learn."""

    def __init__(self, *args: Any, give_up_after: int = 0, **kwargs: Any):
        """give_up_after: generation batches in which nothing earns anything before the run stops; 0 never stops."""
        self.give_up_after = give_up_after
        self._num_unscored = 0
        self._num_unrewarded = 0
        self._has_earned = False
        self._num_skipped = 0
        super().__init__(*args, **kwargs)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        rewards_NF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        is_wrong_NF = rewards_NF.isinf() | (rewards_NF.abs() > MAX_REWARD)
        if is_wrong_NF.any():
            rewards_NF = rewards_NF.masked_fill(is_wrong_NF, torch.nan)
            self._metrics["train" if self.model.training else "eval"]["rewards/out_of_range"].append(
                is_wrong_NF.float().mean().item()
            )
        if self.model.training:
            self._watch(rewards_NF, prompts, completions)
        return rewards_NF

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # DeepSpeed takes its optimizer step inside backward, so the gradient cannot be looked at before it.
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED and self.model.training:
            is_bad = self.accelerator.reduce((~torch.isfinite(loss.detach())).float(), reduction="sum")
            if is_bad.item():
                raise NumericFailure(f"the loss of step {self.state.global_step + 1} is not finite; {_ADVICE}")
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        is_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        # fp16's loss scaler skips non-finite steps itself, and they are part of its search for a scale.
        if grad_norm is None or is_deepspeed or self.accelerator.scaler is not None:
            return grad_norm
        is_finite = math.isfinite(float(grad_norm))
        self._metrics["train"]["skipped_steps"].append(float(not is_finite))
        self._num_skipped = 0 if is_finite else self._num_skipped + 1
        if not is_finite:
            # Without gradients the optimizer passes over every parameter: no step, no momentum, no weight decay.
            model.zero_grad(set_to_none=True)
        if self._num_skipped >= MAX_SKIPPED:
            raise NumericFailure(
                f"the gradient was not finite in {MAX_SKIPPED} steps in a row, up to step {self.state.global_step + 1}; "
                f"the weights are those from before; {_ADVICE}"
            )
        return grad_norm

    def _watch(self, rewards_NF: torch.Tensor, prompts: Any, completions: Any) -> None:
        self._num_unscored = self._num_unscored + 1 if rewards_NF.isnan().all() else 0
        rewards_N = (rewards_NF * self.reward_weights.to(rewards_NF.device)).nansum(dim=1)
        # Where rewards are penalties, a difference between them is what there is to learn from.
        self._has_earned = self._has_earned or bool((rewards_N > 0).any() or rewards_N.amax() > rewards_N.amin())
        self._num_unrewarded += 1
        if self._num_unscored >= MAX_UNSCORED:
            raise RewardFailure(
                f"no reward function gave a number for any response in {MAX_UNSCORED} batches in a row; "
                f"the log above says why.{_samples(prompts, completions)}"
            )
        if self.give_up_after and not self._has_earned and self._num_unrewarded >= self.give_up_after:
            raise RewardFailure(
                f"nothing earned any reward in the first {self.give_up_after} batches, so there is nothing to learn from "
                "(give_up_after in the recipe). Does the model end its responses within trainer.max_completion_length, "
                f"and does it know the format?{_samples(prompts, completions)}"
            )


_ADVICE = "lower trainer.learning_rate, set trainer.max_grad_norm, or train in bf16 or float32"


def _samples(prompts: Any, completions: Any) -> str:
    shown = []
    for prompt, completion in list(zip(prompts, completions, strict=True))[:3]:
        shown.append(
            f"\n--- prompt ends: {(text_of(prompt) or '')[-160:]!r}\n    completion:  {(text_of(completion) or '')[:400]!r}"
        )
    return "".join(shown)
