"""What can be known to be wrong before a model loads: names, numbers, combinations, rows, tokenizer, lengths."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from tinyzero_trl.config import model_path, nearest
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.rewards import columns_of
from tinyzero_trl.schema import DATA_KEYS
from tinyzero_trl.task import FormatFn, RewardFn, Row, Task, prompts, resolve
from tinyzero_trl.tasks import find_task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

CHOICES: dict[str, tuple[str, ...]] = {
    "loss_type": ("grpo", "dr_grpo", "bnpo", "dapo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none", "True", "False"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("server", "colocate"),
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
}
"""(low, high, low is allowed) by trainer key."""


@dataclass(frozen=True)
class Parts:
    """What the names of a recipe stand for."""

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
        for reward in named.values():
            columns_of(reward)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    if not named:
        raise ConfigError(f"rewards is empty; task {task.name} has {', '.join(sorted(task.rewards))}")
    if not any(weight for weight in cfg.rewards.values()) or not all(math.isfinite(w) for w in cfg.rewards.values()):
        raise ConfigError(f"rewards need finite weights, one of them not 0, got {OmegaConf.to_container(cfg.rewards)}")
    _check_data_keys(cfg, task)
    return Parts(task, format_fn, named)


def check_method(cfg: DictConfig, *, num_processes: int = 1) -> None:
    """Ranges, and combinations that TRL accepts and that break learning. Raises: ConfigError."""
    trainer = cfg.trainer
    if cfg.algorithm != "grpo":
        raise ConfigError(f"there is no algorithm {cfg.algorithm!r}; there is grpo")
    if cfg.give_up_after < 0:
        raise ConfigError(f"give_up_after must be 0 or more, got {cfg.give_up_after}")
    for key, allowed in CHOICES.items():
        value = trainer.get(key)
        if value is not None and str(value) not in allowed:
            raise ConfigError(
                f"trainer.{key}: there is no {value!r}; there is {', '.join(allowed)}{nearest(str(value), allowed)}"
            )
    for key, (low, high, is_low_allowed) in RANGES.items():
        value = trainer.get(key)
        if value is None:
            continue
        if not math.isfinite(value) or value > high or value < low or (value == low and not is_low_allowed):
            bound = f"at least {low:g}" if is_low_allowed else f"more than {low:g}"
            bound += f" and at most {high:g}" if math.isfinite(high) else ""
            raise ConfigError(f"trainer.{key} must be {bound}, got {value:g}")
    if trainer.max_steps == 0 or (trainer.max_steps < 0 and trainer.num_train_epochs <= 0):
        raise ConfigError("the run would do nothing: set trainer.max_steps or trainer.num_train_epochs above 0")
    _check_batches(trainer, num_processes)
    _check_silent_killers(trainer)
    if cfg.model.model_name_or_path is None:
        raise ConfigError("model.model_name_or_path is not set; it takes a hub id, a folder, or `tiny`")
    if cfg.model.use_peft and trainer.sync_ref_model:
        raise ConfigError(
            "trainer.sync_ref_model does not work with model.use_peft: the reference is the model without its adapter"
        )


def rows(cfg: DictConfig, chosen: Parts) -> tuple[Dataset, Dataset | None]:
    """Training and evaluation rows, worded. Raises: ConfigError for data that is not there or not fit."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    data = OmegaConf.to_container(cfg.data)
    assert isinstance(data, dict)
    arguments = {str(key): value for key, value in data.items() if key not in ("num_train_rows", "num_eval_rows")}
    train = _load(chosen, split="train", num_rows=cfg.data.num_train_rows, **arguments)
    if cfg.trainer.eval_strategy == "no" or not cfg.data.num_eval_rows:
        if str(cfg.trainer.eval_strategy) != "no":
            raise ConfigError(
                "trainer.eval_strategy is set and data.num_eval_rows is 0: say how many rows to evaluate on"
            )
        return train, None
    return train, _load(chosen, split="validation", num_rows=cfg.data.num_eval_rows, **arguments)


