"""`tinyzero <verb>`: thin verbs over the same functions as the scripts; heavy imports wait inside the verb."""

from __future__ import annotations

import argparse
import difflib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tinyzero_trl.launch import launch

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
MISTAKE = 2
"""Exit code of a person's mistake, as argparse has it."""

Verb = Callable[[Sequence[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name, rest = words[0], words[1:]
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"tinyzero: there is no verb {name!r}; there is {', '.join(VERBS)}{hint}", file=sys.stderr)
        return MISTAKE
    try:
        return VERBS[name](rest)
    except (ValueError, FileNotFoundError) as error:
        print(f"tinyzero {name}: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print(f"tinyzero {name}: stopped", file=sys.stderr)
        return 130


def demo(argv: Sequence[str]) -> int:
    """base model -> evaluate -> train -> evaluate -> report, on this machine"""
    from tinyzero_trl import demo as story

    return story.main(argv)


def prepare(argv: Sequence[str]) -> int:
    """load, split and format a task's data, and check its verifier on it"""
    raise NotImplementedError


def train(argv: Sequence[str]) -> int:
    """train by a recipe: accelerate launch of grpo.py or sft.py"""
    parser = _parser(
        "train",
        train,
        usage="tinyzero train +<task>=<recipe> [key=value ...] [--processes N] [--accelerate_config NAME]",
        example="tinyzero train +countdown=grpo-tiny trainer.max_steps=20\n"
        "  tinyzero train +countdown=grpo-qwen-2.5-3b-base --processes 4 --accelerate_config zero2\n"
        "  tinyzero train +countdown=grpo-tiny --cfg job        prints the whole resolved run and stops",
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="processes on this machine, one per GPU (default: 1)"
    )
    parser.add_argument(
        "--accelerate_config",
        "--accelerate-config",
        metavar="NAME",
        help=f"a file, or one of {', '.join(_accelerate_configs())} (default: cpu or ddp, as the machine has it)",
    )
    arguments, words = parser.parse_known_args(argv)
    if not any(word.startswith("+") for word in words):
        print(parser.format_usage() + "tinyzero train: no recipe given; `tinyzero recipes` lists them", file=sys.stderr)
        return MISTAKE
    config = _accelerate_config(arguments.accelerate_config)
    program = (
        "sft" if any(word.startswith("+") and word.partition("=")[2].startswith("sft-") for word in words) else "grpo"
    )
    return launch(program, words, config=config, num_processes=arguments.processes)


def evaluate(argv: Sequence[str]) -> int:
    """answer held-out problems with a model; or compare two evaluations"""
    from tinyzero_trl import evaluation

    return evaluation.main(argv) or 0


def report(argv: Sequence[str]) -> int:
    """write a run folder's report.html anew"""
    parser = _parser("report", report, example="tinyzero report outputs/countdown/grpo-tiny-20260101-120000")
    parser.add_argument("run_folder", type=Path, help="the folder of a run, as `train` printed it")
    arguments = parser.parse_args(argv)
    if not (arguments.run_folder / "run.yaml").is_file():
        raise ValueError(f"{arguments.run_folder} is not a run folder: it has no run.yaml")
    from tinyzero_trl.report import write_report

    print(write_report(arguments.run_folder))
    return 0


def recipes(argv: Sequence[str]) -> int:
    """every recipe with its model, method, hardware and expectation"""
    parser = _parser("recipes", recipes, example="tinyzero recipes countdown")
    parser.add_argument("task", nargs="?", help="only this task's")
    arguments = parser.parse_args(argv)
    from rich.console import Console
    from rich.table import Table

    from tinyzero_trl.config import list_recipes

    rows = list_recipes()
    tasks = sorted({row.task for row in rows})
    if arguments.task and arguments.task not in tasks:
        raise ValueError(f"there are no recipes of {arguments.task!r}; there are some of {', '.join(tasks)}")
    table = Table("recipe", "model", "method", "hardware", "what to expect", show_lines=True)
    for row in rows:
        if arguments.task in (None, row.task):
            table.add_row(f"+{row.task}={row.name}", row.model, row.method, row.hardware, row.expectation)
    # Piped output has no width of its own: wide enough that no recipe name is folded and grep finds it.
    Console(width=None if sys.stdout.isatty() else max(160, shutil.get_terminal_size().columns)).print(table)
    return 0


VERBS: dict[str, Verb] = {
    "demo": demo,
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "report": report,
    "recipes": recipes,
}


def _overview() -> str:
    verbs = "\n".join(f"  {name:<10}{verb.__doc__}" for name, verb in VERBS.items())
    return (
        f"usage: tinyzero <verb> [arguments]\n\n{verbs}\n\n"
        "Each has --help with an example. The first thing to try: tinyzero demo"
    )


def _parser(name: str, verb: Verb, *, example: str, usage: str | None = None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"tinyzero {name}",
        usage=usage,
        description=verb.__doc__,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _accelerate_configs() -> list[str]:
    return sorted(path.stem for path in (RECIPES / "accelerate_configs").glob("*.yaml"))


def _accelerate_config(name: str | None) -> Path:
    """The file `name` stands for; without one, what this machine has.

    Raises: ValueError that lists those there are.
    """
    if name is None:
        name = "ddp" if _has_gpu() else "cpu"
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / "accelerate_configs" / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(
            f"there is no accelerate config {name!r}; there is {', '.join(_accelerate_configs())}, or give a file"
        )
    return path


def _has_gpu() -> bool:
    # nvidia-smi answers in a tenth of a second; asking torch would import it.
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
