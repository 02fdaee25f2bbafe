"""TRL's own keys, `trainer` and `model`: ranges, and combinations that TRL accepts and that break learning without a message."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import chain

from omegaconf import DictConfig

from tinyzero_trl.config.environment import is_zero3, uses_deepspeed, uses_fsdp
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
"""(low, high, low is allowed) by model key."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
STEPS = ("logging", "eval", "save")
"""Events that come every so many steps; a number below 1 is a share of the run."""
CHANGES_DISTRIBUTION = (
    *("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("allowed_token_ids", "bad_words", "min_tokens", "structured_outputs"),
)
"""Sampling parameters of vLLM after which its log-probabilities are no longer those of the model."""
OF_THE_TRAINER = ("temperature", "seed", "n", "logprobs", "max_tokens", "prompt_logprobs", "detokenize")
"""Sampling parameters of vLLM that are set by keys of `trainer`, or by what training needs."""
OWN_KEYS = {"temperature": "trainer.temperature", "max_tokens": "trainer.max_completion_length", "seed": "trainer.seed"}
NEUTRAL = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}
"""Values with which completions are drawn from the whole distribution of the model."""
COARSE_STEP = 1e-4
"""Learning rate below which Adam's steps vanish in bfloat16: a weight of 0.02 has neighbours 6e-5 to 1.2e-4 away."""


def check_choices(cfg: DictConfig) -> None:
    """Raises: ConfigError, for a key of `trainer` that TRL types as text and whose value it does not know."""
    for key, allowed in CHOICES.items():
        value = cfg.trainer.get(key)
        if value is not None and str(value) not in allowed:
            raise ConfigError(
                f"trainer.{key}: there is no {value!r}; there is {', '.join(allowed)}{nearest(str(value), allowed)}"
            )


def check_trainer(cfg: DictConfig, *, num_processes: int = 1) -> None:
    """Raises: ConfigError, for the first key of `trainer` or `model` that cannot go with another."""
    by_section = (_generation_mistakes, _reference_mistakes, _objective_mistakes, _precision_mistakes)
    mistakes = chain(*(find(cfg) for find in by_section), _process_mistakes(cfg, num_processes))
    if reason := next(mistakes, None):
        raise ConfigError(reason)


def check_numbers(cfg: DictConfig) -> None:
    """Raises: ConfigError, for a number of `trainer`, `model` or `data` that is out of range, in any program."""
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


def warnings(cfg: DictConfig, *, num_processes: int = 1) -> list[str]:
    """Warnings about keys of TRL that are legal but usually mistakes."""
    trainer, lines = cfg.trainer, []
    if str(cfg.model.dtype) in ("bfloat16", "float16") and not cfg.model.use_peft and not uses_deepspeed():
        if trainer.learning_rate < COARSE_STEP:
            lines.append(
                f"model.dtype={cfg.model.dtype} holds the weights themselves in 16 bits, where most steps of trainer.learning_rate "
                f"{trainer.learning_rate:g} are rounded to nothing; use model.dtype=float32 with trainer.bf16=true, or DeepSpeed"
            )
    elif not trainer.use_cpu and trainer.bf16 is False and not trainer.fp16:
        lines.append("trainer.bf16=false computes in float32, several times slower on a GPU; set trainer.bf16=true")
    if trainer.epsilon_high is not None and trainer.epsilon_high < trainer.epsilon:
        lines.append(
            f"trainer.epsilon_high {trainer.epsilon_high:g} is below trainer.epsilon {trainer.epsilon:g}: what earns more is held "
            "back more than what earns less"
        )
    if trainer.importance_sampling_level == "sequence" and trainer.epsilon >= 0.1:
        lines.append(
            f"trainer.epsilon {trainer.epsilon:g} clips nothing with trainer.importance_sampling_level=sequence, whose ratios are "
            "means over tokens; GSPO uses 3e-4 and epsilon_high 4e-4"
        )
    num_slices = trainer.max_steps * trainer.gradient_accumulation_steps * num_processes
    num_prompts = num_slices * trainer.per_device_train_batch_size // (trainer.num_iterations * trainer.num_generations)
    if cfg.algorithm == "ppo" and 0 < num_prompts <= cfg.critic.warm_start_prompts:
        lines.append(
            f"critic.warm_start_prompts {cfg.critic.warm_start_prompts} are at least the {num_prompts} prompts of the whole run "
            f"(trainer.max_steps {trainer.max_steps}): the policy learns nothing; set it lower"
        )
    schedule = str(trainer.lr_scheduler_type).rpartition(".")[2].lower()
    if cfg.max_generated_tokens is not None and schedule not in ("linear", "constant"):
        lines.append(
            f"trainer.lr_scheduler_type={schedule} goes by steps, and max_generated_tokens ends the run wherever that is; linear falls "
            "to 0 with the tokens"
        )
    if trainer.sync_ref_model and 0 < trainer.max_steps < trainer.ref_model_sync_steps:
        lines.append(
            f"trainer.ref_model_sync_steps {trainer.ref_model_sync_steps} is more than trainer.max_steps {trainer.max_steps}: "
            "the reference model never changes"
        )
    return lines


