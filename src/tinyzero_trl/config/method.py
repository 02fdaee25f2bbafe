"""Numbers out of range, and combinations that TRL accepts and that break learning without a word."""

from __future__ import annotations

import math
import os
from typing import Any

from omegaconf import DictConfig

from tinyzero_trl.config.algorithm_checks import check_algorithm
from tinyzero_trl.config.combinations import check_combinations
from tinyzero_trl.config.sections import (
    check_batching,
    check_chosen_problems,
    check_critic,
    check_evaluation,
    check_reward_workers,
)
from tinyzero_trl.failures import ConfigError, nearest

CHOICES: dict[str, tuple[str, ...]] = {
    "loss_type": ("grpo", "dr_grpo", "bnpo", "dapo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none", "True", "False"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("server", "colocate"),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}
"""Values of trainer keys that TRL types as plain text."""
RANGES: dict[str, tuple[float, float, bool]] = {
    "learning_rate": (0, math.inf, False),
    "temperature": (0, math.inf, False),
    "top_p": (0, 1, False),
    "beta": (0, math.inf, True),
    "epsilon": (0, math.inf, False),
    "epsilon_high": (0, math.inf, False),
    "num_generations": (2, math.inf, True),
    "num_generations_eval": (1, math.inf, True),
    "num_iterations": (1, math.inf, True),
    "steps_per_generation": (1, math.inf, True),
    "max_completion_length": (1, math.inf, True),
    "per_device_train_batch_size": (1, math.inf, True),
    "per_device_eval_batch_size": (1, math.inf, True),
    "gradient_accumulation_steps": (1, math.inf, True),
    "max_grad_norm": (0, math.inf, True),
    "repetition_penalty": (0, math.inf, False),
    "weight_decay": (0, math.inf, True),
    "save_total_limit": (1, math.inf, True),
    "top_k": (0, math.inf, True),
    "min_p": (0, 1, True),
    "top_entropy_quantile": (0, 1, False),
    "vllm_gpu_memory_utilization": (0, 1, False),
    "seed": (0, 2**32 - 1, True),
    "data_seed": (0, 2**32 - 1, True),
    "num_train_epochs": (0, math.inf, True),
    "warmup_steps": (0, math.inf, True),
    "adam_beta1": (0, 1, True),
    "adam_beta2": (0, 1, True),
    "adam_epsilon": (0, math.inf, False),
    "logging_steps": (0, math.inf, False),
    "eval_steps": (0, math.inf, False),
    "save_steps": (0, math.inf, False),
    "eval_delay": (0, math.inf, True),
    "eval_accumulation_steps": (1, math.inf, True),
    "torch_empty_cache_steps": (1, math.inf, True),
    "dataloader_num_workers": (0, 1024, True),
    "dataloader_prefetch_factor": (1, math.inf, True),
    "ddp_timeout": (1, math.inf, True),
    "ddp_bucket_cap_mb": (1, math.inf, True),
    "label_smoothing_factor": (0, 1, True),
    "generation_batch_size": (1, math.inf, True),
    "vllm_max_model_length": (1, math.inf, True),
    "vllm_tensor_parallel_size": (1, math.inf, True),
    "ref_model_mixup_alpha": (0, 1, True),
    "ref_model_sync_steps": (1, math.inf, True),
    "sapo_temperature_neg": (0, math.inf, False),
    "sapo_temperature_pos": (0, math.inf, False),
    "pad_to_multiple_of": (1, math.inf, True),
    "max_length": (1, math.inf, True),
}
"""(low, high, low is allowed) by trainer key."""
MODEL_RANGES: dict[str, tuple[float, float, bool]] = {
    "lora_r": (1, math.inf, True),
    "lora_alpha": (0, math.inf, False),
    "lora_dropout": (0, 1, True),
}
"""The same of `model`."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
STEPS = ("logging", "eval", "save")
"""What happens every so many steps; below 1 it is a share of the run."""


def check_method(cfg: DictConfig, *, num_processes: int = 1) -> None:
    """Ranges, and combinations that TRL accepts and that break learning. Raises: ConfigError."""
    trainer = cfg.trainer
    check_numbers(cfg)
    for key, allowed in CHOICES.items():
        value = trainer.get(key)
        if value is not None and str(value) not in allowed:
            raise ConfigError(
                f"trainer.{key}: there is no {value!r}; there is {', '.join(allowed)}{nearest(str(value), allowed)}"
            )
    if cfg.give_up_after < 0:
        raise ConfigError(f"give_up_after must be 0 or more, got {cfg.give_up_after}")
    if cfg.max_generated_tokens is not None and (cfg.max_generated_tokens < 1 or cfg.trainer.warmup_steps):
        raise ConfigError(
            f"max_generated_tokens must be at least 1, and its learning rate has no warm-up; got {cfg.max_generated_tokens} "
            f"with trainer.warmup_steps {cfg.trainer.warmup_steps:g}"
        )
    check_batching(cfg)
    _check_batches(trainer, num_processes)
    check_algorithm(cfg, num_processes=num_processes)
    _check_silent_killers(trainer)
    check_chosen_problems(cfg, num_processes)
    check_reward_workers(cfg)
    check_evaluation(cfg)
    check_critic(cfg)
    check_combinations(cfg, num_processes=num_processes)
    if cfg.model.model_name_or_path is None:
        raise ConfigError("model.model_name_or_path is not set; it takes a hub id, a folder, or `tiny`")
    if cfg.model.use_peft and trainer.sync_ref_model:
        raise ConfigError(
            "trainer.sync_ref_model does not work with model.use_peft: the reference is the model without its adapter"
        )


def check_numbers(cfg: DictConfig) -> None:
    """Numbers of `trainer`, `model` and `data`, of any program, each by itself. Raises: ConfigError."""
    trainer = cfg.trainer
    for section, ranges in (("trainer", RANGES), ("model", MODEL_RANGES)):
        for key, value in cfg[section].items():
            if type(value) in (int, float):
                low, high, is_low_allowed = ranges.get(key, (-math.inf, math.inf, True))
                _check_range(f"{section}.{key}", value, low, high, is_low_allowed)
    for key in ("seed", "num_train_rows", "num_eval_rows"):
        value = cfg.data.get(key) if "stages" not in cfg else None
        if value is not None and type(value) is not int:
            raise ConfigError(f"data.{key} must be a whole number, got {value!r}")
        if value is not None:
            _check_range(f"data.{key}", value, 1 if key == "num_train_rows" else 0, 2**32 - 1, True)
    if trainer.max_steps < -1:
        raise ConfigError(
            f"trainer.max_steps must be at least 1, or -1 where trainer.num_train_epochs decides; got {trainer.max_steps}"
        )
    if trainer.max_steps == 0 or (trainer.max_steps < 0 and trainer.num_train_epochs <= 0):
        raise ConfigError("the run would do nothing: set trainer.max_steps or trainer.num_train_epochs above 0")
    for name in STEPS:
        value = trainer[f"{name}_steps"]
        if value is not None and value >= 1 and value != int(value):
            raise ConfigError(
                f"trainer.{name}_steps must be a whole number of steps, or a share below 1; got {value:g}"
            )
    for key, value in (*((f"trainer.adam_beta{n}", trainer[f"adam_beta{n}"]) for n in (1, 2)), ("model.lora_dropout", cfg.model.lora_dropout)):  # fmt: skip
        if value == 1:
            raise ConfigError(f"{key} must be below 1, got 1")
    dtype = str(cfg.model.dtype)
    if cfg.model.dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"model.dtype: there is no {dtype!r}; there is {', '.join(DTYPES)}{nearest(dtype, DTYPES)}")


def _check_range(key: str, value: float, low: float, high: float, is_low_allowed: bool) -> None:
    if math.isfinite(value) and low <= value <= high and (value != low or is_low_allowed):
        return
    if not math.isfinite(low):
        raise ConfigError(f"{key} must be a finite number, got {value:g}")
    bound = f"at least {low:g}" if is_low_allowed else f"more than {low:g}"
    bound += f" and at most {high:.10g}" if math.isfinite(high) else ""
    raise ConfigError(f"{key} must be {bound}, got {value if isinstance(value, int) else format(value, 'g')}")


def _check_batches(trainer: Any, num_processes: int) -> None:
    size, steps = trainer.generation_batch_size, trainer.steps_per_generation
    if size is not None and steps is not None:
        raise ConfigError(
            "trainer.generation_batch_size and trainer.steps_per_generation say the same thing twice; set one"
        )
    if size is None:
        size = trainer.per_device_train_batch_size * num_processes * (steps or trainer.gradient_accumulation_steps)
    if size % trainer.num_generations:
        raise ConfigError(
            f"a generation batch of {size} completions (per_device_train_batch_size {trainer.per_device_train_batch_size} x "
            f"{num_processes} processes x {size // (trainer.per_device_train_batch_size * num_processes)} steps) does not hold "
            f"whole groups of num_generations {trainer.num_generations}"
        )


def _check_silent_killers(trainer: Any) -> None:
    if trainer.use_vllm and trainer.vllm_importance_sampling_correction:
        cut = [
            f"{key}={trainer[key]}"
            for key, neutral in (("top_p", 1.0), ("top_k", 0), ("min_p", None), ("repetition_penalty", 1.0))
            if trainer[key] != neutral
        ]
        if cut:
            raise ConfigError(
                f"trainer.{', trainer.'.join(cut)} with vLLM makes importance ratios vanish and training stand still (trl#6789); "
                "use top_p=1, top_k=0, min_p=null, repetition_penalty=1, or trainer.vllm_importance_sampling_correction=false"
            )
    if trainer.use_transformers_continuous_batching and trainer.bf16 is not False:
        raise ConfigError(
            "trainer.use_transformers_continuous_batching with bf16 turns the float32 master weights into bfloat16 for good; set trainer.bf16=false"
        )
    if not trainer.use_vllm:
        ours = os.environ.get("ACCELERATE_USE_FSDP", "false") != "true"  # transformers generates there
        for key in ("use_transformers_continuous_batching", "cache_implementation"):
            if ours and trainer[key]:
                raise ConfigError(f"trainer.{key} has no effect: without vLLM our own sampler generates; leave it out")
        neutral = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0, "generation_kwargs": None}
        changed = [f"trainer.{key}={trainer[key]}" for key, value in neutral.items() if trainer[key] != value]
        if changed:
            raise ConfigError(
                f"{', '.join(changed)}: without vLLM, completions are drawn from the whole distribution that the loss is "
                "about; leave top_p=1, top_k=0, min_p=null, repetition_penalty=1, generation_kwargs=null"
            )
        if not trainer.ds3_gather_for_generation:
            raise ConfigError(
                "trainer.ds3_gather_for_generation=false needs vLLM: processes end generating at different times"
            )
    if trainer.sync_ref_model and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        raise ConfigError(
            "trainer.sync_ref_model: a reference model sharded by ZeRO-3 is not saved; use zero1 or zero2"
        )
    if trainer.sync_ref_model and not trainer.beta:
        raise ConfigError("trainer.sync_ref_model has no reference model to synchronise: trainer.beta is 0")
    if trainer.remove_unused_columns:
        raise ConfigError("trainer.remove_unused_columns=true removes the columns rewards read; set it to false")
    if trainer.loss_type == "dr_grpo" and str(trainer.scale_rewards) not in ("none", "False"):
        raise ConfigError("trainer.loss_type=dr_grpo is Dr. GRPO only with trainer.scale_rewards=none")
    if str(trainer.eval_strategy) != "no":
        num_generations = trainer.num_generations_eval or trainer.num_generations
        if trainer.per_device_eval_batch_size % num_generations:
            raise ConfigError(
                f"trainer.per_device_eval_batch_size {trainer.per_device_eval_batch_size} does not hold whole groups of {num_generations}"
            )
