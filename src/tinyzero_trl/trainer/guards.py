"""What must never reach the weights: rewards that are not numbers, gradients that are not finite.

Axes: N = completions of a generation batch over all processes, F = reward functions.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from trl import GRPOTrainer

from tinyzero_trl.failures import NumericFailure, RewardFailure
from tinyzero_trl.rewards import text_of
from tinyzero_trl.trainer.faults import FOLDER, not_finite_gradients, write_fault

logger = logging.getLogger(__name__)
MAX_REWARD = 1e6
"""Absolute reward from which on a number is taken for a mistake; for_trl has a narrower range of its own."""
MAX_UNSCORED = 3
"""Generation batches in a row without a single reward after which a run stops."""
MAX_SKIPPED = 3
"""Optimizer steps in a row with a loss or gradient that is not finite after which a run stops."""
COUNTERS = ("_num_unscored", "_num_unrewarded", "_has_earned", "_num_skipped")
"""What a resumed run goes on counting."""


class Guards(GRPOTrainer):
    """Rejects rewards that are not numbers, skips steps that are not finite, stops a run that cannot learn."""

    rollout_temperature: float | None

    def __init__(self, *args: Any, give_up_after: int = 0, **kwargs: Any):
        """give_up_after: generation batches in which nothing earns anything before the run stops; 0 never stops."""
        self.give_up_after = give_up_after
        self._num_unscored = 0
        self._num_unrewarded = 0
        self._has_earned = False
        self._num_skipped = 0
        self._has_hidden_loss = False
        self._window: list[tuple[dict[str, Any], torch.Tensor]] = []
        """Micro-batch and loss, of this optimizer step so far."""
        self._window_step = -1
        super().__init__(*args, **kwargs)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        rewards_NF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        is_wrong_NF = rewards_NF.isinf() | (rewards_NF.abs() > MAX_REWARD)
        if is_wrong_NF.any():
            rewards_NF = rewards_NF.masked_fill(is_wrong_NF, torch.nan)
            self._metrics["train" if self.model.training else "eval"]["rewards/out_of_range"].append(
                is_wrong_NF.float().mean().item()
            )
        if self.model.training and self.rollout_temperature is None:
            self._watch(rewards_NF, prompts, completions)
        return rewards_NF

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not self.model.training:
            return loss
        if self._window_step != self.state.global_step:
            self._window, self._window_step = [], self.state.global_step
        self._window.append((inputs, loss.detach()))
        # An infinite loss may have a finite gradient on one process. Made NaN, it reaches the gradient's norm, on which all
        # processes agree. DeepSpeed steps inside backward, and leaves its step out where that norm is not a number.
        return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # fp16's loss scaler skips non-finite steps itself, and they are part of its search for a scale.
        # DeepSpeed's norm is that of its last step: where Batching had no step to take, it says nothing of this one.
        is_due = (
            self.accelerator.distributed_type != DistributedType.DEEPSPEED or model.is_gradient_accumulation_boundary()
        )
        if grad_norm is None or self.accelerator.scaler is not None or not is_due:
            self._window = []
            return grad_norm
        is_finite = math.isfinite(float(grad_norm))
        self._metrics["train"]["skipped_steps"].append(float(not is_finite))
        self._num_skipped = 0 if is_finite else self._num_skipped + 1
        if not is_finite:
            self._record(model, float(grad_norm))
            # Without gradients the optimizer passes over every parameter: no step, no momentum, no weight decay.
            model.zero_grad()
        self._window = []
        if self._num_skipped >= MAX_SKIPPED:
            raise NumericFailure(
                f"loss or gradient was not finite in {MAX_SKIPPED} steps in a row, up to step {self.state.global_step + 1}; "
                f"the weights are those from before, and the batches are in {self.args.output_dir}/{FOLDER}; {_ADVICE}"
            )
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._has_hidden_loss and "loss" in logs:
            # transformers puts the mean of earlier losses in the place of one that is not finite (logging_nan_inf_filter).
            logs["loss"] = math.nan
            self._has_hidden_loss = False
        super().log(logs, start_time)

    def resume_state(self) -> dict[str, Any]:
        return {**super().resume_state(), "guards": {name: getattr(self, name) for name in COUNTERS}}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        super().load_resume_state(state)
        for name, value in state.get("guards", {}).items():
            setattr(self, name, value)

    def _record(self, model: Any, grad_norm: float) -> None:
        """Write the batch of this step to the run folder, on each process its own."""
        step = self.state.global_step + 1
        losses = [loss.item() for _, loss in self._window]
        has_bad_loss = torch.tensor(float(not all(map(math.isfinite, losses))), device=self.accelerator.device)
        self._has_hidden_loss |= bool(self.accelerator.reduce(has_bad_loss, reduction="sum").item())
        written = write_fault(
            Path(self.args.output_dir),
            [chunk for chunk, _ in self._window],
            step=step,
            rank=self.accelerator.process_index,
            losses=losses,
            grad_norm=grad_norm,
            parameters=not_finite_gradients(model),
            tokenizer=self.processing_class,
        )
        logger.warning(
            "step %d is left out: %s is not finite (%d in a row; the run stops at %d)%s",
            step,
            "the loss" if self._has_hidden_loss else "the gradient",
            self._num_skipped,
            MAX_SKIPPED,
            f"; its batch is in {written}" if written else "",
        )

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
