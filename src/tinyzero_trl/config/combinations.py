"""Combinations of keys that no library refuses before the model loads, and that would break a run or its learning.

What cannot be right is refused (`check_combinations`); what may be meant is answered with a line in the log (`advice`).
"""

from __future__ import annotations

import copy
import importlib.util
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tinyzero_trl.failures import ConfigError, first_line, nearest

CHANGES_DISTRIBUTION = (
    *("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("allowed_token_ids", "bad_words", "min_tokens", "structured_outputs"),
)
"""Sampling parameters of vLLM after which its log-probabilities are no longer those of the model."""
OF_THE_TRAINER = ("temperature", "seed", "n", "logprobs", "max_tokens", "prompt_logprobs", "detokenize")
"""Sampling parameters of vLLM that are set by keys of `trainer`, or by what training needs."""
OWN_KEYS = {"temperature": "trainer.temperature", "max_tokens": "trainer.max_completion_length", "seed": "trainer.seed"}
TRACKERS = {
    "wandb": "wandb", "trackio": "trackio", "tensorboard": "tensorboard", "mlflow": "mlflow", "comet_ml": "comet_ml",
    "swanlab": "swanlab", "clearml": "clearml", "neptune": "neptune", "codecarbon": "codecarbon", "dagshub": "dagshub",
    "dvclive": "dvclive", "flyte": "flytekit", "azure_ml": "azureml", "kubeflow": "kubeflow",
}  # fmt: skip
"""Module by name in `trainer.report_to`."""
PACKAGES = {"azure_ml": "azureml-mlflow", "flyte": "flytekit"}
"""What installs a tracker, where its package has another name."""
ATTENTION = {
    "flash_attention_2": ("flash_attn", "pip install flash-attn --no-build-isolation"),
    "flash_attention_3": ("flash_attn_interface", "build it from github.com/Dao-AILab/flash-attention, folder hopper"),
}
"""Module, and what installs it, of attention implementations beside PyTorch's own; the package `kernels` fetches either."""
COARSE_STEP = 1e-4
"""Learning rate below which Adam's steps vanish in bfloat16: a weight of 0.02 has neighbours 6e-5 to 1.2e-4 away."""


def check_combinations(cfg: DictConfig, *, num_processes: int = 1) -> None:
    """Raises: ConfigError, on the first combination that cannot be right."""
    for finds in (_generation_faults, _objective_faults, _precision_faults, _tracker_faults):
        for fault in finds(cfg):
            raise ConfigError(fault)
    for fault in _process_faults(cfg, num_processes):
        raise ConfigError(fault)


def check_trackers(cfg: DictConfig) -> None:
    """Whether what `trainer.report_to` names is there. Raises: ConfigError with what installs it."""
    for fault in _tracker_faults(cfg):
        raise ConfigError(fault)


def advice(cfg: DictConfig, *, num_processes: int = 1) -> list[str]:
    """Lines on what may be meant and often is not."""
    trainer, lines = cfg.trainer, []
    has_own_masters = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"
    if str(cfg.model.dtype) in ("bfloat16", "float16") and not cfg.model.use_peft and not has_own_masters:
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
    if "wandb" in _trackers(trainer) and not _has_wandb_login():
        lines.append("trainer.report_to has wandb, and there is no login: run `wandb login`, or set WANDB_MODE=offline")
    return lines


def check_installed(cfg: DictConfig) -> None:
    """Whether what the run needs beside our own dependencies is there. Raises: ConfigError with the command that installs it."""
    if fault := attention_fault(cfg.model.attn_implementation):
        raise ConfigError(f"model.attn_implementation={cfg.model.attn_implementation}{fault}")
    wanted = [key for key in ("load_in_4bit", "load_in_8bit") if cfg.model[key]]
    named = [f"model.{key}=true" for key in wanted]
    if any(word in str(cfg.trainer.optim) for word in ("8bit", "paged_", "bnb")):
        named.append(f"trainer.optim={cfg.trainer.optim}")
    if named and importlib.util.find_spec("bitsandbytes") is None:
        instead = "; without it: model.load_in_4bit=false trainer.optim=adamw_torch_fused, for more memory"
        raise ConfigError(
            f"{' and '.join(named)} needs bitsandbytes: pip install -e '.[quantization]'{instead if len(named) > 1 else ''}"
        )


def check_optimizer(args: Any) -> None:
    """Whether the optimizer and the schedule can be made, and read every argument they are given. Raises: ConfigError.

    args: TRL's config object, whose own checks know the names.
    """
    import torch
    from transformers import Trainer, get_scheduler

    weight = torch.nn.Parameter(torch.zeros(1))
    faults = (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError)
    try:
        optimizer_class, arguments = Trainer.get_optimizer_cls_and_kwargs(args)
        if optimizer_class.__module__.startswith("torch.optim"):
            optimizer_class([weight], **arguments)
    except faults as error:
        if "pass a" not in str(error):  # GaLore and its like want the model, which is not loaded
            given = f" trainer.optim_args={args.optim_args}" if args.optim_args else ""
            raise ConfigError(f"trainer.optim={args.optim.value}{given}: {first_line(error)}") from error
    else:
        for item in (args.optim_args or "").replace(" ", "").split(",") if args.optim_args else []:
            # Where another value makes no difference, nothing reads it.
            probe = copy.copy(args)
            probe.optim_args = f"{item.partition('=')[0]}=0.123"
            bare = copy.copy(args)
            bare.optim_args = None
            try:
                is_idle = Trainer.get_optimizer_cls_and_kwargs(probe) == Trainer.get_optimizer_cls_and_kwargs(bare)
            except faults:
                continue  # it is read: 0.123 is no value for it
            if is_idle:
                raise ConfigError(f"trainer.optim_args: {item}: trainer.optim={args.optim.value} reads no such argument; leave it out")  # fmt: skip
    kind, options = args.lr_scheduler_type, args.lr_scheduler_kwargs or {}
    if not isinstance(options, dict):
        raise ConfigError(f"trainer.lr_scheduler_kwargs must be a mapping, {{key: value}}, got {options!r:.80}")
    try:
        optimizer = torch.optim.SGD([weight], lr=1.0)
        scheduler = get_scheduler(
            kind, optimizer, num_warmup_steps=0, num_training_steps=10, scheduler_specific_kwargs=dict(options)
        )
        if not isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            for _ in range(9):
                optimizer.step()
                scheduler.step()
            if not all(math.isfinite(rate) for rate in scheduler.get_last_lr()):
                raise ValueError("the learning rate is no number")
    except (*faults, ArithmeticError, AssertionError) as error:
        raise ConfigError(f"trainer.lr_scheduler_kwargs={options} with trainer.lr_scheduler_type={kind.value}: {first_line(error)}") from error  # fmt: skip


def attention_fault(name: str | None) -> str | None:
    """What is wrong with an attention implementation, behind its name; None where it is one that is installed."""
    if name is None:
        return None
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ["eager", *(key for key in ALL_ATTENTION_FUNCTIONS.valid_keys() if "paged" not in key)]
    has_kernels = importlib.util.find_spec("kernels") is not None
    plain = name.removeprefix("paged|")
    if "/" in plain:
        return None if has_kernels else " is a kernel of the hub, which needs kernels: pip install kernels; or use sdpa"
    if plain not in known and plain not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        return f": there is no {name!r}; there is {', '.join(known)}{nearest(name, known)}"
    module, install = ATTENTION.get(plain, ("torch", ""))
    if importlib.util.find_spec(module) is None and not has_kernels:
        return f" needs {module}: {install}; or pip install kernels; without it: model.attn_implementation=sdpa"
    if plain not in known[:1] and plain.startswith("flash_attention") and plain not in ATTENTION and not has_kernels:
        return " is not installed: pip install kernels; without it: model.attn_implementation=sdpa"
    return None


def _generation_faults(cfg: DictConfig) -> Iterator[str]:
    trainer = cfg.trainer
    given = trainer.generation_kwargs or {}
    if trainer.max_completion_length is None:
        yield "trainer.max_completion_length=null lets a completion grow without end; set a number of tokens"
    for key in OF_THE_TRAINER:
        if trainer.use_vllm and key in given:
            where = OWN_KEYS.get(key)
            remedy = f"set {where} instead" if where else "remove it"
            yield f"trainer.generation_kwargs.{key} is not what the loss is computed with; {remedy}"
    if trainer.use_vllm and trainer.vllm_importance_sampling_correction:
        cut = [f"trainer.generation_kwargs.{key}" for key in CHANGES_DISTRIBUTION if key in given]
        if trainer.vllm_structured_outputs_regex:
            cut.append("trainer.vllm_structured_outputs_regex")
        if cut:
            yield (
                f"{', '.join(cut)} with vLLM makes importance ratios vanish and training stand still (trl#6789); remove it, or set "
                "trainer.vllm_importance_sampling_correction=false"
            )
    room = trainer.vllm_max_model_length
    if trainer.use_vllm and room is not None and room <= (trainer.max_completion_length or 0):
        yield (
            f"trainer.vllm_max_model_length {room} holds prompt and completion, and trainer.max_completion_length is "
            f"{trainer.max_completion_length}; set it higher by the longest prompt"
        )
    for key in ("add_generation_prompt", "continue_final_message", "tokenize"):
        if key in (trainer.chat_template_kwargs or {}):
            yield f"trainer.chat_template_kwargs.{key} is decided by how the prompt ends; remove it"


def _objective_faults(cfg: DictConfig) -> Iterator[str]:
    trainer = cfg.trainer
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


def _precision_faults(cfg: DictConfig) -> Iterator[str]:
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


def _process_faults(cfg: DictConfig, num_processes: int) -> Iterator[str]:
    trainer = cfg.trainer
    shards = trainer.vllm_tensor_parallel_size
    if trainer.use_vllm and trainer.vllm_mode == "colocate" and num_processes % shards:
        yield f"trainer.vllm_tensor_parallel_size {shards} does not divide the {num_processes} processes; set it to 1"
    # What the launcher hands on of a config file of one's own; ours leave it to the recipe.
    of_launcher = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    is_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"
    if is_deepspeed and of_launcher.isdigit() and int(of_launcher) != trainer.gradient_accumulation_steps:
        yield (
            f"the accelerate config accumulates {of_launcher} steps, trainer.gradient_accumulation_steps is "
            f"{trainer.gradient_accumulation_steps}; write `gradient_accumulation_steps: auto` there"
        )


def _tracker_faults(cfg: DictConfig) -> Iterator[str]:
    for name in _trackers(cfg.trainer):
        if name not in (*TRACKERS, "none", "all", "None"):
            yield f"trainer.report_to: there is no {name!r}; there is none, all, {', '.join(TRACKERS)}{nearest(name, TRACKERS)}"
        if name in TRACKERS and importlib.util.find_spec(TRACKERS[name]) is None:
            yield f"trainer.report_to has {name}, which is not installed; pip install {PACKAGES.get(name, name)}, or set trainer.report_to=none"


def _trackers(trainer: Any) -> list[str]:
    value = trainer.report_to
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return [str(name) for name in (plain if isinstance(plain, list) else [plain])]


def _has_wandb_login() -> bool:
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return (
        "WANDB_API_KEY" in os.environ
        or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun", "shared")
        or (netrc.is_file() and "wandb" in netrc.read_text(encoding="utf-8", errors="replace"))
    )
