"""An estimate as a table, and as JSON."""

from __future__ import annotations

import json
import sys

from omegaconf import DictConfig

from tinyzero_trl.config import batching
from tinyzero_trl.estimate.cards import USABLE, Card, smallest_size
from tinyzero_trl.estimate.memory import GIB, Memory
from tinyzero_trl.estimate.speed import Speed
from tinyzero_trl.estimate.workload import Plan


def show(
    cfg: DictConfig, plan: Plan, memory: Memory, card: Card | None, speed: Speed | None, *, rate: float | None
) -> None:
    """Print it for a person."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    what = f"LoRA, {plan.trained / 1e6:.1f} M of" if plan.is_lora else "all"
    console.print(
        f"[bold]{cfg.model.model_name_or_path}[/]: {plan.shape.num_parameters / 1e9:.2f} B weights ({what} them trained), "
        f"{plan.sharding.shown}, {plan.engine} generates"
    )
    console.print(batching.shown(cfg, num_processes=plan.sharding.num_processes))
    table = Table(
        title="GiB on one device" if not plan.sharding.is_cpu else "GiB of one process",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    names = list(dict.fromkeys(name for phase in memory.phases.values() for name in phase))
    table.add_column("")
    for phase in memory.phases:
        table.add_column(phase + (" *" if phase == memory.peak_phase else ""), justify="right")
    for name in names:
        values = [phase.get(name, 0.0) for phase in memory.phases.values()]
        table.add_row(name, *(f"{value / GIB:.2f}" if value else "" for value in values))
    table.add_row("[bold]sum[/]", *(f"[bold]{memory.total(phase) / GIB:.2f}[/]" for phase in memory.phases))
    console.print(table)
    if memory.on_host:
        console.print(f"in the host's memory, for each process: {memory.on_host / GIB:.1f} GiB")
    console.print(
        f"peak: {memory.peak / GIB:.2f} GiB, in the phase {memory.peak_phase}; {_verdict(plan, memory, card)}"
    )
    if speed and card:
        minutes, steps = speed.seconds / 60, int(cfg.trainer.max_steps)
        console.print(
            f"a step on {plan.sharding.num_processes} x {card.name}: {speed.generated_tokens:,.0f} tokens generated, "
            f"{speed.trained_tokens:,.0f} trained, {minutes:.1f} minutes ({speed.generation:.0f} s generation, "
            f"{speed.training:.0f} s training); rough, within a factor of two"
        )
        if steps > 0:
            hours = steps * speed.seconds / 3600
            price = f", {hours * plan.sharding.num_processes * rate:.2f} at {rate:g} a GPU and hour" if rate else ""
            console.print(f"the run of {steps} steps: {hours:.1f} hours{price}")


def as_json(
    cfg: DictConfig, plan: Plan, memory: Memory, card: Card | None, speed: Speed | None, *, rate: float | None
) -> None:
    """Print it for a script: bytes, seconds, tokens."""
    content: dict[str, object] = {
        "model": cfg.model.model_name_or_path,
        "num_parameters": plan.shape.num_parameters,
        "num_trained": plan.trained,
        "processes": plan.sharding.num_processes,
        "phases": memory.phases,
        "peak_phase": memory.peak_phase,
        "peak_bytes": memory.peak,
        "host_bytes": memory.on_host,
        "card": card.name if card else None,
        "fits": memory.peak <= USABLE * card.memory_gib * GIB if card else None,
    }
    if speed:
        hours = int(cfg.trainer.max_steps) * speed.seconds / 3600
        content |= {
            "generated_tokens": speed.generated_tokens,
            "trained_tokens": speed.trained_tokens,
            "generation_seconds": speed.generation,
            "training_seconds": speed.training,
            "hours": hours if hours > 0 else None,
            "price": hours * plan.sharding.num_processes * rate if rate and hours > 0 else None,
        }
    print(json.dumps(content, indent=2))


def _verdict(plan: Plan, memory: Memory, card: Card | None) -> str:
    if plan.sharding.is_cpu:
        return "the libraries themselves take 1 GiB more"
    if card and memory.peak > USABLE * card.memory_gib * GIB:
        return f"[bold red]does not fit {card.name} ({card.memory_gib:.0f} GiB)[/]; docs/memory.md says what to change"
    size = smallest_size(memory.peak)
    card_size = f"a card of {size} GB holds it" if size else "no card holds it"
    return f"fits {card.name}" if card else card_size
