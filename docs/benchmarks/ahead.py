"""Seconds a step and accuracy at equal tokens with and without generation.ahead: python docs/benchmarks/ahead.py

The vLLM server has one core and the trainer another, as two GPUs would be. Both runs are `+countdown=grpo-tiny` with the same
server, seeds and budget of tokens; each final model answers the same held-out problems. Needs vLLM (docs/generation.md) and two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
WARM_UP = 2
"""Steps that are not timed: the first one generates its own batch, whatever `ahead` is."""
PHASES = ("generation", "scoring", "training")
COLUMNS = (
    *("ahead", "seed", "seconds a step", *PHASES, "server's tokens/s", "steps", "tokens", "accuracy (95 %)"),
    *("nats moved", "clipped"),
)


def main(argv: Sequence[str]) -> int:
    """Measure and print a table; returns the exit code."""
    args = _parser().parse_args(argv)
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="tinyzero-ahead-") as place, server_on(args.server_core, place) as server:
        for number, seed in enumerate(args.seeds):
            for ahead in (0, 1) if number % 2 == 0 else (1, 0):
                folder = Path(place) / f"ahead-{ahead}-seed-{seed}"
                train(folder, server, ahead=ahead, seed=seed, args=args)
                rows.append(measured(folder, ahead=ahead, seed=seed) | accuracy_of(folder, args=args))
    load, seconds = os.getloadavg()[0], time.monotonic() - began
    words = ["python", "docs/benchmarks/ahead.py", *argv]
    print(f"`{' '.join(words)}`: one core each, load {load:.1f} at the end, {seconds:.0f} s in all.\n")
    for cells in (
        COLUMNS,
        ["---"] * len(COLUMNS),
        *(_cells(row) for row in sorted(rows, key=lambda row: row["ahead"])),
    ):
        print("| " + " | ".join(cells) + " |")
    by_ahead = [statistics.mean(row["seconds a step"] for row in rows if row["ahead"] == ahead) for ahead in (0, 1)]
    print(f"\nA step with ahead takes {by_ahead[1] / by_ahead[0]:.2f} of the time of one without.")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    return 0


@contextmanager
def server_on(core: int, place: str) -> Iterator[Any]:
    """A vLLM server of the tiny model that has this core alone."""
    from tinyzero_trl.generation.server import Server, ServerSpec
    from tinyzero_trl.models import load_path

    spec = ServerSpec(load_path("tiny"), dtype="float32", max_model_length=512, is_on_cpu=True, weight_transfer="file")
    server = Server(spec, log=Path(place) / "server.log", token_file=Path(place) / "token")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})  # children inherit it
    try:
        server.start()
        os.sched_setaffinity(0, cores)
        server.wait_until_healthy(600)
        yield server
    finally:
        server.stop()


def train(folder: Path, server: Any, *, ahead: int, seed: int, args: argparse.Namespace) -> None:
    """A run with its trainer on one core."""
    words = [
        *("+countdown=grpo-tiny", f"output_dir={folder}", f"trainer.seed={seed}", f"generation.ahead={ahead}"),
        *("generation.engine=server", f"generation.server={server.url}", f"generation.token_file={server.token_file}"),
        *("trainer.vllm_max_model_length=512", f"max_generated_tokens={args.tokens}", "trainer.max_steps=1000"),
        *(f"batching.completions_per_step={args.completions}", "trainer.save_strategy=no"),
        *("trainer.eval_strategy=no", "trainer.eval_on_start=false", "data.num_eval_rows=0"),
    ]
    _run([str(REPO / "src/tinyzero_trl/grpo.py"), *words], cores={args.trainer_core})


def measured(folder: Path, *, ahead: int, seed: int) -> dict[str, Any]:
    """Times of the steps after the warm-up, and what was trained."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "seconds/training" in line]
    timed = steps[WARM_UP:]
    if not timed:
        raise SystemExit(f"--tokens end after {len(steps)} steps, and {WARM_UP} of them are not timed; give more")

    def mean(key: str, over: Sequence[dict[str, Any]] = timed) -> float:
        return statistics.mean(line[key] for line in over if line.get(key) is not None)

    return {
        "ahead": ahead,
        "seed": seed,
        "seconds a step": (steps[-1]["seconds"] - steps[WARM_UP - 1]["seconds"]) / len(timed),
        **{phase: mean(f"seconds/{phase}") for phase in PHASES},
        "server's tokens/s": mean("tokens_per_second"),
        "steps": len(steps),
        "tokens": int(steps[-1]["generated_tokens"]),
        "nats moved": mean("sampling/sampling_logp_difference/mean"),
        "clipped": mean("clip_ratio/region_mean"),
    }


def accuracy_of(folder: Path, *, args: argparse.Namespace) -> dict[str, Any]:
    """Held-out accuracy of the final model, with its interval."""
    words = ["--model_path", str(folder), "--n", str(args.problems), "--name", "end"]
    _run([str(REPO / "scripts/evaluate_countdown.py"), *words], cores={args.server_core, args.trainer_core})
    return {"accuracy (95 %)": json.loads((folder / "evaluation/end/summary.json").read_text())["metrics"]["pass@1"]}


def _run(command: list[str], *, cores: set[int]) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": str(len(cores)), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=REPO,
        env=env,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    if ended.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}"
        )


def _cells(row: dict[str, Any]) -> list[str]:
    found = row["accuracy (95 %)"]
    shown = row | {"accuracy (95 %)": f"{found['value']:.1%} ({found['low']:.1%} to {found['high']:.1%})"}
    digits = {"server's tokens/s": ",.0f", "tokens": ",", "nats moved": ".4f", "clipped": ".1%"}
    seconds = dict.fromkeys(("seconds a step", *PHASES), ".2f")
    return [format(shown[column], {**digits, **seconds}.get(column, "")) for column in COLUMNS]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1], help="a pair of runs for each (default: 0 1)")
    add("--tokens", type=int, default=200_000, help="completion tokens of each run (default: %(default)s)")
    add("--completions", type=int, default=256, help="of a step (default: %(default)s)")
    add("--problems", type=int, default=1024, help="held-out ones for the final models (default: %(default)s)")
    add("--trainer_core", type=int, default=0)
    add("--server_core", type=int, default=1)
    add("--json", type=Path, help="write the numbers here, too")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
