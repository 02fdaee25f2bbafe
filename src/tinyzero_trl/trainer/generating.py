"""Which engine generates a rollout, what it is drawn with, and which weights made it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from trl.trainer import grpo_trainer

from tinyzero_trl.failures import DiskFull, ServerLost
from tinyzero_trl.trainer.seeds import Seeds
from tinyzero_trl.trainer.stopping import Stopping


class Generating(Seeds, Stopping):
    """Puts `vllm_generation` in the place of TRL's class of that name, and tells it seeds and step before each rollout."""

    weights_step: int | None = None
    """Optimizer steps behind the weights that made the last rollout, as the engine says; None where it does not."""

    algorithm: str
    dynamic_sampling_rounds: int

    def __init__(self, *args: Any, vllm_generation: Callable[..., Any] | None = None, **kwargs: Any):
        """vllm_generation: takes the arguments of TRL's VLLMGeneration; None is TRL's own. Read where args.use_vllm is set."""
        standing = grpo_trainer.VLLMGeneration
        grpo_trainer.VLLMGeneration = vllm_generation or standing
        try:
            super().__init__(*args, **kwargs)
        finally:
            grpo_trainer.VLLMGeneration = standing
        self._is_told = vllm_generation is not None and self.use_vllm

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        if not self._is_told:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        temperature = self.args.temperature if self.rollout_temperature is None else self.rollout_temperature
        self.vllm_generation.prepare(
            seeds=self.next_row_seeds(len(prompt_ids)),
            eos_token_ids=self.eos_token_ids,
            stop=self.stop_strings.texts if self.stop_strings else (),
            temperature=temperature,
            step=self.state.global_step,
        )
        is_due = self.state.global_step != self._last_loaded_step
        generated = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self.weights_step = self.vllm_generation.weights_step
        if self.rollout_temperature is None:
            metrics = self._metrics["train" if self.model.training else "eval"]
            metrics["server/faults"].append(float(self.vllm_generation.num_faults))
            if is_due:
                metrics["seconds/sync"].append(self.vllm_generation.seconds_to_sync)
        return generated

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        # Where a batch has one rollout, vLLM sleeps right after it, before the forward passes that score it.
        has_several = self.algorithm == "remax" or self.dynamic_sampling_rounds > 0
        with self._awake() if has_several else nullcontext():
            return super()._prepare_inputs(generation_batch)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self._awake():
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def _awake(self) -> AbstractContextManager[None]:
        """A block in which vLLM keeps its weights from one rollout to the next."""
        awake: AbstractContextManager[None] = self.vllm_generation.awake() if self._is_told else nullcontext()
        return awake

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        before = self.num_generated_batches
        is_fresh = self._is_between_cycles()
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        except (ServerLost, DiskFull) as lost:
            # Every process is here, before anything of this step has happened but the draw of its problems.
            if not is_fresh or self.num_generated_batches != before + 1 or not self.state.global_step:
                raise
            self.num_generated_batches = before
            self._save_checkpoint(model, None)
            raise type(lost)(f"{lost}; checkpoint-{self.state.global_step} is saved") from lost
