"""The demo: evaluates the shipped tiny model, trains it by reinforcement learning, evaluates it again, and writes a report."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyzero_trl import storage
from tinyzero_trl.config import ACCELERATE_CONFIGS, check_to_launch
from tinyzero_trl.data import TINYZERO_TEST
from tinyzero_trl.launch import launch
from tinyzero_trl.threads import bound_waiting

if TYPE_CHECKING:
    from tinyzero_trl.intervals import Comparison

RECIPE, REAL_RECIPE = "+countdown=grpo-tiny", "+countdown=grpo-tiny-search"
"""The recipes: on generated problems of three numbers; with `--real` on TinyZero's own data."""
NUM_PROBLEMS = 2048
"""Number of held-out problems; it gives a 95 % interval of about +-2 points. With `--real` they are TinyZero's 1,024 test problems."""
PROBLEM_SEED = 0
"""Seed of the held-out problems: the same for every --seed, so that runs of several seeds compare."""
SHOWN = {
    "pass@1": "solved",
    "outcome/wrong_value": "wrong value",
    "outcome/wrong_numbers": "wrong numbers",
    "outcome/truncated": "cut off by the token limit",
    "length/mean": "tokens per response",
    "attempts/mean": "attempts per response",
    "true_values/share": "attempts calculated right",
    "verified/share": "answers it had verified",
}
"""Labels of the last table by the metric of the evaluation."""