def _generation_mistakes(cfg: DictConfig) -> Iterator[str]:
    trainer = cfg.trainer
    given = trainer.generation_kwargs or {}
    cut = [f"trainer.{key}={trainer[key]}" for key, value in NEUTRAL.items() if trainer[key] != value]
    if trainer.max_completion_length is None:
        yield "trainer.max_completion_length=null lets a completion grow without end; set a number of tokens"
    for key in ("add_generation_prompt", "continue_final_message", "tokenize"):
        if key in (trainer.chat_template_kwargs or {}):
            yield f"trainer.chat_template_kwargs.{key} is decided by how the prompt ends; remove it"
    if trainer.use_transformers_continuous_batching and trainer.bf16 is not False:
        yield (
            "trainer.use_transformers_continuous_batching with bf16 turns the float32 master weights into bfloat16 for good; set "
            "trainer.bf16=false"
        )
    if not trainer.use_vllm:
        for key in ("use_transformers_continuous_batching", "cache_implementation"):
            if trainer[key] and not uses_fsdp():  # under FSDP transformers generates
                yield f"trainer.{key} has no effect: without vLLM our own sampler generates; leave it out"
        if trainer.generation_kwargs is not None:
            cut.append(f"trainer.generation_kwargs={trainer.generation_kwargs}")
        if cut:
            yield (
                f"{', '.join(cut)}: without vLLM, completions are drawn from the whole distribution that the loss is "
                "about; leave top_p=1, top_k=0, min_p=null, repetition_penalty=1, generation_kwargs=null"
            )
        if not trainer.ds3_gather_for_generation:
            yield "trainer.ds3_gather_for_generation=false needs vLLM: processes end generating at different times"
        return
    for key in OF_THE_TRAINER:
        if key in given:
            where = OWN_KEYS.get(key)
            remedy = f"set {where} instead" if where else "remove it"
            yield f"trainer.generation_kwargs.{key} is not what the loss is computed with; {remedy}"
    cut += [f"trainer.generation_kwargs.{key}" for key in CHANGES_DISTRIBUTION if key in given]
    if trainer.vllm_structured_outputs_regex:
        cut.append("trainer.vllm_structured_outputs_regex")
    if cfg.generation.ahead and cut:
        yield (
            f"{', '.join(cut)} with generation.ahead=1: the ratio to the policy that sampled needs log-probabilities of its whole "
            "distribution; leave top_p=1, top_k=0, min_p=null, repetition_penalty=1 and remove the rest"
        )
    if trainer.vllm_importance_sampling_correction and cut:
        yield (
            f"{', '.join(cut)} with vLLM makes importance ratios vanish and training stand still (trl#6789); leave top_p=1, top_k=0, "
            "min_p=null, repetition_penalty=1 and remove the rest, or set trainer.vllm_importance_sampling_correction=false"
        )
    room = trainer.vllm_max_model_length
    if room is not None and room <= (trainer.max_completion_length or 0):
        yield (
            f"trainer.vllm_max_model_length {room} holds prompt and completion, and trainer.max_completion_length is "
            f"{trainer.max_completion_length}; set it higher by the longest prompt"
        )


def _reference_mistakes(cfg: DictConfig) -> Iterator[str]:
    model, trainer = cfg.model, cfg.trainer
    if model.model_name_or_path is None:
        yield "model.model_name_or_path is not set; it takes a hub id, a folder, or `tiny` or `tiny-search`"
    if trainer.sync_ref_model and is_zero3():
        yield "trainer.sync_ref_model: a reference model sharded by ZeRO-3 is not saved; use zero1 or zero2"
    if trainer.sync_ref_model and not trainer.beta:
        yield "trainer.sync_ref_model has no reference model to synchronise: trainer.beta is 0"
    if trainer.sync_ref_model and model.use_peft:
        yield "trainer.sync_ref_model does not work with model.use_peft: the reference is the model without its adapter"
    if trainer.remove_unused_columns:
        yield "trainer.remove_unused_columns=true removes the columns rewards read; set it to false"


