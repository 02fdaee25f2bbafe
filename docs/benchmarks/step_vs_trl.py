"""The whole step of `make demo`, generation included, against the same recipe on stock GRPOTrainer.

python docs/benchmarks/step_vs_trl.py --threads 2
python docs/benchmarks/step_vs_trl.py --threads 2 --profile
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parent))

from apart import run_apart

RECIPE = "+countdown=grpo-tiny"
NOT_THE_STEP = ["trainer.eval_strategy=no", "trainer.eval_on_start=false", "trainer.save_strategy=no"]
QUICK = [
    "trainer.per_device_train_batch_size=16",
    "trainer.gradient_accumulation_steps=2",
    "trainer.max_completion_length=24",
    "data.num_train_rows=64",
]
NUM_WARM_UP = 1
PHASES = ("generation", "scoring", "training", "between")
FLOORS = ("generation", "training")
"""Phases that have a floor: the matrix products of the weights alone."""
CPU = (*(f"cpu_{phase}" for phase in PHASES), "cpu_total")
"""Processor seconds by phase."""
BAR = 8
"""Times faster than stock that the whole step should be."""


def build(words: list[str], *, folder: Path, is_ours: bool) -> Any:
    """The recipe's trainer as grpo.py makes it, or stock GRPOTrainer with the same model, rows, rewards and arguments."""
    import transformers
    from trl import GRPOTrainer

    from tinyzero_trl import config
    from tinyzero_trl.config import checks, features
    from tinyzero_trl.generation.engines import rollout_function
    from tinyzero_trl.models import checked_start, init_arguments, policy_arguments
    from tinyzero_trl.rewards import for_trl
    from tinyzero_trl.trainer import TinyZeroTrainer

    cfg = config.compose(words)
    chosen = checks.parts(cfg)
    rows, _ = checks.rows(cfg, chosen)
    args = config.trainer_arguments(cfg, program="grpo", reward_weights=list(cfg.rewards.values()))
    args.output_dir = str(folder)
    args.model_init_kwargs = init_arguments(cfg)
    common = {
        **policy_arguments(cfg),
        "reward_funcs": [for_trl(reward, name=name) for name, reward in chosen.rewards.items()],
        "args": args,
        "train_dataset": rows,
        "processing_class": checked_start(cfg).tokenizer,
    }
    if is_ours:
        return TinyZeroTrainer(**common, rollout_func=rollout_function(cfg), task=chosen.task, **features(cfg))
    trainer = GRPOTrainer(**common)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def measure(words: list[str], is_ours: bool, threads: int, profile: Path | None) -> list[dict[str, Any]]:
    """Seconds by phase and tokens of each step after the warm-up, with their floor; with `profile`, a step's operations go there."""
    import torch
    from profiled import Floor, Profiled
    from watch import Watch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(words, folder=Path(folder), is_ours=is_ours)
        if profile:
            Profiled(trainer, page=profile)  # before the watch, which then counts its cost to the step it is of
        watch, floor = Watch(trainer), Floor(trainer)
        trainer.train()
        least = floor.seconds(NUM_WARM_UP) if is_ours else dict.fromkeys(FLOORS, 0.0)
    return [
        {
            **asdict(step),
            **{f"floor_{phase}": seconds for phase, seconds in least.items()},
            "generation": step.generation,
            "scoring": step.scoring - step.generation,
            "training": step.seconds - step.scoring,
            "between": step.between,
            "total": step.seconds + step.between,
            **_processor_seconds(step),
        }
        for step in watch.steps[NUM_WARM_UP:]
    ]


def _processor_seconds(step: Any) -> dict[str, float]:
    """Those of all threads, by phase as the seconds."""
    of = step.cpu_by_phase
    # Rewards are a part of scoring, and not of Step.cpu.
    training = step.cpu - (of["scoring"] - of["generation"] - of["rewards"])
    cpu = {
        "generation": of["generation"],
        "scoring": of["scoring"] - of["generation"],
        "training": training,
        "between": of["between"],
    }
    return {f"cpu_{phase}": seconds for phase, seconds in (cpu | {"total": sum(cpu.values())}).items()}


