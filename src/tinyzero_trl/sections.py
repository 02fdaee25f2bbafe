"""Sections of a recipe that are ours, and contradict each other or the keys of `trainer`."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from tinyzero_trl.algorithms import ALGORITHMS
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.keys import nearest

CURRICULA = ("order", "weight")


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
    features = [key for key in ("dynamic_sampling_rounds", "replay.num_groups") if OmegaConf.select(cfg, key)]
    if not features:
        return
    key = " and ".join(features)
    size = trainer.generation_batch_size or (
        trainer.per_device_train_batch_size
        * num_processes
        * (trainer.steps_per_generation or trainer.gradient_accumulation_steps)
    )
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
