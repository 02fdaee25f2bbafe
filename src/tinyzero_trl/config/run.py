"""A composed recipe -> a checked run: every check that needs no model, in order. A mistake is one ConfigError of one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from tinyzero_trl.config import batching, checks, composition, generation, installed, method, rewards, sections
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.models import CheckedModel, check_stop, checked_start, matching_ids
from tinyzero_trl.task import RewardFn, Task

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class CheckedRun:
    """Everything that a run of grpo.py needs before its folder is opened and its model loads."""

    task: Task
    rewards: Mapping[str, RewardFn]
    """Reward by the name the recipe gives it."""
    start: CheckedModel
    """Location, config and tokenizer of the model that training starts from."""
    train_rows: Dataset
    eval_rows: Dataset | None
    """Held-out rows; None where the run evaluates nothing."""
    args: Any
    """TRL's config object; `output_dir` and `model_init_kwargs` are set once the run folder is known."""
    batch: str
    """The batch in one line: completions, processes, prompts."""
    warnings: tuple[str, ...]
    """Settings that are legal but usually mistakes, a line each."""


@dataclass(frozen=True)
class CheckedPretraining:
    """Everything that a run of sft.py needs before its folder is opened."""

    start: CheckedModel | None
    """The model that training goes on from; None for a new one."""
    args: Any
    """TRL's config object; `output_dir` is set once the run folder is known."""


def check_run(cfg: DictConfig, *, num_processes: int) -> CheckedRun:
    """The checked run of a recipe of grpo.py; where there are several processes, their group is started.

    Paths of models in `cfg` are replaced by those that were found, so that the run's record names them. Raises: ConfigError.
    """
    chosen = checks.parts(cfg)
    check_method(cfg, num_processes=num_processes)
    rewards.check_groups(cfg, chosen.rewards, num_processes=num_processes)
    generation.check_engine(cfg, num_processes=num_processes)
    generation.check_installed(cfg)
    installed.check_installed(cfg)
    start = checked_start(cfg)
    if cfg.batching.share_prompts:
        batching.check_shared_prompts(start.config)
    check_stop(cfg.generation.stop, name="generation.stop", tokenizer=start.tokenizer)
    if cfg.kl_tokens is not None and not matching_ids(start.tokenizer, cfg.kl_tokens):
        raise ConfigError(
            f"kl_tokens={cfg.kl_tokens!r} matches the whole text of none of the {len(start.tokenizer)} tokens of {start.location.shown}"
        )
    train_rows, eval_rows = checks.rows(cfg, chosen, tokenizer=start.tokenizer)
    args = composition.trainer_arguments(cfg, program="grpo", reward_weights=list(cfg.rewards.values()))
    installed.check_optimizer(args)
    checks.check_rows(cfg, chosen, train_rows, start, generation_batch_size=args.generation_batch_size)
    if eval_rows is not None:
        checks.check_rows(cfg, chosen, eval_rows, start, generation_batch_size=0, name="evaluation")
    return CheckedRun(
        task=chosen.task,
        rewards=chosen.rewards,
        start=start,
        train_rows=train_rows,
        eval_rows=eval_rows,
        args=args,
        batch=batching.shown(cfg, num_processes=num_processes),
        warnings=tuple(warnings(cfg, num_processes=num_processes)),
    )


def check_pretraining(cfg: DictConfig) -> CheckedPretraining:
    """The checked run of a recipe of sft.py. Raises: ConfigError."""
    method.check_numbers(cfg)
    installed.check_trackers(cfg)
    start = checked_start(cfg) if cfg.model.model_name_or_path else None
    if start is not None:
        _check_new_tokens(cfg, start)
    args = composition.trainer_arguments(cfg, program="sft", dataset_kwargs={"skip_prepare_dataset": True})
    installed.check_optimizer(args)
    return CheckedPretraining(start, args)


def _check_new_tokens(cfg: DictConfig, start: CheckedModel) -> None:
    for text, like in cfg.new_tokens:
        if matching_ids(start.tokenizer, re.escape(text)):
            raise ConfigError(f"new_tokens: {text!r} is a token of {start.location.shown} already")
        if not matching_ids(start.tokenizer, re.escape(like)):
            raise ConfigError(
                f"new_tokens: {like!r}, from which {text!r} starts, is no token of {start.location.shown}"
            )


def check_method(cfg: DictConfig, *, num_processes: int = 1) -> None:
    """Raises: ConfigError, for the first key that is out of range or cannot go with another; reads no data and no model."""
    method.check_numbers(cfg)
    method.check_choices(cfg)
    batching.check_batching(cfg, num_processes=num_processes)
    sections.check_algorithm(cfg, num_processes=num_processes)
    sections.check_limits(cfg)
    method.check_trainer(cfg, num_processes=num_processes)
    sections.check_curriculum(cfg)
    sections.check_replaced_groups(cfg, num_processes=num_processes)
    sections.check_reward_workers(cfg)
    sections.check_evaluation(cfg)
    sections.check_critic(cfg)
    installed.check_trackers(cfg)


def warnings(cfg: DictConfig, *, num_processes: int = 1) -> list[str]:
    """Warnings about settings that are legal but usually mistakes, a line each."""
    return [
        *method.warnings(cfg, num_processes=num_processes),
        *installed.warnings(cfg),
        *generation.warnings(cfg),
    ]
