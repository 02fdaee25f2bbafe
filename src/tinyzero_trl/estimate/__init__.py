"""`tinyzero estimate`: memory by phase, time of a step and price of a run, without loading a model.

recipe, config.json ─> workload.py: Workload ─┬─> memory.py: bytes by phase of a step ───────┬─> table or JSON;
            accelerate config, --gpu ─────────┴─> speed.py: tokens and seconds on that card ─┘   exit code 1 if it does not fit
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tinyzero_trl.config import Sharding, names_recipe, recipe_of_words, sharding_here, sharding_of
from tinyzero_trl.estimate.memory import GIB, Memory, memory_of
from tinyzero_trl.estimate.speed import MEAN_SHARE, USABLE, Card, Speed, card_of, smallest_size, speed_of
from tinyzero_trl.estimate.workload import PROMPT_TOKENS, Workload, shape_of, workload_of
from tinyzero_trl.failures import ConfigError

__all__ = ["main", "memory_of", "shape_of", "sharding_of", "sharding_of_recipe", "warnings", "workload_of"]

MANY = 10_000_000
"""Upper limit for processes, tokens and prices on the command line."""


def main(argv: Sequence[str]) -> int:
    """Print the estimate; exit code 1 if the run does not fit the card."""
    from tinyzero_trl.config import batching, check_numbers, compose

    arguments, words = _parser().parse_known_args(argv)
    if not names_recipe(words):
        raise ValueError("no recipe given; `tinyzero recipes` lists them")
    for name in ("processes", "prompt_tokens", "mean_tokens", "rate"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < MANY:
            raise ValueError(f"--{name} must be more than 0 and below {MANY:,}, got {value:g}")
    cfg = compose(words, num_processes=arguments.processes or _launched(words)[1])
    check_numbers(cfg)
    shape = shape_of(str(cfg.model.model_name_or_path), revision=cfg.model.model_revision)
    sharding = sharding_of_recipe(cfg, words, arguments.accelerate_config, arguments.processes)
    run = workload_of(cfg, shape, sharding, prompt=arguments.prompt_tokens)
    card = _card(arguments.gpu, is_cpu=sharding.is_cpu)
    memory = memory_of(run, device_bytes=card.memory_gib * GIB if card else None)
    speed = speed_of(run, card, mean_completion=arguments.mean_tokens) if card else None
    facts = _facts(cfg, run, memory, card, speed, rate=arguments.rate)
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        _show(facts, run, card, batching.shown(cfg, num_processes=sharding.num_processes), arguments.rate)
    return 1 if card and not fits(memory, card.memory_gib) else 0


def fits(memory: Memory, gib: float) -> bool:
    """True if a device of so much memory holds the peak."""
    return memory.peak <= USABLE * gib * GIB


def warnings(cfg: DictConfig, *, num_processes: int) -> list[str]:
    """One line if this run will not fit its GPU; none if it fits or the model is not known."""
    import torch

    from tinyzero_trl.config import has_gpu

    if cfg.trainer.use_cpu or not has_gpu():
        return []
    try:
        shape = shape_of(str(cfg.model.model_name_or_path), revision=cfg.model.model_revision)
    except ConfigError:
        return []  # an architecture that cannot be estimated may still be trained
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    run = workload_of(cfg, shape, sharding_here(num_processes, is_cpu=False))
    memory = memory_of(run, device_bytes=float(total))
    if fits(memory, total / GIB):
        return []
    return [
        f"this run needs about {memory.peak / GIB:.0f} GiB in the phase {memory.peak_phase} and this GPU has "
        f"{total / GIB:.0f}; `tinyzero estimate` shows what holds it, docs/memory.md what to change"
    ]


def sharding_of_recipe(
    cfg: DictConfig, words: Sequence[str], name: str | None = None, num_processes: int | None = None
) -> Sharding:
    """The sharding of the command at the recipe's head, or of an accelerate config by name (a file, or one of ours)."""
    from tinyzero_trl.config import ACCELERATE_CONFIGS

    config, number = _launched(words)
    name = name or ("cpu" if cfg.trainer.use_cpu else config)
    file = Path(name) if name.endswith((".yaml", ".yml")) else ACCELERATE_CONFIGS / f"{name}.yaml"
    if not file.is_file():
        known = sorted(path.stem for path in ACCELERATE_CONFIGS.glob("*.yaml"))
        raise ConfigError(f"there is no accelerate config {name!r}; there is {', '.join(known)}, or give a file")
    return sharding_of(file, num_processes=num_processes or number)


def _launched(words: Sequence[str]) -> tuple[str, int]:
    """Accelerate config and number of processes in the command of the recipe that `words` name."""
    recipe = recipe_of_words(words)
    return (recipe.accelerate_config, recipe.num_processes) if recipe else ("ddp", 1)


def _card(name: str | None, *, is_cpu: bool) -> Card | None:
    """The named card, or else the one in this machine if it is known."""
    if name is not None:
        return card_of(name)
    from tinyzero_trl.doctor import gpus

    found = () if is_cpu else gpus()[0]
    try:
        known = card_of(found[0].name) if found else None
    except ConfigError:
        return None
    return replace(known, memory_gib=found[0].memory_gib or known.memory_gib) if known else None


