"""`tinyzero estimate`: will a run fit, how long does a step take, what does the run cost. Nothing is loaded, nothing runs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from tinyzero_trl.config import Sharding, sharding_here, sharding_of
from tinyzero_trl.estimate.cards import USABLE, Card, card_of
from tinyzero_trl.estimate.memory import GIB, Memory, memory_of
from tinyzero_trl.estimate.shapes import shape_of
from tinyzero_trl.estimate.speed import MEAN_SHARE, speed_of
from tinyzero_trl.estimate.workload import PROMPT_TOKENS, plan_of
from tinyzero_trl.failures import ConfigError

__all__ = ["main", "memory_of", "plan_of", "shape_of", "sharding_of", "sharding_of_recipe", "warnings"]


MANY = 10_000_000
"""Processes, tokens or units of a currency of which there are never more."""


def main(argv: Sequence[str]) -> int:
    """Print the estimate; exit code 1 where the run does not fit the card."""
    from tinyzero_trl.config import check_numbers, compose
    from tinyzero_trl.estimate.shown import as_json, show

    parser = _parser()
    arguments, words = parser.parse_known_args(argv)
    if not any(word.startswith("+") for word in words):
        raise ValueError("no recipe given; `tinyzero recipes` lists them")
    for name in ("processes", "prompt_tokens", "mean_tokens", "rate"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < MANY:
            raise ValueError(f"--{name} must be more than 0 and below {MANY:,}, got {value:g}")
    cfg = compose(words, num_processes=arguments.processes or _launched(words)[1])
    check_numbers(cfg)
    shape = shape_of(str(cfg.model.model_name_or_path), revision=cfg.model.model_revision)
    sharding = sharding_of_recipe(cfg, words, arguments.accelerate_config, arguments.processes)
    plan = plan_of(cfg, shape, sharding, prompt=arguments.prompt_tokens)
    card = _card(arguments.gpu, is_cpu=sharding.is_cpu)
    memory = memory_of(plan, device_bytes=card.memory_gib * GIB if card else None)
    speed = speed_of(plan, card, mean_completion=arguments.mean_tokens) if card else None
    (as_json if arguments.json else show)(cfg, plan, memory, card, speed, rate=arguments.rate)
    return 1 if card and not fits(memory, card.memory_gib) else 0


def fits(memory: Memory, gib: float) -> bool:
    """Whether a device of so much memory holds the peak."""
    return memory.peak <= USABLE * gib * GIB


def warnings(cfg: DictConfig, *, num_processes: int) -> list[str]:
    """One line where this run will not fit the GPU it is started on; none where it fits, or nothing is known."""
    import torch

    from tinyzero_trl.config import has_gpu

    if cfg.trainer.use_cpu or not has_gpu():
        return []
    try:
        shape = shape_of(str(cfg.model.model_name_or_path), revision=cfg.model.model_revision)
    except ConfigError:
        return []  # an architecture this module has no count for; loading it is the trainer's matter
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    memory = memory_of(plan_of(cfg, shape, sharding_here(num_processes, is_cpu=False)), device_bytes=float(total))
    if fits(memory, total / GIB):
        return []
    return [
        f"this run needs about {memory.peak / GIB:.0f} GiB in the phase {memory.peak_phase} and this GPU has "
        f"{total / GIB:.0f}; `tinyzero estimate` shows what holds it, docs/memory.md what to change"
    ]


def sharding_of_recipe(
    cfg: DictConfig, words: Sequence[str], name: str | None = None, num_processes: int | None = None
) -> Sharding:
    """As the recipe's own command has it, where the command line does not say otherwise."""
    config, number = _launched(words)
    return _sharding(name or ("cpu" if cfg.trainer.use_cpu else config), num_processes or number)


def _launched(words: Sequence[str]) -> tuple[str, int]:
    """Accelerate config and number of processes in the command of the recipe that these words name."""
    from tinyzero_trl.config import list_recipes

    chosen = {tuple(word.lstrip("+").partition("=")[::2]) for word in words if word.startswith("+")}
    commands = [recipe.command for recipe in list_recipes() if (recipe.task, recipe.name) in chosen]
    return launched(commands[0]) if commands else ("ddp", 1)


def _sharding(name: str, num_processes: int) -> Sharding:
    """What an accelerate config says, a file or one of ours by name."""
    from tinyzero_trl.config import ACCELERATE_CONFIGS

    file = Path(name) if name.endswith((".yaml", ".yml")) else ACCELERATE_CONFIGS / f"{name}.yaml"
    if not file.is_file():
        known = sorted(path.stem for path in ACCELERATE_CONFIGS.glob("*.yaml"))
        raise ConfigError(f"there is no accelerate config {name!r}; there is {', '.join(known)}, or give a file")
    return sharding_of(file, num_processes=num_processes)


def launched(command: str) -> tuple[str, int]:
    """Accelerate config and number of processes in the command at a recipe's head."""
    config = re.search(r"accelerate_configs/([\w-]+)\.yaml", command)
    number = re.search(r"--num_processes[= ](\d+)", command)
    return config.group(1) if config else "ddp", int(number.group(1)) if number else 1


def _card(name: str | None, *, is_cpu: bool) -> Card | None:
    """The card that is named, or else the one in this machine where we know it."""
    if name is not None:
        return card_of(name)
    if is_cpu:
        return None
    from tinyzero_trl.doctor import gpus

    found, _, _ = gpus()
    if not found:
        return None
    try:
        known = card_of(found[0].name)
    except ConfigError:
        return None
    return Card(known.name, found[0].memory_gib or known.memory_gib, known.tflops, known.bandwidth)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinyzero estimate",
        usage="tinyzero estimate +<task>=<recipe> [key=value ...] [--gpu H200] [--rate 3.5]",
        description="memory by phase, tokens and minutes of a step, price; how it is counted: docs/memory.md",
        epilog="exit code: 1 where the run does not fit the card\n\nexample:\n"
        "  tinyzero estimate +countdown=grpo-qwen-2.5-3b-base --gpu H100 --rate 3.5\n"
        "  tinyzero estimate +countdown=grpo-qwen-2.5-7b-base --processes 4 --accelerate_config zero3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--gpu", metavar="NAME", help="a card, such as H200 or RTX4090 (default: the one in this machine)")
    add("--rate", type=float, metavar="R", help="price of one GPU for an hour, in any currency")
    add("--processes", type=int, metavar="N", help="default: as in the command at the recipe's head")
    add("--accelerate_config", "--accelerate-config", metavar="NAME", help="a file, or one of ours (default: as above)")
    add("--prompt_tokens", type=int, metavar="N", help=f"of the longest prompt (default: {PROMPT_TOKENS})")
    add(
        "--mean_tokens",
        type=float,
        metavar="N",
        help=f"of a completion on average (default: {MEAN_SHARE:g} of the longest)",
    )
    add("--json", action="store_true", help="everything as JSON")
    return parser