def means(steps: list[dict[str, Any]]) -> dict[str, float]:
    """Average seconds of a step, and seconds for 1,000 generated tokens."""
    counts = ("generated", "tokens", "real_tokens", "passes")
    keys = (*PHASES, "total", *counts, *CPU, *(f"floor_{phase}" for phase in FLOORS))
    mean = {key: sum(step[key] for step in steps) / len(steps) for key in keys}
    return {**mean, "per_1000": 1000 * mean["total"] / mean["generated"]}


def table(stock: dict[str, float], ours: dict[str, float]) -> str:
    """Markdown, a row for each quantity: stock, ours, how often ours goes into stock; and the floor, and how often that goes into ours."""
    names = (
        {phase: f"seconds a step: {phase}" for phase in PHASES}
        | {
            "total": "**seconds a step: all**",
            "generated": "generated tokens a step",
            "per_1000": "**seconds for 1,000 generated tokens**",
            "tokens": "tokens computed in training a step",
            "real_tokens": "of them real",
            "passes": "forward passes in training a step",
        }
        | {key: f"processor seconds a step: {key.removeprefix('cpu_')}" for key in CPU}
    )
    rows = ["| | stock | ours | stock / ours | floor | ours / floor |", "| --- | --- | --- | --- | --- | --- |"]
    for key, name in names.items():
        decimals = ".3f" if stock[key] < 100 else ",.0f"
        ratio = f"{stock[key] / ours[key]:.2f}" if ours[key] else ""
        least = ours.get(f"floor_{key}")
        floor = f"{least:.3f} | {ours[key] / least:.2f}" if least else " | "
        rows.append(f"| {name} | {stock[key]:{decimals}} | {ours[key]:{decimals}} | {ratio} | {floor} |")
    return "\n".join(rows)


def parts(ours: dict[str, float]) -> str:
    """A line: processor seconds of a step by part, and the tokens they are for."""
    seconds = ", ".join(f"{phase} {ours[f'cpu_{phase}']:.2f}" for phase in (*PHASES, "total"))
    return f"Processor seconds a step: {seconds}; {ours['generated']:,.0f} tokens generated, {ours['tokens']:,.0f} computed in training"


def verdict(stock: dict[str, float], ours: dict[str, float]) -> str:
    """A sentence: does the whole step reach the bar."""
    ratio = stock["total"] / ours["total"]
    return f"The whole step is {ratio:.2f} times faster than stock; the bar is {BAR}: {'reached' if ratio >= BAR else 'missed'}."


def main() -> int:
    """Measure both, by turns, and print the table; returns exit code 0."""
    arguments = _parser().parse_args()
    words = [RECIPE, *NOT_THE_STEP, f"trainer.max_steps={NUM_WARM_UP + arguments.steps}", *arguments.overrides]
    words += QUICK if arguments.quick else []
    if arguments.profile:
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "profile.txt"
            steps = run_apart(measure, words, True, arguments.threads, page)
            print(page.read_text(encoding="utf-8"))
        print(f"\n{parts(means(steps[1:] or steps))}")  # the first of them had the profiler's cost
        return 0
    found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for repeat in range(arguments.repeats):
        for is_ours in (False, True) if repeat % 2 == 0 else (True, False):
            found[is_ours] += run_apart(measure, words, is_ours, arguments.threads, None)
    stock, ours = means(found[False]), means(found[True])
    command = " ".join(["python", "docs/benchmarks/step_vs_trl.py", *sys.argv[1:]])
    load = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"`{command}`: {load}; {len(found[True])} steps of each.\n\n{table(stock, ours)}\n\n{verdict(stock, ours)}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"command": command, "stock": stock, "ours": ours}, indent=1), "utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="measured, after one to warm up (default: 3)")
    parser.add_argument("--repeats", type=int, default=1, help="processes of each trainer, by turns (default: 1)")
    parser.add_argument("--threads", type=int, default=2, help="of each process (default: 2)")
    parser.add_argument("--profile", action="store_true", help="where our step's time goes, instead of the comparison")
    parser.add_argument("--quick", action="store_true", help="tiny batch and completions: does it run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the means here")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe, for both")
    return parser


if __name__ == "__main__":
    sys.exit(main())
