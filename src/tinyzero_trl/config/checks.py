"""Names and rows of a run: the task, format and rewards a recipe names, its data, and whether every row fits them and the model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from tinyzero_trl.config.rewards import parameters
from tinyzero_trl.config.sections import DATA_KEYS
from tinyzero_trl.failures import ConfigError, first_line, nearest
from tinyzero_trl.models import CheckedModel, check_prompts, fitted, prompts_ids
from tinyzero_trl.rewards import FROM_TRL, columns_of, is_for_trl, why_not_a_reward
from tinyzero_trl.task import FormatFn, RewardFn, Row, Task, loaded, prompts, resolve
from tinyzero_trl.tasks import find_task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

BOS_BYTES = 64
TEMPLATE_BYTES = 4096
"""More than a chat template adds to its messages: role marks and a default system text."""


@dataclass(frozen=True)
class Parts:
    """The objects that a recipe names."""

    task: Task
    format_fn: FormatFn
    rewards: Mapping[str, RewardFn]
    """Reward by the name the recipe gives it."""


def parts(cfg: DictConfig) -> Parts:
    """The task, format and rewards a recipe names. Raises: ConfigError that lists what there is."""
    try:
        task = find_task(str(cfg.task))
    except ValueError as error:
        raise ConfigError(f"task: {error}") from error
    try:
        format_fn = resolve(str(cfg.format), among=task.formats, kind=f"format of task {task.name}")
        named = {
            str(name): resolve(str(name), among=task.rewards, kind=f"reward of task {task.name}")
            for name in cfg.rewards
        }
        for name, reward in named.items():
            if reason := why_not_a_reward(reward):
                raise ConfigError(f"reward {name} {reason}")
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    if not named:
        raise ConfigError(f"rewards is empty; task {task.name} has {', '.join(sorted(task.rewards))}")
    if not any(weight for weight in cfg.rewards.values()) or not all(math.isfinite(w) for w in cfg.rewards.values()):
        raise ConfigError(f"rewards need finite weights, one of them not 0, got {OmegaConf.to_container(cfg.rewards)}")
    parameters(cfg, named)
    _check_best_metric(cfg, task, named)
    _check_data_keys(cfg, task)
    return Parts(task, format_fn, named)


def rows(
    cfg: DictConfig, chosen: Parts, *, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[Dataset, Dataset | None]:
    """Training and evaluation rows with their prompts; with a tokenizer, as its chat template takes them. Raises: ConfigError for bad data."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    data = OmegaConf.to_container(cfg.data)
    assert isinstance(data, dict)
    arguments = {str(key): value for key, value in data.items() if key not in ("num_train_rows", "num_eval_rows")}
    name = str(cfg.model.model_name_or_path)

    def load(split: str, num_rows: int | None) -> Dataset:
        dataset = _load(chosen, split=split, num_rows=num_rows, **arguments)
        if tokenizer is None:
            return dataset
        worded = dataset["prompt"][:]
        as_taken = fitted(worded, tokenizer, name=name)
        return dataset if as_taken is worded else dataset.remove_columns("prompt").add_column("prompt", as_taken)

    train = load("train", cfg.data.num_train_rows)
    if cfg.trainer.eval_strategy == "no" or not cfg.data.num_eval_rows:
        if str(cfg.trainer.eval_strategy) != "no":
            raise ConfigError(
                "trainer.eval_strategy is set and data.num_eval_rows is 0: say how many rows to evaluate on"
            )
        if cfg.trainer.eval_on_start:
            raise ConfigError(
                "trainer.eval_on_start=true needs an evaluation: set trainer.eval_strategy, or it to false"
            )
        return train, None
    return train, load("validation", cfg.data.num_eval_rows)


def check_rows(
    cfg: DictConfig,
    chosen: Parts,
    dataset: Dataset,
    start: CheckedModel,
    *,
    generation_batch_size: int,
    name: str = "train",
) -> None:
    """Raises: ConfigError, naming the row, where a row lacks a column that is read, or a prompt does not fit the model."""
    wanted = set(chosen.task.columns).union(*(columns_of(reward) for reward in chosen.rewards.values()))
    for column in sorted(wanted - set(dataset.column_names)):
        readers = [key for key, reward in chosen.rewards.items() if column in columns_of(reward)] or [
            f"task {chosen.task.name}"
        ]
        raise ConfigError(
            f"{name} rows have no column {column!r}, which {', '.join(readers)} reads; they have {', '.join(dataset.column_names)}"
        )
    reserved = {"completion", *FROM_TRL} & set(dataset.column_names)
    if reserved and (reserved != {"completion"} or "completion" in wanted):
        raise ConfigError(
            f"{name} rows have a column {', '.join(sorted(reserved))}, a name that TRL keeps for what it passes to rewards; rename it"
        )
    num_needed = math.ceil(generation_batch_size / cfg.trainer.num_generations)
    if name == "train" and len(dataset) < num_needed:
        raise ConfigError(
            f"{len(dataset)} {name} rows are fewer than one generation batch, which takes {num_needed} prompts "
            f"(generation batch {generation_batch_size} / num_generations {cfg.trainer.num_generations})"
        )
    if name == "train" and cfg.curriculum.by not in (None, "success"):
        check_curriculum(cfg, dataset, num_needed=num_needed)
    worded = dataset["prompt"][:]  # in one piece: row by row it takes ten times as long
    for index, prompt in enumerate(worded):
        reason = _why_not_a_prompt(prompt)
        if reason:
            raise ConfigError(f"{name} row {index}: the prompt {reason}: {_shown_row(dataset[index], chosen.task)}")
    check_prompts(worded, start.tokenizer, start.config, name=start.location.shown, format_name=str(cfg.format))
    _check_lengths(cfg, worded, start, name=name)


