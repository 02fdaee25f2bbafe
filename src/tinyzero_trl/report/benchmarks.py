"""The table of benchmarks in a report: each before and after training, with the paired gain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyzero_trl.evaluation import scores, too_small
from tinyzero_trl.intervals import Comparison, Estimate
from tinyzero_trl.report.run_files import metric


@dataclass(frozen=True)
class BenchmarkRow:
    """One benchmark in the report's table."""

    name: str
    num_problems: int
    k: int
    """Samples of each problem."""
    how: str
    """Sampling, in words."""
    before: Estimate | None
    """pass@1 of the base model."""
    after: Estimate | None
    """pass@1 of the trained model."""
    others: tuple[tuple[str, Estimate | None, Estimate | None], ...]
    """pass@k and maj@k, if there are several samples of a problem: name, before, after."""
    comparison: Comparison | None
    """The paired test, if both models were evaluated on the same problems."""
    truncated: float
    """Share of truncated responses in the newer evaluation."""
    no_answer: float
    """Share of responses without an answer in the newer evaluation."""
    length: float
    """Mean tokens of a response in the newer evaluation."""
    warnings: tuple[str, ...]
    """Warnings, each a line."""


def read_benchmarks(folder: Path, *, missing: list[str]) -> list[BenchmarkRow]:
    """A row for each benchmark with an evaluation of the base model or the trained one. Files that cannot be read are noted in `missing`.

    The trained model is `final`, or else the last checkpoint that was evaluated.
    """
    names = {file.parent.parent.name for file in (folder / "evaluation").glob(f"*/*/{scores.SUMMARY}")}
    steps = [int(name.removeprefix("checkpoint-")) for name in names if name.removeprefix("checkpoint-").isdigit()]
    base, trained = "base", "final" if "final" in names or not steps else f"checkpoint-{max(steps)}"
    places: dict[str, dict[str, Path]] = {}
    for side in (base, trained):
        for file in sorted((folder / "evaluation" / side).glob(f"*/{scores.SUMMARY}")):
            places.setdefault(file.parent.name, {})[side] = file.parent
    rows = []
    for name, sides in sorted(places.items()):
        try:
            summaries = {side: scores.read_summary(path) for side, path in sides.items()}
            newest = summaries.get(trained) or summaries[base]
            comparison = None
            if len(sides) == 2:
                comparison = _compared(*(sides[side] for side in (base, trained)))
            warnings = list(scores.warnings(newest))
            if comparison and (line := too_small(comparison)):
                warnings.append(line)
            metrics = newest["metrics"]
            rows.append(
                BenchmarkRow(
                    name=name,
                    num_problems=int(newest["num_problems"]),
                    k=int(newest["k"]),
                    how=_how(newest),
                    before=metric(summaries.get(base), "pass@1"),
                    after=metric(summaries.get(trained), "pass@1"),
                    others=tuple(
                        (name, metric(summaries.get(base), name), metric(summaries.get(trained), name))
                        for name in (f"pass@{newest['k']}", f"maj@{newest['k']}")
                        if newest["k"] > 1
                    ),
                    comparison=comparison,
                    truncated=metrics["outcome/truncated"]["value"],
                    no_answer=metrics["outcome/no_answer"]["value"],
                    length=metrics["length/mean"]["value"],
                    warnings=tuple(warnings),
                )
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            missing.append(f"The evaluation on {name} cannot be read: {error}")
    return rows


def _compared(base: Path, trained: Path) -> Comparison | None:
    samples = [scores.read_samples(base), scores.read_samples(trained)]
    try:
        return scores.compare(*samples)
    except ValueError:  # different problems: --n or the file changed between the two
        return None


def _how(summary: dict[str, Any]) -> str:
    if summary["temperature"] == 0:
        return f"greedy, up to {summary['max_new_tokens']:,} tokens"
    return f"temperature {summary['temperature']:g}, top-p {summary.get('top_p', 1):g}, up to {summary['max_new_tokens']:,} tokens"
