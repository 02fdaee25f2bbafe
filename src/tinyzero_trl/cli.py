"""The command line `tinyzero <verb>`: each verb calls the same functions as the scripts, and imports what is heavy itself."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tinyzero_trl import storage
from tinyzero_trl.config import (
    ACCELERATE_CONFIGS,
    RECIPES,
    check_words,
    list_recipes,
    names_recipe,
    program_of_words,
    read_accelerate_config,
    recipe_folders,
    recipe_of_words,
)
from tinyzero_trl.failures import Failure, explained, nearest
from tinyzero_trl.launch import launch, visible_gpus
from tinyzero_trl.redaction import hide_in_tracebacks, secrets_in_environment, secrets_in_words, without_secrets
from tinyzero_trl.storage import trust

MISTAKE = 2
"""Exit code of a mistake on the command line, the same as that of argparse."""

Verb = Callable[[Sequence[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name, rest = words[0], words[1:]
    if name not in VERBS:
        print(
            f"tinyzero: there is no verb {name!r}; there is {', '.join(VERBS)}{nearest(name, VERBS)}", file=sys.stderr
        )
        return MISTAKE
    hide_in_tracebacks(rest)
    try:
        return VERBS[name](rest)
    except (Failure, ValueError, OSError) as error:
        is_of_disk = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        failure = explained(error) if is_of_disk else error  # type: ignore[arg-type]
        if failure is None:
            raise
        secrets = secrets_in_words(rest) | secrets_in_environment()
        print(f"tinyzero {name}: {without_secrets(str(failure), secrets)}", file=sys.stderr)
        return failure.exit_code if isinstance(failure, Failure) else MISTAKE
    except KeyboardInterrupt:
        print(f"tinyzero {name}: stopped", file=sys.stderr)
        return 130


def demo(argv: Sequence[str]) -> int:
    """base model -> evaluate -> train -> evaluate -> report, on this machine"""
    from tinyzero_trl import demo as story

    return story.main(argv)


def prepare(argv: Sequence[str]) -> int:
    """load, split and word a task's data, check its verifier on it, and save it"""
    from tinyzero_trl.tasks import TASKS

    tasks = ", ".join(TASKS)
    if not argv:
        raise ValueError(f"which task? there is {tasks}, or path/file.py:TASK")
    if argv[0] in ("-h", "--help"):
        print(f"usage: tinyzero prepare <task> [arguments]\n\n{prepare.__doc__}; <task> is one of {tasks},")
        print("or path/file.py:TASK\n\nexample:\n  tinyzero prepare countdown --help")
        print("  tinyzero prepare countdown --source generated")
        return 0
    from tinyzero_trl.data import preparation

    return preparation.main(argv[1:], task=argv[0])


def train(argv: Sequence[str]) -> int:
    """train by a recipe: accelerate launch of grpo.py or sft.py"""
    parser = _parser(
        "train",
        train,
        usage="tinyzero train +<task>=<recipe> | RECIPE.yaml [key=value ...] [--config-dir DIR] [--processes N] [--accelerate_config NAME]",
        example="tinyzero train +countdown=grpo-tiny trainer.max_steps=20\n"
        "  tinyzero train +countdown=grpo-qwen-2.5-3b-base --processes 4 --accelerate_config zero2\n"
        "  tinyzero train my-recipes/mine.yaml                  a recipe of your own, by its path\n"
        "  tinyzero train +countdown=grpo-tiny --cfg job        prints the whole resolved run and stops",
    )
    _add_placement(
        parser,
        processes="one for each GPU, or 1",
        accelerate_config="on GPUs what the recipe's own command names; cpu for one process without a GPU, ddp for several",
    )
    arguments, words = parser.parse_known_args(argv)
    if not names_recipe(words):
        print(parser.format_usage() + "tinyzero train: no recipe given; `tinyzero recipes` lists them", file=sys.stderr)
        return MISTAKE
    program = program_of_words(words)
    check_words(words, program=program)  # now: the launcher imports torch, which takes seconds
    return _launch(program, words, num_processes=arguments.processes, accelerate_config=arguments.accelerate_config)


