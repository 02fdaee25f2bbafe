"""A run as long as a number of generated tokens: what methods are compared by, as generation is what they pay for."""

from __future__ import annotations

from typing import Any

import torch
from transformers import SchedulerType, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer


class Budget(GRPOTrainer):
    """Counts the completion tokens that training generated, of every round and baseline, and stops at a limit.

    With a limit the learning rate's `linear` falls to 0 with the tokens left, not with the steps left.
    """

    num_generated_tokens: int = 0
    """Completion tokens of all processes so far, evaluation left out."""

    def __init__(self, *args: Any, max_generated_tokens: int | None = None, **kwargs: Any):
        """max_generated_tokens: training stops after the step that reaches it; None: steps or epochs decide."""
        self.max_generated_tokens = max_generated_tokens
        super().__init__(*args, **kwargs)
        if max_generated_tokens is not None:
            self.add_callback(_StopAtBudget(self))

    def _generate(self, prompts: list[Any]) -> Any:
        generated = super()._generate(prompts)
        if self.model.training:
            num_tokens = torch.tensor(sum(map(len, generated[1])), device=self.accelerator.device)
            self.num_generated_tokens += int(self.accelerator.reduce(num_tokens, reduction="sum"))
        return generated

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        budget = self.max_generated_tokens
        if budget is not None and self.args.lr_scheduler_type == SchedulerType.LINEAR:
            share_left = lambda step: max(0.0, 1.0 - self.num_generated_tokens / budget)  # noqa: E731
            scheduler.lr_lambdas = [share_left] * len(scheduler.lr_lambdas)
        return scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._metrics["train"].get("reward"):
            logs["generated_tokens"] = float(self.num_generated_tokens)
        super().log(logs, start_time)

    def resume_state(self) -> dict[str, Any]:
        return {**super().resume_state(), "num_generated_tokens": self.num_generated_tokens}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        super().load_resume_state(state)
        self.num_generated_tokens = int(state["num_generated_tokens"])


class _StopAtBudget(TrainerCallback):
    def __init__(self, trainer: Budget):
        self.trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        assert self.trainer.max_generated_tokens is not None
        if self.trainer.num_generated_tokens >= self.trainer.max_generated_tokens:
            control.should_training_stop = True
            control.should_save |= args.save_strategy == "steps"  # as the last of max_steps is
        return control
