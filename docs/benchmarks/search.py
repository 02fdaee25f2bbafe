"""Prints, as Markdown, how much of a Countdown evaluation a model solves, by the kind of search a problem takes.

    python docs/benchmarks/search.py outputs/countdown/RUN/evaluation/base outputs/countdown/RUN/evaluation/final

The kinds, each problem in the first that holds, by brute force over its numbers: `sums`, a solution by sums and differences alone; `one
product`, one product or quotient of two of the numbers and then sums and differences; `more`, anything else. Seconds for 1,024 problems.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import statistics
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

from tinyzero_trl.evaluation import scores
from tinyzero_trl.intervals import share
from tinyzero_trl.rollout import Rollout
from tinyzero_trl.task import Outcome
from tinyzero_trl.tasks.countdown import TASK, evaluations

KINDS = ("sums", "one product", "more")


def is_sum(nums: Sequence[int], target: int) -> bool:
    """Some signs in front of the numbers make them add up to `target`."""
    return any(
        sum(sign * number for sign, number in zip(signs, nums, strict=True)) == target
        for signs in itertools.product((1, -1), repeat=len(nums))
    )


def kind_of(nums: Sequence[int], target: int) -> str:
    """One of KINDS."""
    if is_sum(nums, target):
        return "sums"
    for a, b in itertools.permutations(range(len(nums)), 2):
        rest = [number for at, number in enumerate(nums) if at not in (a, b)]
        quotient = [nums[a] // nums[b]] if nums[b] and nums[a] % nums[b] == 0 else []
        if any(is_sum([value, *rest], target) for value in [nums[a] * nums[b], *quotient]):
            return "one product"
    return "more"


def stops_at_first_hit(response: str, *, nums: Sequence[int], target: int) -> float:
    """1.0 if the thought ends where it first has all numbers and the target, 0.0 if it goes on; NaN where it never has."""
    attempts = [line for line in evaluations(response.partition("</think>")[0]) if not line.is_continued]
    for number, attempt in enumerate(attempts, start=1):
        if attempt.claims(Fraction(target)) and len(re.findall(r"\d+", attempt.expression)) == len(nums):
            return float(number == len(attempts))
    return math.nan


def table(names: Sequence[str], samples: Sequence[Sequence[Rollout]]) -> str:
    """Solved by number count and kind, a column for each evaluation; all have the same problems."""
    kinds = [(len(sample.row["nums"]), kind_of(sample.row["nums"], sample.row["target"])) for sample in samples[0]]
    lines = [f"| numbers | kind | problems | {' | '.join(names)} |", "|" + " --- |" * (3 + len(names))]
    for numbers in (*sorted({count for count, _ in kinds}), None):
        for kind in (*KINDS, None):
            chosen = [at for at, of in enumerate(kinds) if numbers in (of[0], None) and kind in (of[1], None)]
            if chosen:
                cells = [_cell([column[at].verdict.outcome == Outcome.correct for at in chosen]) for column in samples]
                lines.append(f"| {numbers or 'all'} | {kind or 'all'} | {len(chosen)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def behaviour(names: Sequence[str], samples: Sequence[Sequence[Rollout]]) -> str:
    """Lengths and behaviours, a column for each evaluation; a mean over the responses that have the quantity."""
    measures: dict[str, Callable[[Rollout], float]] = {
        "tokens": lambda sample: sample.num_completion_tokens,
        "cut off": lambda sample: float(sample.is_truncated),
    }
    for name, measure in TASK.behaviours.items():
        measures[name] = lambda sample, measure=measure: measure(sample.prefill + sample.completion, **sample.row)  # type: ignore[misc]
    for count in sorted({len(sample.row["nums"]) for sample in samples[0]}):
        measures[f"stops at its first hit, {count} numbers"] = lambda sample, count=count: (  # type: ignore[misc]
            stops_at_first_hit(sample.completion, **sample.row) if len(sample.row["nums"]) == count else math.nan
        )
    lines = [f"| mean | {' | '.join(names)} |", "|" + " --- |" * (1 + len(names))]
    for name, measure in measures.items():
        cells = []
        for column in samples:
            values = [value for sample in column if (value := measure(sample)) == value]
            cells.append(f"{statistics.fmean(values):.3g}" if values else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(is_solved: Sequence[bool]) -> str:
    estimate = share([float(value) for value in is_solved])
    return f"{100 * estimate.value:.1f} % [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", type=Path, nargs="+", help="folders of evaluations of the same problems")
    folders = [folder.resolve() for folder in parser.parse_args().evaluations]
    names = [f"{folder.parent.parent.name} {folder.name}" for folder in folders]
    try:
        samples = [scores.read_samples(folder) for folder in folders]
    except ValueError as error:
        parser.error(str(error))
    if any([sample.row for sample in column] != [sample.row for sample in samples[0]] for column in samples):
        parser.error("the evaluations are of different problems")
    print(table(names, samples), behaviour(names, samples), sep="\n\n")


if __name__ == "__main__":
    main()