def tokenizer_of(cfg: DictConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, its padding on the left. Raises: ConfigError where it cannot serve generation."""
    from transformers import AutoTokenizer

    name = model_path(cfg.model.model_name_or_path)
    if _looks_local(name) and not Path(name).is_dir():
        raise ConfigError(f"model.model_name_or_path: there is no folder {name}")
    if _looks_local(name) and not (Path(name) / "config.json").is_file():
        raise ConfigError(f"model.model_name_or_path: {name} is not a model folder (it has no config.json)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            revision=cfg.model.model_revision,
            trust_remote_code=bool(cfg.trainer.trust_remote_code),
            padding_side="left",
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"model.model_name_or_path: no tokenizer for {name}: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"the tokenizer of {name} has no eos token, so no completion could end; set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_rows(
    cfg: DictConfig,
    chosen: Parts,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    generation_batch_size: int,
    name: str = "train",
) -> None:
    """Whether every row has what prompts and rewards read, and fits the model. Raises: ConfigError naming the row."""
    wanted = set(chosen.task.columns).union(*(columns_of(reward) for reward in chosen.rewards.values()))
    for column in sorted(wanted - set(dataset.column_names)):
        readers = [key for key, reward in chosen.rewards.items() if column in columns_of(reward)] or [
            f"task {chosen.task.name}"
        ]
        raise ConfigError(
            f"{name} rows have no column {column!r}, which {', '.join(readers)} reads; they have {', '.join(dataset.column_names)}"
        )
    num_needed = math.ceil(generation_batch_size / cfg.trainer.num_generations)
    if name == "train" and len(dataset) < num_needed:
        raise ConfigError(
            f"{len(dataset)} {name} rows are fewer than one generation batch, which takes {num_needed} prompts "
            f"(generation batch {generation_batch_size} / num_generations {cfg.trainer.num_generations})"
        )
    for index, prompt in enumerate(dataset["prompt"]):
        fault = _prompt_fault(prompt)
        if fault:
            raise ConfigError(f"{name} row {index}: the prompt {fault}: {_shown_row(dataset[index], chosen.task)}")
    if not isinstance(dataset[0]["prompt"], str) and not tokenizer.chat_template:
        raise ConfigError(
            f"format {cfg.format} makes chat messages, and the tokenizer of {cfg.model.model_name_or_path} has no chat template; "
            "use a plain-text format such as base, or an instruct model"
        )
    _check_lengths(cfg, chosen, dataset, tokenizer, name=name)


def prompt_ids(tokenizer: Any, prompt: str | list[dict[str, str]], **template: Any) -> list[int]:
    """Token ids of one prompt, as training and generation see it: an assistant turn at its end stays open.

    A text that already begins with the tokenizer's bos token gets no second one.
    """
    return prompts_ids(tokenizer, [prompt], **template)[0]


def prompts_ids(tokenizer: Any, batch: list[Any], **template: Any) -> list[list[int]]:
    """`prompt_ids` of several prompts, all text or all messages."""
    if isinstance(batch[0], str):
        has_bos = [bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token) for prompt in batch]
        plain = tokenizer(text=batch)["input_ids"]
        bare = tokenizer(text=batch, add_special_tokens=False)["input_ids"] if any(has_bos) else plain
        return [second if has else first for first, second, has in zip(plain, bare, has_bos, strict=True)]
    ids: list[list[int]] = []
    for prompt in batch:
        is_open = prompt[-1]["role"] == "assistant"
        encoded = tokenizer.apply_chat_template(
            prompt,
            add_generation_prompt=not is_open,
            continue_final_message=is_open,
            tokenize=True,
            return_dict=True,
            **template,
        )
        ids.append(list(encoded["input_ids"]))
    return ids


def _check_data_keys(cfg: DictConfig, task: Task) -> None:
    takes = [name for name, item in inspect.signature(task.load).parameters.items() if item.kind is item.KEYWORD_ONLY]
    known = sorted({*DATA_KEYS, *takes} - {"split", "num_rows"})
    for key in cfg.data:
        if key not in known:
            raise ConfigError(
                f"there is no key data.{key}; task {task.name} has {', '.join(known)}{nearest(str(key), known)}"
            )


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
    if trainer.use_vllm and trainer.vllm_mode == "colocate" and "seed" in (trainer.generation_kwargs or {}):
        raise ConfigError(
            "trainer.generation_kwargs.seed with vllm_mode=colocate makes all completions of a group the same; remove it"
        )
    if trainer.use_transformers_continuous_batching and trainer.bf16 is not False:
        raise ConfigError(
            "trainer.use_transformers_continuous_batching with bf16 turns the float32 master weights into bfloat16 for good; set trainer.bf16=false"
        )
    if not trainer.use_vllm:
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
    if trainer.sync_ref_model and not trainer.beta:
        raise ConfigError("trainer.sync_ref_model has no reference model to synchronise: trainer.beta is 0")
    if trainer.remove_unused_columns:
        raise ConfigError("trainer.remove_unused_columns=true removes the columns rewards read; set it to false")
    if trainer.loss_type == "dr_grpo" and str(trainer.scale_rewards) not in ("none", "False"):
        raise ConfigError("trainer.loss_type=dr_grpo is Dr. GRPO only with trainer.scale_rewards=none")
    cycle = (trainer.steps_per_generation or trainer.gradient_accumulation_steps) * trainer.num_iterations
    if (
        str(trainer.save_strategy) == "steps"
        and trainer.save_steps >= 1
        and (trainer.save_steps * trainer.gradient_accumulation_steps) % cycle
    ):
        raise ConfigError(
            f"trainer.save_steps {trainer.save_steps:g} falls inside a generation cycle, which cannot be resumed exactly; "
            f"use a multiple of {cycle // math.gcd(cycle, trainer.gradient_accumulation_steps)}"
        )
    if str(trainer.eval_strategy) != "no":
        num_generations = trainer.num_generations_eval or trainer.num_generations
        if trainer.per_device_eval_batch_size % num_generations:
            raise ConfigError(
                f"trainer.per_device_eval_batch_size {trainer.per_device_eval_batch_size} does not hold whole groups of {num_generations}"
            )


def _load(chosen: Parts, *, split: str, num_rows: int | None, **arguments: Any) -> Dataset:
    try:
        dataset = chosen.task.load(split=split, num_rows=num_rows, **arguments)
        if len(dataset) == 0:
            raise ConfigError(f"data.source {arguments['source']}: the {split} split is empty")
        return prompts(dataset, chosen.format_fn)
    except ConfigError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"data ({split}): {_first_line(error)}") from error


def _check_lengths(cfg: DictConfig, chosen: Parts, dataset: Dataset, tokenizer: Any, *, name: str) -> None:
    from transformers import AutoConfig

    model_config = AutoConfig.from_pretrained(
        model_path(cfg.model.model_name_or_path),
        revision=cfg.model.model_revision,
        trust_remote_code=bool(cfg.trainer.trust_remote_code),
    )
    context = getattr(model_config, "max_position_embeddings", None)
    if context is None:
        return
    room = context - cfg.trainer.max_completion_length
    all_prompts = dataset["prompt"]
    too_long: list[tuple[int, int]] = []
    for start in range(0, len(dataset), 1000):
        lengths = map(len, prompts_ids(tokenizer, list(all_prompts[start : start + 1000])))
        too_long += [(start + offset, length) for offset, length in enumerate(lengths) if length > room]
    if too_long:
        index, length = max(too_long, key=lambda item: item[1])
        raise ConfigError(
            f"{len(too_long)} of {len(dataset)} {name} prompts do not fit: row {index} has {length} tokens, and "
            f"{cfg.model.model_name_or_path} takes {context} with max_completion_length {cfg.trainer.max_completion_length}"
        )


def _prompt_fault(prompt: Any) -> str | None:
    if isinstance(prompt, str):
        return None if prompt.strip() else "is empty"
    if not isinstance(prompt, list) or not prompt:
        return "is neither text nor a list of messages"
    if not all(isinstance(item, dict) and isinstance(item.get("content"), str) and item.get("role") for item in prompt):
        return "has a message without role or content"
    return None


def _shown_row(row: Row, task: Task) -> str:
    return str({key: row.get(key) for key in task.columns})[:200]


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).exists() or name.count("/") > 1


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