def resume(argv: Sequence[str]) -> int:
    """go on with a run that was stopped, by the words it was started with"""
    parser = _parser(
        "resume",
        resume,
        usage="tinyzero resume RUN [key=value ...] [--processes N] [--accelerate_config NAME] [--trust-code]",
        example="tinyzero resume outputs/countdown/grpo-tiny-20260101-120000\n"
        "  tinyzero resume outputs/countdown/grpo-tiny-20260101-120000 trainer.max_steps=80      to go further",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, or a checkpoint in one to go on from")
    parser.add_argument(
        "words", nargs="*", metavar="key=value", help="what is to be otherwise, such as trainer.max_steps"
    )
    _add_placement(parser, processes="as many as the run had", accelerate_config="the run's")
    parser.add_argument(
        trust.OPTION,
        action="store_true",
        help="run the code that a run folder of somebody else's names, once you have read it",
    )
    arguments = parser.parse_intermixed_args(argv)
    from tinyzero_trl.runs import resuming

    found = resuming.launch_of(arguments.run, arguments.words)
    is_own = trust.is_own_file(resuming.run_of(arguments.run) / "run.yaml")
    words, config = found.words, found.accelerate_config
    if arguments.trust_code:
        words = [*words, trust.OPTION]
    elif not is_own:
        resuming.check_no_code(found, arguments.run)
        # A config that is a file comes from the sender of the folder; a name is one of our own configs.
        config = config if config in _accelerate_configs() else None
    if arguments.accelerate_config is not None:
        config = str(_accelerate_config(arguments.accelerate_config).absolute())  # from where it was typed
    if is_own and found.working_directory.is_dir():
        os.chdir(found.working_directory)
    num_processes = found.num_processes if arguments.processes is None else arguments.processes
    return _launch(found.program, words, num_processes=num_processes, accelerate_config=config)


def _add_placement(parser: argparse.ArgumentParser, *, processes: str, accelerate_config: str) -> None:
    """Add `--processes` and `--accelerate_config` to a parser; the arguments describe their defaults."""
    parser.add_argument("--processes", type=int, metavar="N", help=f"processes on this machine (default: {processes})")
    parser.add_argument(
        "--accelerate_config",
        "--accelerate-config",
        metavar="NAME",
        help=f"a file, or one of {', '.join(_accelerate_configs())} (default: {accelerate_config})",
    )


def _launch(program: str, words: Sequence[str], *, num_processes: int | None, accelerate_config: str | None) -> int:
    """Start a training program on this machine and return its exit code; None means what fits the GPUs and the recipe."""
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"--processes must be at least 1, got {num_processes}")
    gpus = _gpus_to_train_on(words)
    recipe = recipe_of_words(words) if gpus else None
    of_hardware = recipe.accelerate_config if recipe else "ddp" if gpus or (num_processes or 1) > 1 else "cpu"
    name = accelerate_config or of_hardware
    config = _accelerate_config(name)
    read_accelerate_config(config, num_processes=num_processes)
    if config.parent == ACCELERATE_CONFIGS:
        # Our configs say 8 because accelerate needs a number; the number in a user's own file is meant.
        num_processes = num_processes or len(gpus) or 1
    if gpus:
        print(f"{num_processes or 'as many as the file says'} processes on GPU {', '.join(gpus)}, {name}", flush=True)
    return launch(program, words, config=config, num_processes=num_processes)


def serve(argv: Sequence[str]) -> int:
    """start the vLLM server that a recipe trains with"""
    if not argv or argv[0] in ("-h", "--help"):
        argv = ["--help"]
    from tinyzero_trl.generation import serving

    return serving.main(argv)


def evaluate(argv: Sequence[str]) -> int:
    """answer held-out problems with a model; or compare two evaluations"""
    from tinyzero_trl import evaluation

    return evaluation.main(argv)


def report(argv: Sequence[str]) -> int:
    """write a run folder's report.html anew"""
    parser = _parser("report", report, example="tinyzero report outputs/countdown/grpo-tiny-20260101-120000")
    parser.add_argument("run_folder", type=Path, help="the folder of a run, as `train` printed it")
    arguments = parser.parse_args(argv)
    if not (arguments.run_folder / "run.yaml").is_file():
        raise ValueError(f"{arguments.run_folder} is not a run folder: it has no run.yaml")
    storage.probe(arguments.run_folder)
    from tinyzero_trl.report import write_report

    print(write_report(arguments.run_folder))
    return 0


