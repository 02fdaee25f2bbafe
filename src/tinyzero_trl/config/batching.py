"""The section `batching`: size of a batch, whatever the number of processes, and work left out of the training phase.

TRL counts for one device: a step is `per_device_train_batch_size x processes x gradient_accumulation_steps` completions, so that the same recipe on
another number of GPUs trains another batch. `batching.completions_per_step` states the batch, and the accumulation follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from tinyzero_trl.config.environment import uses_fsdp
from tinyzero_trl.failures import ConfigError

FOLLOWS = {
    "completions_per_step": "gradient_accumulation_steps",
    "completions_per_rollout": "steps_per_generation",
}
"""The key of `trainer` that follows from a key of `batching`."""
PROCESSES = range(1, 65)
"""Numbers of processes that an error may suggest."""
CPU_TOKENS = 4096
"""Tokens computed at once at most on a CPU where the settings have no budget: more are no faster there, and take memory."""
SHARING_MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures that share_prompts is tested with: their tokens meet in attention alone, and the arguments of a call reach it."""
SHARING_ATTENTION = "sdpa"
"""Implementation of attention that share_prompts extends."""


@dataclass
class BatchingSettings:
    """Size of a batch, and work left out of the training phase; the gradient stays TRL's up to rounding."""

    skip_constant_groups: bool = True
    """Rows whose advantage is 0 are left out of old-logprob, forward and backward passes, where the loss has no other term."""
    sort_by_length: bool = True
    """Rows of an optimizer step are dealt into micro-batches of like length, each trimmed to its longest."""
    max_tokens_per_microbatch: int | None = None
    """Tokens computed at once at most, padding included; null: per_device_train_batch_size times the widest row, on a CPU 4,096 at most."""
    fold_old_logprobs: bool = True
    """Old log-probabilities come from the loss's own forward pass where the rollouts are on-policy."""
    packing: bool = False
    """Rows are computed end to end without padding; needs an attention implementation for variable lengths."""
    share_prompts: bool = False
    """A prompt is computed once for all its completions of a micro-batch, and padding only in attention; model.attn_implementation sdpa."""
    completions_per_step: int | None = None
    """Completions of an optimizer step, all processes together; trainer.gradient_accumulation_steps follows from it. null:
    trainer.per_device_train_batch_size x processes x trainer.gradient_accumulation_steps."""
    completions_per_rollout: int | None = None
    """Completions generated at once, all processes together; trainer.steps_per_generation follows from it. null: the completions of one step."""


def settle(
    cfg: DictConfig, *, num_processes: int, in_recipe: Collection[str] = (), in_words: Collection[str] = ()
) -> None:
    """Write the batch that `batching` states into `trainer`, in TRL's terms, for this number of processes.

    in_recipe, in_words: the keys that recipe files and the command line set. The command line takes precedence, whichever of the two ways
    to state a batch it uses.
    Raises: ConfigError, where the batch is no whole number of micro-batches, or a stated key contradicts it.
    """
    trainer = cfg.trainer
    at_once = int(trainer.per_device_train_batch_size) * num_processes
    if at_once < 1:
        return  # check_numbers names the key that is out of range
    for key, follows in FOLLOWS.items():
        others = [
            f"trainer.{follows}",
            *(["trainer.generation_batch_size"] if key == "completions_per_rollout" else []),
        ]
        if f"batching.{key}" not in in_words and any(other in in_words for other in others):
            cfg.batching[key] = None
        if f"batching.{key}" in in_words:
            stated = [other for other in others if other in in_words]
        else:
            stated = [other for other in others if other in in_recipe]
        completions = cfg.batching[key]
        if completions is None:
            continue
        if completions < 1:
            raise ConfigError(f"batching.{key} must be at least 1 or null, got {completions}")
        if completions % at_once:
            raise ConfigError(
                f"batching.{key} {completions} is no multiple of the {at_once} completions computed at once "
                f"(trainer.per_device_train_batch_size {trainer.per_device_train_batch_size} x {_processes(num_processes)}); "
                f"use {', or '.join(_what_fits(cfg, key, num_processes))}"
            )
        steps = completions // at_once
        if f"trainer.{follows}" in stated and trainer[follows] not in (None, steps):
            raise ConfigError(
                f"trainer.{follows}={trainer[follows]} makes {at_once * trainer[follows]} completions with {_processes(num_processes)}, "
                f"and batching.{key} is {completions}: leave trainer.{follows} out ({steps} follows), or set "
                f"batching.{key} to {at_once * trainer[follows]}, or to null"
            )
        if "trainer.generation_batch_size" in stated and trainer.generation_batch_size not in (None, completions):
            raise ConfigError(
                f"trainer.generation_batch_size={trainer.generation_batch_size} and batching.{key}={completions} state the same "
                "batch differently; leave one of them out"
            )
        if key == "completions_per_rollout":
            trainer.generation_batch_size = None  # TRL takes one of the two
        trainer[follows] = steps