def _objective_mistakes(cfg: DictConfig) -> Iterator[str]:
    trainer = cfg.trainer
    if trainer.loss_type == "dr_grpo" and str(trainer.scale_rewards) not in ("none", "False"):
        yield "trainer.loss_type=dr_grpo is Dr. GRPO only with trainer.scale_rewards=none"
    if trainer.loss_type == "cispo" and (trainer.epsilon_high is None or trainer.epsilon_high < 1):
        yield (
            f"trainer.loss_type=cispo cuts the ratio itself at trainer.epsilon_high, here "
            f"{trainer.epsilon_high if trainer.epsilon_high is not None else trainer.epsilon:g}, so every token would weigh the "
            "same; set it above 1, such as 5.0"
        )
    if trainer.loss_type == "luspo" and trainer.importance_sampling_level != "sequence":
        yield "trainer.loss_type=luspo is LUSPO only with trainer.importance_sampling_level=sequence"
    if trainer.importance_sampling_level == "sequence" and trainer.loss_type in ("bnpo", "dr_grpo", "dapo", "cispo"):
        yield (
            f"trainer.importance_sampling_level=sequence with trainer.loss_type={trainer.loss_type} weighs a sequence's one ratio by "
            "its length; use trainer.loss_type=grpo (GSPO) or luspo"
        )
    if trainer.delta is not None and trainer.delta <= 1 + (trainer.epsilon_high or trainer.epsilon):
        yield (
            f"trainer.delta {trainer.delta:g} clips the ratio of what earned less, and has to be above 1 + epsilon_high "
            f"({1 + (trainer.epsilon_high or trainer.epsilon):g}); set it higher, such as 4.0, or to null"
        )
    if trainer.entropy_coef_min > trainer.entropy_coef_max:
        yield (
            f"trainer.entropy_coef_min {trainer.entropy_coef_min:g} is above trainer.entropy_coef_max "
            f"{trainer.entropy_coef_max:g}; swap them"
        )
    if 0 < trainer.max_steps <= trainer.warmup_steps:
        yield (
            f"trainer.warmup_steps {trainer.warmup_steps:g} is not below trainer.max_steps {trainer.max_steps}: the learning "
            "rate never arrives; set it lower"
        )


def _precision_mistakes(cfg: DictConfig) -> Iterator[str]:
    model, trainer = cfg.model, cfg.trainer
    if trainer.fp16 and trainer.bf16:
        yield "trainer.fp16=true and trainer.bf16=true; set one of them to false"
    if trainer.use_cpu and (trainer.fp16 or trainer.bf16 is not False):
        key = "fp16" if trainer.fp16 else "bf16"
        yield f"trainer.{key} on a CPU is slower than float32 and differs from what is sampled; set trainer.{key}=false"
    if trainer.fp16 and str(model.dtype) in ("float16", "bfloat16"):
        yield f"trainer.fp16=true scales gradients of float32 weights, and model.dtype is {model.dtype}; set model.dtype=float32"
    if (model.load_in_4bit or model.load_in_8bit) and not model.use_peft:
        key = "load_in_4bit" if model.load_in_4bit else "load_in_8bit"
        yield f"model.{key}: weights of so few bits cannot be trained; set model.use_peft=true"


def _process_mistakes(cfg: DictConfig, num_processes: int) -> Iterator[str]:
    trainer = cfg.trainer
    shards = trainer.vllm_tensor_parallel_size
    if trainer.use_vllm and trainer.vllm_mode == "colocate" and num_processes % shards:
        yield f"trainer.vllm_tensor_parallel_size {shards} does not divide the {num_processes} processes; set it to 1"
    # The launcher passes on the number of a person's own config file; ours leave it to the recipe.
    of_launcher = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    if uses_deepspeed() and of_launcher.isdigit() and int(of_launcher) != trainer.gradient_accumulation_steps:
        yield (
            f"the accelerate config accumulates {of_launcher} steps, trainer.gradient_accumulation_steps is "
            f"{trainer.gradient_accumulation_steps}; write `gradient_accumulation_steps: auto` there"
        )
