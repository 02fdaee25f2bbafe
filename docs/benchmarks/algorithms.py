"""Every algorithm on the tiny model after the same number of generated tokens: the table of docs/algorithms.md.

One sitting: runs go side by side, one on each core given, each with one thread, and their seconds of it are counted, which other work on the machine changes little. Finished
runs are kept, so that an interrupted sitting goes on:

    python docs/benchmarks/algorithms.py --tokens 400000 --seeds 0,1 --cores 0,1 --output outputs/algorithms
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import yaml
from rich.console import Console
from rich.table import Table

from tinyzero_trl import intervals
from tinyzero_trl.algorithms import ALGORITHMS
from tinyzero_trl.evaluation import scores

GRPO = ["trainer.loss_type=grpo", "trainer.scale_rewards=group"]
"""grpo-tiny is the demo, with Dr. GRPO's loss; here `grpo` is what its paper says."""
NUM_PROBLEMS = 2048
SECONDS = "core-seconds.txt"


def main() -> int:
    arguments = _arguments()
    names = arguments.algorithms.split(",") if arguments.algorithms else list(ALGORITHMS)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    arguments.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    waiting: queue.Queue[tuple[str, int]] = queue.Queue()
    for seed in seeds:
        for name in names:
            waiting.put((name, seed))

    def work(core: str) -> None:
        while not waiting.empty():
            try:
                name, seed = waiting.get_nowait()
            except queue.Empty:
                return
            folder = arguments.output / f"{name}-seed-{seed}"
            if not list(folder.glob("evaluation/*/")):
                _run(name, seed, folder, core=core, arguments=arguments)
            console.print(f"core {core}: {folder.name} done")

    cores = arguments.cores.split(",")
    with ThreadPoolExecutor(len(cores)) as workers:
        for done in [workers.submit(work, core) for core in cores]:
            done.result()
    rows = [_row(name, [arguments.output / f"{name}-seed-{seed}" for seed in seeds]) for name in names]
    _show(console, rows)
    return 0


def _run(name: str, seed: int, folder: Path, *, core: str, arguments: argparse.Namespace) -> None:
    """Train one algorithm on one core and evaluate it on held-out problems, the same for all."""
    program = [str(Path(sys.executable).with_name("tinyzero"))]
    recipe = "grpo-tiny" if name == "grpo" else f"{name}-tiny"
    settings = [*(GRPO if name == "grpo" else []), *arguments.overrides]
    settings += [f"trainer.seed={seed}", f"data.seed={seed}", f"max_generated_tokens={arguments.tokens}"]
    settings += [
        "trainer.max_steps=1000",
        "trainer.save_strategy=no",
        "trainer.eval_strategy=no",
        "trainer.eval_on_start=false",
    ]
    words = ["train", f"+countdown={recipe}", f"output_dir={folder}", *settings]
    with (arguments.output / f"{folder.name}.log").open("w") as log:
        seconds = _call([*program, *words], core=core, log=log)
        (folder / SECONDS).write_text(f"{seconds:.1f}")
        _call([*program, "evaluate", "--model_path", str(folder), "--n", str(NUM_PROBLEMS)], core=core, log=log)


def _call(command: list[str], *, core: str, log: IO[str]) -> float:
    """Run a command on one core with one thread; the seconds it had of that core, which other work does not change."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(["taskset", "-c", core, *command], env=environment, stdout=log, stderr=log)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_utime + usage.ru_stime


def _row(name: str, folders: list[Path]) -> dict[str, Any]:
    """One algorithm's row of the table; its interval is that of these problems."""
    paths = [next((folder / "evaluation").glob("*/")) for folder in folders]
    evaluations = [scores.read_summary(path) for path in paths]
    solved = [evaluation["metrics"]["pass@1"]["value"] for evaluation in evaluations]
    metrics = [[json.loads(line) for line in (folder / "metrics.jsonl").open()] for folder in folders]
    steps = [[entry for entry in entries if "generated_tokens" in entry] for entries in metrics]
    # The same problems for every seed: the problem is the unit. Seeds themselves differ by more: their column says how much.
    by_problem: dict[int, list[float]] = {}
    for sample in (sample for path in paths for sample in scores.read_samples(path)):
        by_problem.setdefault(sample.problem, []).append(float(sample.is_correct))
    interval = intervals.share([sum(values) / len(values) for values in by_problem.values()])
    return {
        "algorithm": name,
        "solved": solved,
        "low": interval.low,
        "high": interval.high,
        "seconds": [float((folder / SECONDS).read_text()) for folder in folders],
        "steps": [entries[-1]["step"] for entries in steps],
        "tokens": [entries[-1]["generated_tokens"] for entries in steps],
        "length": [evaluation["metrics"]["length/mean"]["value"] for evaluation in evaluations],
        "learning_rate": yaml.safe_load((folders[0] / "run.yaml").read_text())["trainer"]["learning_rate"],
    }


def _show(console: Console, rows: list[dict[str, Any]]) -> None:
    """The table, best first, for the terminal and as Markdown."""
    header = [
        "algorithm",
        "solved, mean of seeds",
        "each seed",
        "seconds",
        "updates",
        "tokens a response",
        "learning rate",
    ]
    table = Table(*header)
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in sorted(rows, key=lambda row: -sum(row["solved"])):
        mean = sum(row["solved"]) / len(row["solved"])
        cells = [
            row["algorithm"],
            f"{mean:.1%} [{row['low']:.1%}, {row['high']:.1%}]",
            *(", ".join(f"{value:{form}}" for value in row[key]) for key, form in (("solved", ".1%"), ("seconds", ".0f"), ("steps", "d"), ("length", ".0f"))),
            f"{row['learning_rate']:g}",
        ]  # fmt: skip
        table.add_row(*cells)
        lines.append("| " + " | ".join(cells) + " |")
    console.print(table)
    print("\n".join(lines))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=400_000, help="generated in training (default: %(default)s)")
    parser.add_argument("--seeds", default="0,1", help="default: %(default)s")
    parser.add_argument("--cores", default="0,1", help="one run at a time on each (default: %(default)s)")
    parser.add_argument("--algorithms", help="separated by commas (default: all)")
    parser.add_argument("--output", type=Path, default=Path("outputs/algorithms"), help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to every recipe")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
