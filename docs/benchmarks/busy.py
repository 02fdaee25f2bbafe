"""Steps of `make demo` while another process computes: libgomp's own waiting, ours, and one thread.

python docs/benchmarks/busy.py

A process for each setting builds the demo's trainer, and all take turns: the same steps, first on a quiet machine, then beside a
process that does nothing but count. That process is stopped and continued by signals. Every setting draws the same completions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parent))

STATES = ("quiet", "busy")
SPINS_OF_LIBGOMP = 300_000
"""Rounds that libgomp waits actively where neither GOMP_SPINCOUNT nor OMP_WAIT_POLICY is set.

Source: libgomp/env.c of GCC, initialize_env.
"""
COUNT = "while True: pass"
"""Program of the other process: it takes all of one core."""


@dataclass(frozen=True)
class Setting:
    """Threads of a process, and how long they wait."""

    name: str
    threads: int
    spins: int
    """Value of GOMP_SPINCOUNT."""


def settings(threads: int, others: list[int]) -> list[Setting]:
    """libgomp's own waiting, ours, one thread, and further numbers of rounds."""
    from tinyzero_trl.threads import SPINS

    return [
        Setting("libgomp's own", threads, SPINS_OF_LIBGOMP),
        Setting("ours", threads, SPINS),
        Setting("one thread", 1, SPINS),
        *(Setting(f"{spins:,} rounds", threads, spins) for spins in others),
    ]


def work(turns: Any, words: list[str]) -> None:
    """In a process of its own: a step of the demo for each message, and its seconds and tokens sent back; the first warms up."""
    from step_vs_trl import build
    from transformers import TrainerCallback
    from watch import Watch

    class InTurn(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            turns.recv()
            self.began = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            turns.send((time.perf_counter() - self.began, watch.steps[-1].generated))

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # progress lines; errors go to stderr
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(words, folder=Path(folder), is_ours=True)
        watch = Watch(trainer)
        trainer.add_callback(InTurn())
        trainer.train()


class Worker:
    """The process of a setting."""

    def __init__(self, setting: Setting, words: list[str]):
        # libgomp reads its variables as it is loaded, so they are set before the process starts.
        os.environ |= {"OMP_NUM_THREADS": str(setting.threads), "GOMP_SPINCOUNT": str(setting.spins)}
        context = multiprocessing.get_context("spawn")
        self.turns, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, words), daemon=True)
        self.process.start()
        theirs.close()

    def step(self) -> tuple[float, int]:
        """Seconds and generated tokens of the next step. Raises: RuntimeError."""
        try:
            self.turns.send("go")
            seconds, tokens = self.turns.recv()
        except (EOFError, OSError):
            self.process.join()
            raise RuntimeError(f"a measuring process ended with exit code {self.process.exitcode}") from None
        return float(seconds), int(tokens)


@contextmanager
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that counts while it is not stopped; it is stopped at first."""
    process = subprocess.Popen([sys.executable, "-c", COUNT])
    process.send_signal(signal.SIGSTOP)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def measure(chosen: list[Setting], words: list[str], *, steps: int) -> list[dict[str, Any]]:
    """Seconds and generated tokens of `steps` steps by setting and state."""
    found = [{**vars(setting), **{state: {"seconds": 0.0, "tokens": 0} for state in STATES}} for setting in chosen]
    workers = []
    for setting in chosen:
        workers.append(Worker(setting, words))
        workers[-1].step()
    with other_process() as other:
        for _ in range(steps):
            for state in STATES:
                for worker, row in zip(workers, found, strict=True):
                    other.send_signal(signal.SIGCONT if state == "busy" else signal.SIGSTOP)
                    seconds, tokens = worker.step()
                    row[state]["seconds"] += seconds
                    row[state]["tokens"] += tokens
    for worker in workers:
        worker.process.join()
    return found


def table(found: list[dict[str, Any]], *, steps: int) -> str:
    """Markdown, a row for each setting."""
    one = next(row for row in found if row["threads"] == 1)
    rows = [
        f"| setting | threads | GOMP_SPINCOUNT | {steps} steps, quiet | {steps} steps, busy | busy, of one thread's |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in found:
        quiet, busy = (row[state]["seconds"] for state in STATES)
        share = busy / one["busy"]["seconds"]
        rows.append(
            f"| {row['name']} | {row['threads']} | {row['spins']:,} | {quiet:.1f} s | {busy:.1f} s | {share:.2f} |"
        )
    return "\n".join(rows)


def main() -> int:
    """Measure every setting and print the table; returns exit code 0."""
    arguments = _parser().parse_args()
    from step_vs_trl import NOT_THE_STEP, QUICK, RECIPE

    # At such a rate the model stays as it is, so the steps of every setting are the same work.
    num_steps = 1 + len(STATES) * arguments.steps
    words = [
        RECIPE,
        *NOT_THE_STEP,
        "trainer.learning_rate=1e-12",
        f"trainer.max_steps={num_steps}",
        *arguments.overrides,
    ]
    words += QUICK if arguments.quick else []
    began, load = time.perf_counter(), os.getloadavg()[0]
    found = measure(settings(arguments.threads, arguments.spins), words, steps=arguments.steps)
    command = " ".join(["python", "docs/benchmarks/busy.py", *sys.argv[1:]])
    print(
        f"`{command}`: {os.cpu_count()} cores, load {load:.1f} before; "
        f"{time.perf_counter() - began:.0f} s in all.\n\n{table(found, steps=arguments.steps)}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps({"command": command, "load": load, "results": found}, indent=1), "utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=3, help="measured in each state, after one to warm up (default: 3)"
    )
    parser.add_argument("--threads", type=int, default=2, help="of the settings with several (default: 2)")
    parser.add_argument(
        "--spins", type=int, nargs="+", default=[], metavar="N", help="further rounds of waiting to try"
    )
    parser.add_argument("--quick", action="store_true", help="tiny batch and completions: does it run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the seconds here")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe, for all")
    return parser


if __name__ == "__main__":
    sys.exit(main())