def _facts(
    cfg: DictConfig, run: Workload, memory: Memory, card: Card | None, speed: Speed | None, *, rate: float | None
) -> dict[str, Any]:
    """The estimate for a script: bytes, seconds, tokens, and the price by `rate` for one GPU and hour."""
    facts: dict[str, Any] = {
        "model": cfg.model.model_name_or_path,
        "num_parameters": run.shape.num_parameters,
        "num_trained": run.trained,
        "processes": run.sharding.num_processes,
        "phases": memory.phases,
        "peak_phase": memory.peak_phase,
        "peak_bytes": memory.peak,
        "host_bytes": memory.on_host,
        "card": card.name if card else None,
        "fits": fits(memory, card.memory_gib) if card else None,
    }
    if speed:
        hours = int(cfg.trainer.max_steps) * speed.seconds / 3600
        facts |= {
            "generated_tokens": speed.generated_tokens,
            "trained_tokens": speed.trained_tokens,
            "generation_seconds": speed.generation,
            "training_seconds": speed.training,
            "hours": hours if hours > 0 else None,
            "price": hours * run.sharding.num_processes * rate if rate and hours > 0 else None,
        }
    return facts


def _show(facts: Mapping[str, Any], run: Workload, card: Card | None, batch: str, rate: float | None) -> None:
    """Print the facts for a person."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    what = f"LoRA, {run.trained / 1e6:.1f} M of" if run.is_lora else "all"
    console.print(
        f"[bold]{facts['model']}[/]: {run.shape.num_parameters / 1e9:.2f} B weights ({what} them trained), "
        f"{run.sharding.shown}, {run.engine} generates"
    )
    console.print(batch)
    phases, peak = facts["phases"], facts["peak_bytes"]
    title = "GiB of one process" if run.sharding.is_cpu else "GiB on one device"
    table = Table("", title=title, title_justify="left", box=None, pad_edge=False)
    for phase in phases:
        table.add_column(phase + (" *" if phase == facts["peak_phase"] else ""), justify="right")
    for name in dict.fromkeys(name for held in phases.values() for name in held):
        values = [held.get(name, 0.0) for held in phases.values()]
        table.add_row(name, *(f"{value / GIB:.2f}" if value else "" for value in values))
    table.add_row("[bold]sum[/]", *(f"[bold]{sum(held.values()) / GIB:.2f}[/]" for held in phases.values()))
    console.print(table)
    if facts["host_bytes"]:
        console.print(f"in the host's memory, for each process: {facts['host_bytes'] / GIB:.1f} GiB")
    size = smallest_size(peak)
    verdict = f"a card of {size} GB holds it" if size else "no card holds it"
    if run.sharding.is_cpu:
        verdict = "the libraries themselves take 1 GiB more"
    elif card and facts["fits"]:
        verdict = f"fits {card.name}"
    elif card:
        about = f"{card.name} ({card.memory_gib:.0f} GiB)"
        verdict = f"[bold red]does not fit {about}[/]; docs/memory.md says what to change"
    console.print(f"peak: {peak / GIB:.2f} GiB, in the phase {facts['peak_phase']}; {verdict}")
    if card:
        generation, training = facts["generation_seconds"], facts["training_seconds"]
        console.print(
            f"a step on {facts['processes']} x {card.name}: {facts['generated_tokens']:,.0f} tokens generated, "
            f"{facts['trained_tokens']:,.0f} trained, {(generation + training) / 60:.1f} minutes ({generation:.0f} s generation, "
            f"{training:.0f} s training); rough, within a factor of two"
        )
        if facts["hours"]:
            price = f", {facts['price']:.2f} at {rate:g} a GPU and hour" if rate else ""
            steps = facts["hours"] * 3600 / (generation + training)
            console.print(f"the run of {steps:.0f} steps: {facts['hours']:.1f} hours{price}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinyzero estimate",
        usage="tinyzero estimate +<task>=<recipe> | RECIPE.yaml [key=value ...] [--gpu H200] [--rate 3.5]",
        description="memory by phase, tokens and minutes of a step, price; how it is counted: docs/memory.md",
        epilog="exit code: 1 where the run does not fit the card\n\nexample:\n"
        "  tinyzero estimate +countdown=grpo-qwen-2.5-3b-base --gpu H100 --rate 3.5\n"
        "  tinyzero estimate +countdown=grpo-qwen-2.5-7b-base --processes 4 --accelerate_config zero3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add, mean = parser.add_argument, f"of a completion on average (default: {MEAN_SHARE:g} of the longest)"
    add("--gpu", metavar="NAME", help="a card, such as H200 or RTX4090 (default: the one in this machine)")
    add("--rate", type=float, metavar="R", help="price of one GPU for an hour, in any currency")
    add("--processes", type=int, metavar="N", help="default: as in the command at the recipe's head")
    add("--accelerate_config", "--accelerate-config", metavar="NAME", help="a file, or one of ours (default: as above)")
    add("--prompt_tokens", type=int, metavar="N", help=f"of the longest prompt (default: {PROMPT_TOKENS})")
    add("--mean_tokens", type=float, metavar="N", help=mean)
    add("--json", action="store_true", help="everything as JSON")
    return parser
