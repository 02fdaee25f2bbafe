"""The cost of verdicts on mathematical answers in real steps of `+math=grpo-tiny`; prints Markdown. Two minutes on one core.

    python docs/benchmarks/math_step.py outputs/math/sft-tiny/model

The recipe runs three times from the model that `+math=sft-tiny` leaves: as it is; with text never deciding, so that every answer goes to
sympy in a worker; and so that nothing is remembered either, with which every response goes there twice: for its reward and for its record.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from tinyzero_trl import grpo
from tinyzero_trl.tasks.math import verdict, workers


def steps(model: Path, num_steps: int, folder: Path) -> tuple[list[dict[str, float]], int]:
    """The metrics of each step, and how many comparisons reached a worker."""
    workers.workers.close()
    workers.counts.clear()
    workers._remembered.cache_clear()
    words = [f"model.model_name_or_path={model}", f"output_dir={folder}", f"trainer.max_steps={num_steps}"]
    assert grpo.train(["+math=grpo-tiny", *words]) == 0
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    num = sum(workers.counts[name] for name in ("compared", "too_long", "died", "failed"))
    return [line for line in lines if "seconds/scoring" in line], num


def row(name: str, found: list[dict[str, float]], num_compared: int) -> str:
    """Medians over the steps but the first, in which the pool starts; its scoring stands apart."""
    first, *rest = ([line[f"seconds/{part}"] for part in ("scoring", "generation", "training")] for line in found)
    seconds = statistics.median(map(sum, rest))
    scoring = statistics.median(step[0] for step in rest)
    share = statistics.median(step[0] / sum(step) for step in rest)
    return (
        f"| {name} | {seconds:.2f} | {scoring:.3f} | {share:.1%} | {num_compared / len(found):.0f} | {first[0]:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="what +math=sft-tiny leaves")
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()

    def never(gold: object, form: object) -> None: ...

    patches: dict[str, dict[str, Callable[..., Any]]] = {
        "as it is": {},
        "text never decides": {"same_by_text": never},
        "and nothing is remembered": {"same_by_text": never, "compare": workers.workers.compare},
    }
    rows = []
    for name, patch in patches.items():
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            for target, replacement in patch.items():
                stack.enter_context(mock.patch.object(verdict, target, replacement))
            rows.append(row(name, *steps(args.model.resolve(), args.steps, Path(folder) / "run")))
    print(
        "\n| | seconds a step | scoring | share of the step | comparisons in workers a step | scoring in the first step |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))
    workers.workers.close()


if __name__ == "__main__":
    main()
