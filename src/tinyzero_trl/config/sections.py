"""Sections of a recipe that are ours, and contradict each other or the keys of `trainer`."""

from __future__ import annotations

import math
import os
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tinyzero_trl.algorithms import ALGORITHMS
from tinyzero_trl.config.algorithm_checks import generation_batch_size
from tinyzero_trl.failures import ConfigError, nearest

CURRICULA = ("order", "weight")


def changed(cfg: DictConfig, section: str) -> list[str]:
    """The keys of a section that are not as its dataclass has them."""
    settings: Any = OmegaConf.to_object(cfg[section])
    standing = vars(type(settings)())
    return [f"{section}.{key}" for key, value in vars(settings).items() if value != standing[key]]


def check_evaluation(cfg: DictConfig) -> None:
    """How held-out problems are answered during training. Raises: ConfigError."""
    idle = changed(cfg, "evaluation")
    if not idle:
        return
    trainer, temperature = cfg.trainer, cfg.evaluation.temperature
    if str(trainer.eval_strategy) == "no" and not trainer.eval_on_start:
        raise ConfigError(
            f"{', '.join(idle)}: nothing reads it without trainer.eval_strategy; set that, or leave it out"
        )
    if temperature is not None and not 0 <= temperature < math.inf:
        raise ConfigError(f"evaluation.temperature must be 0 (greedy) or more, got {temperature:g}")
    if temperature == 0 and (trainer.num_generations_eval or trainer.num_generations) > 1:
        raise ConfigError("evaluation.temperature=0 gives equal responses: set trainer.num_generations_eval=1")
    if not trainer.use_vllm and os.environ.get("ACCELERATE_USE_FSDP", "false") == "true":
        raise ConfigError(f"{', '.join(idle)}: under FSDP transformers generates, which does not read it; use vLLM")


def check_chosen_problems(cfg: DictConfig, num_processes: int) -> None:
    """Curricula; and dynamic sampling and replay, which put groups in the place of others when advantages are known."""
    trainer = cfg.trainer
    if cfg.curriculum.kind not in CURRICULA:
        raise ConfigError(
            f"curriculum.kind: there is no {cfg.curriculum.kind!r}; there is {', '.join(CURRICULA)}{nearest(cfg.curriculum.kind, CURRICULA)}"
        )
    for key, value, low in (
        ("dynamic_sampling_rounds", cfg.dynamic_sampling_rounds, 0),
        ("replay.num_groups", cfg.replay.num_groups, 0),
        ("replay.max_age", cfg.replay.max_age, 1),
    ):
        if value < low:
            raise ConfigError(f"{key} must be {low} or more, got {value}")
    for section, switch, off in (("curriculum", "by", None), ("replay", "num_groups", 0)):
        if cfg[section][switch] == off and (idle := changed(cfg, section)):
            raise ConfigError(
                f"{', '.join(idle)}: nothing reads it without {section}.{switch}; set that, or leave it out"
            )
    if cfg.curriculum.by is not None and not trainer.shuffle_dataset:
        raise ConfigError(
            "trainer.shuffle_dataset=false keeps the order of the rows, and curriculum.by chooses another; leave one of them out"
        )
    features = [key for key in ("dynamic_sampling_rounds", "replay.num_groups") if OmegaConf.select(cfg, key)]
    if not features:
        return
    key = " and ".join(features)
    size = generation_batch_size(trainer, num_processes)
    if size // num_processes % trainer.num_generations:
        raise ConfigError(
            f"{key}: whole groups are replaced within a process, and the {size // num_processes} completions of each of "
            f"{num_processes} are no whole groups of num_generations {trainer.num_generations}"
        )
    whitening = cfg.advantage_whitening or ALGORITHMS[cfg.algorithm].whitening
    over_batch = [
        name
        for name, is_so in (
            (f"advantage_whitening={whitening}", whitening == "batch"),
            ("trainer.scale_rewards=batch", str(trainer.scale_rewards) == "batch"),
            (
                "trainer.multi_objective_aggregation=normalize_then_sum",
                trainer.multi_objective_aggregation == "normalize_then_sum",
            ),
        )
        if is_so
    ]
    if over_batch:
        raise ConfigError(
            f"{key}: groups of several batches are mixed, and {', '.join(over_batch)} measures advantages by the batch each comes from"
        )
    if cfg.algorithm == "ppo":
        raise ConfigError(f"{key}: needs groups that can be without signal; the advantages of algorithm ppo never are")
    is_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"
    if cfg.replay.num_groups and is_fsdp and not trainer.use_vllm:
        raise ConfigError(
            "replay.num_groups needs the log-probabilities completions were sampled with, which generation under FSDP does not "
            "give; use trainer.use_vllm=true, ddp, or zero1 to zero3"
        )
    if cfg.replay.num_groups and trainer.sync_ref_model:
        raise ConfigError(
            "replay.num_groups keeps the reference model's log-probabilities, which trainer.sync_ref_model changes"
        )