def accumulated(cfg: DictConfig, *, num_processes: int) -> int:
    """Micro-batches of each process in an optimizer step."""
    if cfg.batching.completions_per_step is None:
        return int(cfg.trainer.gradient_accumulation_steps)
    return max(1, int(cfg.batching.completions_per_step) // _at_once(cfg, num_processes))


def generated_at_once(cfg: DictConfig, *, num_processes: int) -> int:
    """Completions that all processes together generate before they train on any."""
    trainer = cfg.trainer
    if trainer.generation_batch_size:
        return int(trainer.generation_batch_size)
    if cfg.batching.completions_per_rollout is not None:
        return int(cfg.batching.completions_per_rollout)
    return _at_once(cfg, num_processes) * int(
        trainer.steps_per_generation or accumulated(cfg, num_processes=num_processes)
    )


def shown(cfg: DictConfig, *, num_processes: int) -> str:
    """The batch of a run in one line: completions, processes, prompts."""
    trainer, steps = cfg.trainer, accumulated(cfg, num_processes=num_processes)
    per_step = _at_once(cfg, num_processes) * steps
    group = int(trainer.num_generations)
    prompts = f"{per_step // group:,} prompts" if per_step % group == 0 else f"{per_step / group:,.1f} prompts"
    line = (
        f"{per_step:,} completions a step = {_processes(num_processes)} x {trainer.per_device_train_batch_size} a device x "
        f"{steps} accumulated; {prompts} x {group}"
    )
    rollout = generated_at_once(cfg, num_processes=num_processes)
    return line if rollout == per_step else f"{line}; {rollout:,} generated at once"


def check_batching(cfg: DictConfig, *, num_processes: int) -> None:
    """Raises: ConfigError, for a batch stated twice or without whole groups, a bound that nothing reads, or packing without its attention."""
    trainer, limit, attention = cfg.trainer, cfg.batching.max_tokens_per_microbatch, str(cfg.model.attn_implementation)
    if limit is not None and limit < 1:
        raise ConfigError(f"batching.max_tokens_per_microbatch must be at least 1 or null, got {limit}")
    keeps_slices = [
        name
        for name, is_so in (
            ("trainer.loss_type=bnpo", trainer.loss_type == "bnpo"),
            ("trainer.entropy_coef", trainer.entropy_coef != 0 or trainer.use_adaptive_entropy),
            ("trainer.top_entropy_quantile", trainer.top_entropy_quantile < 1),
            ("trainer.router_aux_loss_coef", bool(trainer.router_aux_loss_coef)),
            ("FSDP", uses_fsdp()),
        )
        if is_so
    ]
    if limit is not None and keeps_slices:
        raise ConfigError(
            f"batching.max_tokens_per_microbatch={limit} with {', '.join(keeps_slices)}: micro-batches stay as TRL cuts them there; "
            "set trainer.per_device_train_batch_size instead"
        )
    # Other attention keeps rows apart by a mask over all pairs of tokens, which costs more than the padding did.
    if cfg.batching.packing and not any(name in attention for name in ("flash_attention", "flash-attn")):
        raise ConfigError(
            f"batching.packing=true with model.attn_implementation={attention}: it needs attention over rows of different lengths; "
            "use model.attn_implementation=flash_attention_2 (or _3, or kernels-community/flash-attn), or batching.packing=false"
        )
    if cfg.batching.share_prompts and cfg.batching.packing:
        raise ConfigError("batching.share_prompts and batching.packing both take the padding out of a pass; set one")
    if cfg.batching.share_prompts and attention not in ("None", SHARING_ATTENTION):
        raise ConfigError(
            f"batching.share_prompts=true with model.attn_implementation={attention}: it needs {SHARING_ATTENTION}, or batching.packing instead"
        )
    if trainer.generation_batch_size is not None and trainer.steps_per_generation is not None:
        raise ConfigError(
            "trainer.generation_batch_size and trainer.steps_per_generation say the same thing twice; set one"
        )
    check_whole_groups(cfg, num_processes=num_processes)
    num_generations_eval = trainer.num_generations_eval or trainer.num_generations
    if str(trainer.eval_strategy) != "no" and trainer.per_device_eval_batch_size % num_generations_eval:
        raise ConfigError(
            f"trainer.per_device_eval_batch_size {trainer.per_device_eval_batch_size} does not hold whole groups of {num_generations_eval}"
        )


def check_shared_prompts(model_config: Any) -> None:
    """Raises: ConfigError, where a model of this configuration cannot be trained with batching.share_prompts."""
    window = getattr(model_config, "sliding_window", None)
    if model_config.model_type not in SHARING_MODELS or window is not None:
        raise ConfigError(
            f"batching.share_prompts=true with a model of type {model_config.model_type}"
            f"{'' if window is None else f' and a window of {window} tokens'}: it is for {', '.join(SHARING_MODELS)} with attention to all "
            "tokens before; set batching.share_prompts=false"
        )


def check_whole_groups(cfg: DictConfig, *, num_processes: int, reason: str | None = None) -> None:
    """Raises: ConfigError, where a generation batch holds a part of a group.

    reason: a claim about whole groups that holds within each process; None: a group may lie in several processes.
    """
    rows, group = int(cfg.trainer.per_device_train_batch_size), int(cfg.trainer.num_generations)
    size = generated_at_once(cfg, num_processes=num_processes)
    if reason is None and size % group:
        raise ConfigError(
            f"a generation batch of {size} completions (per_device_train_batch_size {rows} x {num_processes} processes x "
            f"{size // (rows * num_processes)} steps) does not hold whole groups of num_generations {group}"
        )
    if reason is not None and (here := size // num_processes) % group:
        raise ConfigError(
            f"{reason}, and the {here} completions of each of {num_processes} are no whole groups of trainer.num_generations {group}"
        )


def _at_once(cfg: DictConfig, num_processes: int) -> int:
    return int(cfg.trainer.per_device_train_batch_size) * num_processes


def _processes(number: int) -> str:
    return f"{number} process{'es' if number > 1 else ''}"


def _what_fits(cfg: DictConfig, key: str, num_processes: int) -> Iterator[str]:
    completions, rows = int(cfg.batching[key]), int(cfg.trainer.per_device_train_batch_size)
    if completions % num_processes == 0:
        share = completions // num_processes
        fitting = max(size for size in range(1, min(rows, share) + 1) if share % size == 0)
        yield f"trainer.per_device_train_batch_size={fitting}"
    numbers = [number for number in PROCESSES if completions % (rows * number) == 0]
    if numbers:
        yield f"{', '.join(map(str, numbers))} process{'es' if numbers != [1] else ''}"
    unit = math.lcm(rows * num_processes, int(cfg.trainer.num_generations))
    nearest = sorted({completions // unit * unit, (completions // unit + 1) * unit} - {0})
    yield f"batching.{key}={' or '.join(map(str, nearest))}"