def main(argv: Sequence[str]) -> int:
    """Run the demo; returns the exit code."""
    arguments = _parser().parse_args(argv)
    check_to_launch()
    if arguments.source is not None and not arguments.real:
        raise ValueError(f"--source {arguments.source} is for --real; without it the problems are generated")
    num_problems = arguments.problems
    if num_problems is None:
        num_problems = TINYZERO_TEST if arguments.real else NUM_PROBLEMS
    if num_problems < 1:
        raise ValueError(f"--problems must be at least 1, got {num_problems}")
    if arguments.real and num_problems > TINYZERO_TEST:
        raise ValueError(f"--problems must be at most {TINYZERO_TEST} with --real, got {num_problems}")
    if arguments.steps is not None and arguments.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {arguments.steps}")
    if not 0 <= arguments.seed < 2**32:
        raise ValueError(f"--seed must be at least 0 and at most {2**32 - 1}, got {arguments.seed}")
    if typed := next((word for word in arguments.overrides if word.lstrip("+").startswith("output_dir=")), None):
        raise ValueError(f"{typed}: the demo's folder is --output_dir {typed.partition('=')[2]}")
    recipe = REAL_RECIPE if arguments.real else RECIPE
    run_folder = (
        arguments.output_dir
        or Path("outputs/countdown") / f"{recipe.partition('=')[2]}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    )
    words = [recipe, f"output_dir={run_folder}"]
    words += [f"trainer.seed={arguments.seed}", f"data.seed={arguments.seed}"]
    if arguments.source is not None:
        words.append(f"data.source={arguments.source}")
    if arguments.steps is not None:
        words.append(f"trainer.max_steps={arguments.steps}")
    bound_waiting()
    return run([*words, *arguments.overrides], run_folder=run_folder, num_problems=num_problems)


def run(words: Sequence[str], *, run_folder: Path, num_problems: int) -> int:
    """Evaluate, train, evaluate and report, and print the seconds of each; returns the exit code."""
    from rich.console import Console

    from tinyzero_trl import evaluation
    from tinyzero_trl.config import check_method, checks, compose
    from tinyzero_trl.evaluation import Settings, scores
    from tinyzero_trl.report import write_report

    console = Console(highlight=False, soft_wrap=True)
    seconds_by_phase: dict[str, float] = {}
    cfg = compose(words)
    checks.parts(cfg)
    check_method(cfg)
    if run_folder.exists() and any(run_folder.iterdir()):
        raise ValueError(f"--output_dir {run_folder} is not empty, and a run never overwrites another")
    storage.probe(run_folder)
    run_folder.parent.mkdir(parents=True, exist_ok=True)

    with _phase(console, seconds_by_phase, f"Taking {num_problems} held-out problems"):
        problems = _held_out(cfg, num_problems=num_problems, folder=run_folder.parent)
    settings: dict[str, Any] = {
        "task": str(cfg.task),
        "format": str(cfg.format),
        **problems,
        "n": num_problems,
        "seed": PROBLEM_SEED,
        "temperature": float(cfg.trainer.temperature),
        "max_new_tokens": int(cfg.trainer.max_completion_length),
        "engine": "transformers",  # for a model this small faster than loading vLLM
    }
    # A run starts in an empty folder, so the evaluation of the base model is kept beside it until the training is done.
    with tempfile.TemporaryDirectory(prefix=".demo-", dir=run_folder.parent) as waiting:
        with _phase(console, seconds_by_phase, "Evaluating the base model"):
            base = evaluation.evaluate(
                Settings(str(cfg.model.model_name_or_path), name="base", output=Path(waiting), **settings)
            )
        with _phase(console, seconds_by_phase, f"Training for {cfg.trainer.max_steps} steps"):
            code = launch("grpo", words, config=_accelerate_config(cfg), num_processes=1)
        if code:
            console.print(f"The training ended with exit code {code}; its folder is {run_folder}")
            return code
        (run_folder / "evaluation").mkdir(exist_ok=True)
        base = Path(shutil.move(base, run_folder / "evaluation" / "base"))
    with _phase(console, seconds_by_phase, "Evaluating the trained model on the same problems"):
        trained = evaluation.evaluate(Settings(str(run_folder), name="final", **settings))
    comparison = scores.compare(scores.read_samples(base), scores.read_samples(trained))
    with _phase(console, seconds_by_phase, "Writing the report"):
        page = write_report(run_folder)

    _show(console, scores.read_summary(base), scores.read_summary(trained), comparison)
    console.print(
        f"{sum(seconds_by_phase.values()):.0f} s in all: "
        + ", ".join(f"{seconds:.0f} s {phase[0].lower()}{phase[1:]}" for phase, seconds in seconds_by_phase.items())
    )
    console.print(f"The report: {page.resolve()}")
    return 0


def _accelerate_config(cfg: Any) -> Path:
    """The accelerate config for one process on the device that trainer.use_cpu chooses; cpu.yaml would hide the GPU from the run."""
    return ACCELERATE_CONFIGS / ("cpu.yaml" if cfg.trainer.use_cpu else "ddp.yaml")


def _held_out(cfg: Any, *, num_problems: int, folder: Path) -> dict[str, Any]:
    """Source and split rule of the held-out problems, as `evaluation.Settings` takes them; the same number always gives the same ones.

    By the rule "tinyzero" they are rows of the source itself. Otherwise they are test problems in the ranges of the run, in a file in `folder`.
    Raises: ValueError or FileNotFoundError of one line if the source cannot be read.
    """
    import datasets

    from tinyzero_trl.task import loaded
    from tinyzero_trl.tasks import find_task

    datasets.disable_progress_bars()
    ranges = {key: value for key, value in cfg.data.items() if key not in ("num_train_rows", "num_eval_rows", "seed")}
    is_tinyzeros = ranges.get("split_rule") == "tinyzero"
    try:
        rows = loaded(find_task(str(cfg.task)), split="test", num_rows=num_problems, seed=PROBLEM_SEED, **ranges)
    except ValueError as error:
        raise ValueError(f"{error} (here: --source FILE)" if is_tinyzeros else str(error)) from error
    if is_tinyzeros:
        return {"source": str(cfg.data.source), "split_rule": "tinyzero"}
    path = folder / f"held-out-{num_problems}.jsonl"
    with storage.replacing(path) as file:
        rows.to_json(file)
    return {"source": str(path)}


@contextmanager
def _phase(console: Any, seconds_by_phase: dict[str, float], name: str) -> Iterator[None]:
    """Prints the number and name of a phase, and its seconds when it is done."""
    console.print(f"[bold]{len(seconds_by_phase) + 1}. {name}[/]")
    started = time.perf_counter()
    yield
    seconds_by_phase[name] = time.perf_counter() - started
    console.print(f"   {seconds_by_phase[name]:.1f} s")


def _show(console: Any, base: dict[str, Any], trained: dict[str, Any], comparison: Comparison) -> None:
    """Print base and trained model side by side, and the gain."""
    from rich.table import Table

    from tinyzero_trl.evaluation import is_share, shown_p

    table = Table("", "base", "trained", title=f"The same {base['num_problems']} held-out problems (95 % intervals)")
    for metric, label in SHOWN.items():
        if metric in base["metrics"] and metric in trained["metrics"]:
            cells = [_cell(summary["metrics"][metric], is_share(metric)) for summary in (base, trained)]
            table.add_row(label, *cells)
    console.print(table)
    gain = comparison.gain
    console.print(
        f"Gain: [bold]{100 * gain.value:+.1f}[/] points [{100 * gain.low:.1f}, {100 * gain.high:.1f}], "
        f"{comparison.test} p = {shown_p(comparison.p)}",
        markup=True,
    )


def _cell(estimate: dict[str, float], is_a_share: bool) -> str:
    scale, unit = (100, " %") if is_a_share else (1, "")
    value, low, high = (scale * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.1f}{unit} ({low:.1f} to {high:.1f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinyzero demo",
        description="Evaluate the shipped tiny model on held-out Countdown problems, train it by reinforcement learning, "
        "evaluate it again on the same problems, and write a report. Needs no GPU, and without --real no network.",
        epilog="example:\n  tinyzero demo\n  tinyzero demo --seed 1 --steps 20 --problems 256\n"
        "  tinyzero demo --real                       an hour on TinyZero's own problems, from the hub\n"
        "  tinyzero demo --real --source Countdown-Tasks-3to4.parquet\n"
        "  tinyzero demo trainer.use_cpu=false        trains on the GPU",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--seed", type=int, default=0, help="of the training and its problems (default: 0)")
    parser.add_argument(
        "--real",
        action="store_true",
        help=f"{REAL_RECIPE}: problems of three and four numbers, measured on TinyZero's {TINYZERO_TEST:,} test problems",
    )
    parser.add_argument(
        "--source",
        metavar="S",
        help="with --real: the file of TinyZero's problems, or its hub id (default: the recipe's)",
    )
    parser.add_argument(
        "--problems", type=int, metavar="N", help=f"held out (default: {NUM_PROBLEMS}; with --real {TINYZERO_TEST})"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="training steps (default: the recipe's)")
    parser.add_argument(
        "--output_dir", type=Path, metavar="D", help="run folder (default: outputs/countdown/<recipe>-<time>)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to the recipe, as `train` takes them"
    )
    return parser