def check_reward_workers(cfg: DictConfig) -> None:
    """Names and limits of `reward_workers`. Raises: ConfigError."""
    section, named = cfg.reward_workers, [str(name) for name in cfg.rewards]
    for name in section.rewards:
        if name not in named:
            raise ConfigError(
                f"reward_workers.rewards: the run has no reward {name!r}; it has {', '.join(named)}{nearest(name, named)}"
            )
    for key in ("num_workers", "seconds_per_call", "seconds_per_batch", "memory_gib"):
        if section[key] is not None and not section[key] > 0:
            raise ConfigError(f"reward_workers.{key} must be more than 0, got {section[key]:g}")
    if not section.rewards:
        if idle := changed(cfg, "reward_workers"):
            raise ConfigError(
                f"{', '.join(idle)}: nothing reads it without reward_workers.rewards; set that, or leave it out"
            )
        return
    if section.seconds_per_batch < section.seconds_per_call:
        raise ConfigError(
            f"reward_workers.seconds_per_batch {section.seconds_per_batch:g} ends a batch before "
            f"reward_workers.seconds_per_call {section.seconds_per_call:g} ends a call; set it higher"
        )
    if section.seconds_per_batch >= cfg.trainer.ddp_timeout:
        raise ConfigError(
            f"reward_workers.seconds_per_batch {section.seconds_per_batch:g} is not below trainer.ddp_timeout "
            f"{cfg.trainer.ddp_timeout:g}, after which the other processes give up on this one; set it lower"
        )


def check_critic(cfg: DictConfig) -> None:
    """The value model of `algorithm: ppo`. Raises: ConfigError."""
    critic = cfg.critic
    if cfg.algorithm != "ppo":
        if idle := changed(cfg, "critic"):
            raise ConfigError(f"{', '.join(idle)}: the critic is for algorithm: ppo, and this is {cfg.algorithm}")
        return
    for key, is_right, wanted in (
        ("learning_rate", 0 < critic.learning_rate < math.inf, "more than 0"),
        ("num_minibatches", critic.num_minibatches >= 1, "1 or more"),
        ("warm_start_prompts", critic.warm_start_prompts >= 0, "0 or more"),
        ("gamma", 0 < critic.gamma <= 1, "more than 0 and at most 1"),
        ("lam", 0 <= critic.lam <= 1, "at least 0 and at most 1"),
        ("clip_range", critic.clip_range > 0, "more than 0"),
    ):
        if not is_right:
            raise ConfigError(f"critic.{key} must be {wanted}, got {critic[key]:g}")
    is_zero3 = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
    if is_zero3 or os.environ.get("ACCELERATE_USE_FSDP", "false") == "true":
        raise ConfigError(
            "algorithm: ppo keeps its value model whole on every process, which ZeRO-3 and FSDP do not allow; use one process, "
            "ddp, zero1 or zero2"
        )


def check_batching(cfg: DictConfig) -> None:
    """What bounds a micro-batch, and packing. Raises: ConfigError."""
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
            ("FSDP", os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"),
        )
        if is_so
    ]
    if limit is not None and keeps_slices:
        raise ConfigError(
            f"batching.max_tokens_per_microbatch={limit} with {', '.join(keeps_slices)}: micro-batches stay as TRL cuts them there; "
            "set trainer.per_device_train_batch_size instead"
        )
    # Elsewhere rows are kept apart by a mask over all pairs of tokens, which costs more than the padding did.
    if cfg.batching.packing and not any(name in attention for name in ("flash_attention", "flash-attn")):
        raise ConfigError(
            f"batching.packing=true with model.attn_implementation={attention}: it needs attention over rows of different lengths; "
            "use model.attn_implementation=flash_attention_2 (or _3, or kernels-community/flash-attn), or batching.packing=false"
        )
