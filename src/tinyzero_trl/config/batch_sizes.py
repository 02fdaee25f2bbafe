"""Batch arithmetic: the completions of an optimizer step, whatever number of processes trains on them.

TRL counts for one device: a step is `per_device_train_batch_size x processes x gradient_accumulation_steps` completions, so that the same recipe on
another number of GPUs trains another batch. `batching.completions_per_step` states the batch, and what is accumulated follows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from omegaconf import DictConfig

from tinyzero_trl.failures import ConfigError

FOLLOWS = {
    "completions_per_step": "gradient_accumulation_steps",
    "completions_per_rollout": "steps_per_generation",
}
"""By key of `batching`, the key of `trainer` that follows from it."""
PROCESSES = range(1, 65)
"""Numbers of processes that an error may suggest."""


def settle(
    cfg: DictConfig, *, num_processes: int, in_recipe: Collection[str] = (), in_words: Collection[str] = ()
) -> None:
    """Write what `batching` says of batches into `trainer`, in TRL's terms, for so many processes.

    in_recipe, in_words: the keys that recipe files and the command line set; a command line goes before a recipe, whichever of the two ways
    to state a batch it uses.
    Raises: ConfigError, where no whole number of micro-batches is the batch, or a stated key says another batch.
    """
    trainer = cfg.trainer
    at_once = int(trainer.per_device_train_batch_size) * num_processes
    if at_once < 1:
        return  # check_method names the key that is out of range
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
    """The batch of a run in one line: how many completions, on how many processes, of how many prompts."""
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
