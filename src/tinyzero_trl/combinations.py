"""Combinations of keys that no library refuses, and that would break a run or its learning without a word."""

from __future__ import annotations

from omegaconf import DictConfig

from tinyzero_trl.failures import ConfigError
from tinyzero_trl.keys import nearest


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