def recipes(argv: Sequence[str]) -> int:
    """every recipe with its model, method, hardware and expectation"""
    parser = _parser("recipes", recipes, example="tinyzero recipes countdown")
    parser.add_argument("task", nargs="?", help="only this task's")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder with recipes of your own, beside ./recipes")
    parser.add_argument("--markdown", action="store_true", help="the tables of docs/recipes.md")
    arguments = parser.parse_args(argv)
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    rows = list_recipes(*recipe_folders(arguments.config_dir))
    tasks = sorted({row.task for row in rows})
    if arguments.task is not None and arguments.task not in tasks:
        raise ValueError(f"there are no recipes of {arguments.task!r}; there are some of {', '.join(tasks)}")
    shown = [row for row in rows if arguments.task in (None, row.task)]
    if arguments.markdown:
        for task in dict.fromkeys(row.task for row in shown):
            print(f"## {task}\n\n| recipe | model | hardware | what to expect |\n|---|---|---|---|")
            for row in shown:
                if row.task == task:
                    print(
                        f"| `+{task}={row.name}` | {row.model} | {row.hardware} | {row.why_unreadable or row.expectation} |"
                    )
            print()
        return 0
    names = [f"+{row.task}={row.name}" for row in shown]
    table = Table(show_lines=True)
    # Wide enough that no name is folded: people copy them, and scripts search for them.
    table.add_column("recipe, model and method, hardware", min_width=max(map(len, names)))
    table.add_column("what to expect")
    for name, row in zip(names, shown, strict=True):
        if row.why_unreadable:
            table.add_row(f"[bold]{escape(name)}[/]\nbroken", escape(row.why_unreadable))
        else:
            of_its_own = "" if row.path.is_relative_to(RECIPES) else f"\n{escape(str(row.path))}"
            table.add_row(
                f"[bold]{escape(name)}[/]\n{row.model}, {row.method}\n{row.hardware}{of_its_own}", row.expectation
            )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


def merge(argv: Sequence[str]) -> int:
    """make one model of a LoRA adapter and the model below it"""
    parser = _parser("merge", merge, example="tinyzero merge outputs/countdown/<run> merged/countdown")
    parser.add_argument("model_path", help="a run trained with model.use_peft=true, a checkpoint of it, or an adapter")
    parser.add_argument("to", type=Path, help="the folder to write")
    arguments = parser.parse_args(argv)
    from tinyzero_trl.models import adapters

    print(adapters.merge(arguments.model_path, arguments.to))
    return 0


def estimate(argv: Sequence[str]) -> int:
    """will a run fit, how long does a step take, what does the run cost; nothing is loaded"""
    from tinyzero_trl import estimate

    return estimate.main(argv)


def doctor(argv: Sequence[str]) -> int:
    """devices, versions, what is missing or does not fit together, and the command that mends it"""
    from tinyzero_trl import doctor

    return doctor.main(argv)


VERBS: dict[str, Verb] = {
    "demo": demo,
    "prepare": prepare,
    "train": train,
    "resume": resume,
    "serve": serve,
    "evaluate": evaluate,
    "report": report,
    "recipes": recipes,
    "merge": merge,
    "doctor": doctor,
    "estimate": estimate,
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
    return sorted(path.stem for path in ACCELERATE_CONFIGS.glob("*.yaml"))


def _accelerate_config(name: str) -> Path:
    """The accelerate config called `name`, or the file `name`. Raises: ValueError that lists the known names."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else ACCELERATE_CONFIGS / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(
            f"there is no accelerate config {name!r}; there is {', '.join(_accelerate_configs())}, or give a file"
        )
    return path


def _gpus_to_train_on(words: Sequence[str]) -> list[str]:
    """GPUs of this machine without those in `generation.devices`, which the run gives to its own server and hides from the trainer.

    Raises: ValueError if none is left.
    """
    gpus = visible_gpus()
    chosen = dict(word.lstrip("+").partition("=")[::2] for word in words)
    devices = chosen.get("generation.devices", "").strip("\"'")
    if not gpus or not devices or devices == "null" or chosen.get("generation.engine", "server") != "server":
        return gpus
    of_server = [name.strip() for name in devices.split(",")]
    left = [name for name in gpus if name not in of_server]
    if not left:
        raise ValueError(
            f"generation.devices={devices} leaves no GPU to train on; this machine has {', '.join(gpus)}: name fewer"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(left)
    return left


if __name__ == "__main__":
    sys.exit(main())
