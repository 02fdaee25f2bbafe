"""Whether a recipe is what the algorithm it names is: the keys each method requires, and what cannot go with it."""

from __future__ import annotations

import os

from omegaconf import DictConfig

from tinyzero_trl.algorithms import ALGORITHMS
from tinyzero_trl.failures import ConfigError, nearest

WHITENINGS = ("none", "batch")


def check_algorithm(cfg: DictConfig, *, num_processes: int) -> None:
    """One line with every key that contradicts the algorithm. Raises: ConfigError."""
    name, trainer = str(cfg.algorithm), cfg.trainer
    if name not in ALGORITHMS:
        raise ConfigError(
            f"there is no algorithm {name!r}; there is {', '.join(ALGORITHMS)}{nearest(name, list(ALGORITHMS))}"
        )
    wrong = {
        f"trainer.{key}": allowed[0]
        for key, allowed in ALGORITHMS[name].requires.items()
        if str(trainer[key]) not in allowed
    }
    if name == "dapo" and (trainer.epsilon_high or trainer.epsilon) <= trainer.epsilon:
        wrong["trainer.epsilon_high"] = "0.28"
    if name != "grpo" and trainer.multi_objective_aggregation != "sum_then_normalize":
        wrong["trainer.multi_objective_aggregation"] = "sum_then_normalize"
    num_slices = generation_batch_size(trainer, num_processes) // (trainer.per_device_train_batch_size * num_processes)
    # Away from the policy that wrote them, the loss of RAFT's completions is a clipped ratio's and no likelihood's.
    if name == "raft" and num_slices > trainer.gradient_accumulation_steps:
        wrong["trainer.steps_per_generation"] = str(trainer.gradient_accumulation_steps)
    if name == "raft" and cfg.replay.num_groups:
        wrong["replay.num_groups"] = "0"
    if wrong:
        raise ConfigError(f"algorithm {name} needs {' '.join(f'{key}={value}' for key, value in wrong.items())}")
    if cfg.advantage_whitening not in (None, *WHITENINGS):
        raise ConfigError(
            f"advantage_whitening: there is no {cfg.advantage_whitening!r}; there is {', '.join(WHITENINGS)}, and null for the algorithm's own"
        )
    if trainer.multi_objective_aggregation == "normalize_then_sum":
        ignored = {"advantage_whitening": cfg.advantage_whitening, "soft_overlong_tokens": cfg.soft_overlong_tokens}
        for key, value in ignored.items():
            if value:
                raise ConfigError(
                    f"{key}={value} with trainer.multi_objective_aggregation=normalize_then_sum, which whitens each reward over "
                    f"the batch itself; leave {key} out, or use sum_then_normalize"
                )
    # Without trainer.max_completion_length, which is null there, nothing is ever overlong.
    if not 0 <= cfg.soft_overlong_tokens < (trainer.max_completion_length or 1):
        raise ConfigError(
            f"soft_overlong_tokens must be at least 0 and less than trainer.max_completion_length {trainer.max_completion_length}, "
            f"got {cfg.soft_overlong_tokens}"
        )
    if name == "remax":
        _check_remax(trainer, num_processes)


def generation_batch_size(trainer: DictConfig, num_processes: int) -> int:
    """Completions that all processes together generate at once, before any is dropped or replaced."""
    steps = trainer.steps_per_generation or trainer.gradient_accumulation_steps
    return int(trainer.generation_batch_size or trainer.per_device_train_batch_size * num_processes * steps)


def _check_remax(trainer: DictConfig, num_processes: int) -> None:
    # transformers' own generate, which FSDP needs, is not told to be greedy.
    if not trainer.use_vllm and os.environ.get("ACCELERATE_USE_FSDP", "false") == "true":
        raise ConfigError(
            "algorithm remax draws a greedy response to each prompt, which FSDP cannot yet; use zero2 or vLLM"
        )
    size = generation_batch_size(trainer, num_processes)
    if size // num_processes % trainer.num_generations:
        raise ConfigError(
            f"algorithm remax needs whole groups in each process: {size // num_processes} completions are no multiple of "
            f"trainer.num_generations {trainer.num_generations}"
        )
