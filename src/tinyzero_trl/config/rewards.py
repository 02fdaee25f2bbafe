"""Rewards of a recipe besides their weights: `reward_parameters.<reward>.<parameter>`, and the groups that some compare."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from tinyzero_trl.config.batching import check_whole_groups
from tinyzero_trl.config.sections import RewardWorkerSettings
from tinyzero_trl.failures import ConfigError, nearest
from tinyzero_trl.rewards import FROM_TRAINER, FROM_TRL, BatchReward, GroupReward, for_trl, is_for_trl
from tinyzero_trl.task import RewardFn


def parameters(cfg: DictConfig, rewards: Mapping[str, RewardFn]) -> dict[str, dict[str, Any]]:
    """Keyword arguments by reward; a reward's `max_tokens` is trainer.max_completion_length unless the recipe says otherwise.

    Raises: ConfigError for a reward, a parameter or a value that does not fit.
    """
    given: Any = OmegaConf.to_container(cfg.reward_parameters)
    for name in given:
        if name not in rewards:
            raise ConfigError(f"reward_parameters: the run has no reward {name!r}; it has {', '.join(rewards)}{nearest(name, list(rewards))}")  # fmt: skip
    chosen = {}
    for name, reward in rewards.items():
        takes = _settable(reward)
        values = dict(given.get(name) or {})
        for key, value in values.items():
            if key not in takes:
                has = f"it has {', '.join(takes)}" if takes else "it has none"
                raise ConfigError(f"reward_parameters.{name}: there is no parameter {key!r}; {has}{nearest(key, list(takes))}")  # fmt: skip
            kind = type(takes[key])
            fits = type(value) in (int, float) and math.isfinite(value) if kind is float else type(value) is kind
            if not fits:
                raise ConfigError(f"reward_parameters.{name}.{key} must be {kind.__name__}, got {value!r}")
            if kind in (int, float) and value < (least := _least(key, takes[key])):
                raise ConfigError(f"reward_parameters.{name}.{key} must be at least {least:g}, got {value!r}")
        if "max_tokens" in takes:
            values.setdefault("max_tokens", cfg.trainer.max_completion_length)
        chosen[name] = values
    return chosen


def check_groups(cfg: DictConfig, rewards: Mapping[str, RewardFn], *, num_processes: int) -> None:
    """Raises: ConfigError, where a reward that compares completions would not see whole groups in the training process."""
    if whole := sorted(name for name in cfg.reward_workers.rewards if is_for_trl(rewards[name])):
        raise ConfigError(f"reward_workers.rewards: {', '.join(whole)} takes whole batches, as TRL calls it, and is computed in the trainer; leave it out")  # fmt: skip
    names = [name for name, reward in rewards.items() if isinstance(reward, GroupReward)]
    if not names:
        return
    if idle := sorted(set(names) & set(cfg.reward_workers.rewards)):
        raise ConfigError(f"reward_workers.rewards: {', '.join(idle)} compares the completions of a prompt, and is computed in the trainer; leave it out")  # fmt: skip
    check_whole_groups(cfg, num_processes=num_processes, reason=f"reward {', '.join(names)} compares whole groups")


def _least(name: str, default: float) -> float:
    """The least value of a parameter: 1 for a count that is 1 or more by default, 0 for a `max_...`.

    open-r1 writes max_penalty as -1.0; with that value repetition would be rewarded here.
    """
    if type(default) is int and default >= 1:
        return 1
    return 0 if name.startswith("max_") else -math.inf


def _settable(reward: RewardFn) -> dict[str, Any]:
    """Default by name of the parameters that a recipe may set: numbers and words."""
    return {
        name: item.default
        for name, item in inspect.signature(reward).parameters.items()
        if type(item.default) in (int, float, bool, str) and name not in (*FROM_TRAINER, *FROM_TRL)
    }


def reward_functions(cfg: DictConfig, rewards: Mapping[str, RewardFn]) -> list[BatchReward]:
    """The rewards of a run as TRL calls them; those that `reward_workers.rewards` names share one pool."""
    settings = cast(RewardWorkerSettings, OmegaConf.to_object(cfg.reward_workers))
    pool = None
    if settings.rewards:
        from tinyzero_trl.rewards.pool import RewardPool
        from tinyzero_trl.tasks.reward_worker import score_here

        pool = RewardPool(str(cfg.task), settings, score=score_here)
    values = parameters(cfg, rewards)
    return [
        for_trl(reward, name=name, workers=pool if name in settings.rewards else None, parameters=values[name])
        for name, reward in rewards.items()
    ]