def check_curriculum(cfg: DictConfig, dataset: Dataset, *, num_needed: int) -> None:
    """Raises: ConfigError, where the column of `curriculum.by` is missing, or its values give no order or no weights."""
    by = cfg.curriculum.by
    if by not in dataset.column_names:
        raise ConfigError(
            f"curriculum.by={by}: train rows have no such column; they have {', '.join(dataset.column_names)}; "
            "`success` is how often the policy solved a problem"
        )
    column = dataset[by][:]
    is_weight = cfg.curriculum.kind == "weight"
    for index, value in enumerate(column):
        if type(value) not in (int, float) or not math.isfinite(value) or (is_weight and value < 0):
            raise ConfigError(
                f"curriculum.by={by} needs numbers{' of 0 or more' if is_weight else ''}; row {index} has {value!r}"
            )
    if is_weight and sum(value > 0 for value in column) < num_needed:
        raise ConfigError(
            f"curriculum.by={by}: fewer rows weigh more than 0 than the {num_needed} a generation batch takes"
        )


def _check_best_metric(cfg: DictConfig, task: Task, rewards: Mapping[str, RewardFn]) -> None:
    """Raises: ConfigError, for a metric that no evaluation gives; transformers would raise KeyError after the first one."""
    if cfg.trainer.metric_for_best_model is None:
        return
    name = str(cfg.trainer.metric_for_best_model).removeprefix("eval_")
    shares = [
        f"{kind}accuracy{bound}"
        for kind in ("", "greedy_")[: 1 + cfg.evaluation.greedy]
        for bound in ("", "_low", "_high")
    ]
    known = [
        *shares,
        *(["greedy_length"] if cfg.evaluation.greedy else []),
        *("loss", "reward", "reward_std", "entropy", "frac_reward_zero_std", "runtime"),
        *(["kl"] if cfg.trainer.beta else []),
        *(f"completions/{what}" for what in ("mean_length", "max_length", "min_length", "clipped_ratio")),
        *(f"completions/{what}_terminated_length" for what in ("mean", "max", "min")),
        *(f"outcomes/{outcome}" for outcome in task.outcomes),
        *task.behaviours,
        *(f"rewards/{reward}/{what}" for reward in rewards for what in ("mean", "std", "rejected")),
    ]
    # A reward written for TRL may log metrics of its own.
    if name not in known and not any(is_for_trl(reward) for reward in rewards.values()):
        raise ConfigError(
            f"trainer.metric_for_best_model: evaluation gives no {name!r}; it gives {', '.join(known)}{nearest(name, known)}"
        )


def _check_data_keys(cfg: DictConfig, task: Task) -> None:
    takes = [name for name, item in inspect.signature(task.load).parameters.items() if item.kind is item.KEYWORD_ONLY]
    known = sorted({*DATA_KEYS, *takes} - {"split", "num_rows"})
    for key in cfg.data:
        if key not in known:
            raise ConfigError(
                f"there is no key data.{key}; task {task.name} has {', '.join(known)}{nearest(str(key), known)}"
            )


def _load(chosen: Parts, *, split: str, num_rows: int | None, **arguments: Any) -> Dataset:
    try:
        dataset = loaded(chosen.task, split=split, num_rows=num_rows, **arguments)
        if len(dataset) == 0:
            raise ConfigError(f"data.source {arguments['source']}: the {split} split is empty")
        return prompts(dataset, chosen.format_fn)
    except ConfigError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"data ({split}): {first_line(error)}") from error


def _check_lengths(cfg: DictConfig, worded: list[Any], start: CheckedModel, *, name: str) -> None:
    context = getattr(start.config, "max_position_embeddings", None)
    if cfg.trainer.use_vllm and cfg.trainer.vllm_max_model_length:
        context = min(context or cfg.trainer.vllm_max_model_length, cfg.trainer.vllm_max_model_length)
    if context is None:
        return
    room = context - cfg.trainer.max_completion_length
    # A token is at least a byte, so most prompts are known to fit without tokenising them (a minute for the real set).
    doubtful = [index for index, prompt in enumerate(worded) if _num_bytes(prompt) > room]
    too_long: list[tuple[int, int]] = []
    for first in range(0, len(doubtful), 1000):
        indices = doubtful[first : first + 1000]
        lengths = map(len, prompts_ids(start.tokenizer, [worded[index] for index in indices]))
        too_long += [(index, length) for index, length in zip(indices, lengths, strict=True) if length > room]
    if too_long:
        index, length = max(too_long, key=lambda item: item[1])
        raise ConfigError(
            f"{len(too_long)} of {len(worded)} {name} prompts do not fit: row {index} has {length} tokens, and "
            f"{start.location.shown} takes {context} with max_completion_length {cfg.trainer.max_completion_length}"
        )


def _num_bytes(prompt: str | list[dict[str, str]]) -> int:
    """An upper bound of the tokens of a prompt: its bytes, and room for what a template or bos adds."""
    if isinstance(prompt, str):
        return len(prompt.encode()) + BOS_BYTES
    return sum(len(message["content"].encode()) for message in prompt) + TEMPLATE_BYTES


def _why_not_a_prompt(prompt: Any) -> str | None:
    if isinstance(prompt, str):
        return None if prompt.strip() else "is empty"
    if not isinstance(prompt, list) or not prompt:
        return "is neither text nor a list of messages"
    if not all(isinstance(item, dict) and isinstance(item.get("content"), str) and item.get("role") for item in prompt):
        return "has a message without role or content"
    return None


def _shown_row(row: Row, task: Task) -> str:
    return str({key: row.get(key) for key in task.columns})[:200]
