"""PPO: advantages of tokens from a value model, which learns beside the policy.

Axes: N = completions of a generation batch over all processes, B = this process's, C = completion tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModel
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOTrainer
from trl.trainer.utils import disable_dropout_in_model

from tinyzero_trl.algorithms.ppo import gae, token_rewards
from tinyzero_trl.config import BatchingSettings, CriticSettings
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.trainer.value_model import COLUMNS, ValueLearner, ValueModel


class Critic(GRPOTrainer):
    """For `algorithm: ppo`: GAE in the place of a group's baseline, and the value model's steps after each of the policy's.

    The value model has a pass of its own over every row of an optimizer step, cut by its own lengths: which rows give
    the policy a gradient is no business of its, and during the warm start none does. With num_iterations above 1 it
    learns in each, towards the returns of rollout time. During the first `warm_start_prompts` prompts the policy's
    advantages are exactly 0. Its learning rate is constant. Truncated completions: see algorithms/ppo.py.
    """

    algorithm: str
    critic_settings: CriticSettings
    batching: BatchingSettings
    critic: ValueLearner | None = None
    _buffered_inputs: list[dict[str, Any]] | None

    def __init__(self, *args: Any, **kwargs: Any):
        self._num_critic_prompts = 0
        self._critic_slices: list[dict[str, Any]] = []
        self._critic_window: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)
        if self.algorithm == "ppo":
            self.critic = self._make_critic()

    def _make_critic(self) -> ValueLearner:
        if is_deepspeed_zero3_enabled() or self.is_fsdp_enabled:
            raise ConfigError("algorithm: ppo trains its value model on one process, with DDP, ZeRO-1 or ZeRO-2 only")
        settings = self.critic_settings
        given = dict(self.args.model_init_kwargs or {})
        wanted = {key: given[key] for key in ("revision", "attn_implementation", "trust_remote_code") if key in given}
        if settings.model:
            wanted.pop("revision", None)
        source = settings.model or self.model.config._name_or_path
        backbone = AutoModel.from_pretrained(source, dtype=torch.float32, **wanted)
        if self.args.gradient_checkpointing:
            backbone.gradient_checkpointing_enable({"use_reentrant": False})
        model = ValueModel(backbone).to(self.accelerator.device)
        # Values at rollout time and while learning are of one function; checkpointing works in training mode only.
        disable_dropout_in_model(model)
        return ValueLearner(
            model.train(),
            learning_rate=settings.learning_rate,
            clip_range=settings.clip_range,
            max_grad_norm=self.args.max_grad_norm,
            rows_at_once=self.args.per_device_train_batch_size,
            tokens_at_once=self.batching.max_tokens_per_microbatch,
            autocast=torch.bfloat16 if self.args.bf16 else None,
        )

    def _advantages(self, scored: dict[str, Any], rewards_N: torch.Tensor) -> torch.Tensor:
        """Whitened GAE of this process's tokens, [B, C]; adds the columns `values` and `returns` to `scored`."""
        if self.critic is None:
            return super()._advantages(scored, rewards_N)
        mask_BC = scored["completion_mask"].bool()
        if "tool_mask" in scored:
            mask_BC = mask_BC & scored["tool_mask"].bool()
        num_rows = len(mask_BC)
        if not self.model.training:
            return torch.zeros(num_rows, device=mask_BC.device)  # nothing reads them, and no value is asked for
        rewards_B = rewards_N[self.accelerator.process_index * num_rows :][:num_rows]
        values_BC = self.critic.values(scored)
        advantages_BC = gae(
            token_rewards(rewards_B, kl_BT=self._kl(scored), mask_BT=mask_BC),
            values_BT=values_BC,
            mask_BT=mask_BC,
            gamma=self.critic_settings.gamma,
            lam=self.critic_settings.lam,
        )
        mask_BC = mask_BC & ~rewards_B.isnan()[:, None]
        scored["values"] = values_BC
        scored["returns"] = torch.where(mask_BC, advantages_BC + values_BC, torch.nan)
        is_warming_up = self._num_critic_prompts < self.critic_settings.warm_start_prompts
        self._num_critic_prompts += len(rewards_N) // self.num_generations
        if is_warming_up:
            return torch.zeros_like(advantages_BC)
        return self._whitened(advantages_BC, mask_BC)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self.critic is not None and self.model.training:
            if self._buffered_inputs is not before:
                assert self._buffered_inputs is not None
                self._critic_slices = [{key: part[key] for key in COLUMNS} for part in self._buffered_inputs]
            self._critic_window.append(self._critic_slices[self._step % self.args.steps_per_generation])
        return inputs

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        # The last micro-step of an optimizer step. Asked before: Batching takes it back where DeepSpeed must not step.
        is_last = self.accelerator.sync_gradients
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.critic is not None and is_last:
            num_minibatches = self.critic_settings.num_minibatches
            for name, value in self.critic.learn(self._critic_window, num_minibatches=num_minibatches).items():
                self._metrics["train"][f"critic/{name}"].append(value)
            self._critic_window = []
        return loss

    def resume_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().resume_state()
        if self.critic is None:
            return state
        # Rows are needed again only where the checkpoint lies inside a generation cycle.
        is_between = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        rows = [] if is_between else self._critic_slices
        return state | {"critic": {**self.critic.state(), "num_prompts": self._num_critic_prompts, "rows": rows}}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        super().load_resume_state(state)
        if self.critic is not None:
            self.critic.load(state["critic"])
            self._num_critic_prompts = state["critic"]["num_prompts"]
            self._critic_slices = state["critic"]["rows"]
