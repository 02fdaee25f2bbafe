"""Printing an evaluation as a table, and the paired gain of one evaluation over another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyzero_trl.evaluation import scores
from tinyzero_trl.intervals import Comparison, Estimate
from tinyzero_trl.rollout import Rollout
from tinyzero_trl.task import shortened

if TYPE_CHECKING:
    from rich.table import Table


def show(folders: Sequence[Path]) -> None:
    """Print the table and the folder of an evaluation; several benchmarks share one table, with a row each."""
    from rich.console import Console

    console = Console()
    summaries = [scores.read_summary(folder) for folder in folders]
    console.print(_together(summaries) if len(folders) > 1 else _alone(summaries[0]))
    if len(folders) == 1 and (examples := _examples(scores.read_samples(folders[0]))):
        console.print(examples)
    for summary in summaries:
        of = f" ({summary['benchmark']})" if len(folders) > 1 else ""
        for line in scores.warnings(summary):
            console.print(f"note: {line}{of}", soft_wrap=True, highlight=False, markup=False)
    for folder in folders:
        console.print(f"Written to {folder}", soft_wrap=True, highlight=False, markup=False)


def _alone(summary: dict[str, Any]) -> Table:
    """Table with a row for each metric of one evaluation."""
    from rich.table import Table

    table = Table(
        title=f"{_title(summary)}: {summary['num_problems']} problems, temperature {summary['temperature']:g}"
    )
    for column in ("metric", "value", "95 % interval", "n"):
        table.add_column(column, justify="left" if column == "metric" else "right", no_wrap=True)
    for name, values in summary["metrics"].items():
        e = Estimate(**values)
        if is_share(name):
            cells = (f"{e.value:.1%}", f"{e.low:.1%} to {e.high:.1%}")
        else:
            cells = (f"{e.value:.1f}", f"{e.low:.1f} to {e.high:.1f}")
        table.add_row(name, *cells, str(e.n))
    return table


def _examples(samples: Sequence[Rollout]) -> Table | None:
    """Table with one response of each outcome that is not correct, and why it is not; None if verdicts explain nothing."""
    from rich.markup import escape
    from rich.table import Table

    first_by_outcome: dict[str, Rollout] = {}
    for sample in samples:
        if not sample.is_correct and sample.explanation:
            first_by_outcome.setdefault(sample.outcome, sample)
    if not first_by_outcome:
        return None
    table = Table(title="One of each that is not correct")
    for column in ("outcome", "problem", "answer", "why"):
        table.add_column(column, overflow="fold")
    for outcome, sample in first_by_outcome.items():
        problem = shortened(" ".join(map(str, sample.row.values())))
        table.add_row(outcome, *map(escape, (problem, shortened(sample.answer or ""), sample.explanation)))
    return table


def _together(summaries: Sequence[dict[str, Any]]) -> Table:
    """Table with a row for each benchmark: the figures that papers print, with intervals."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    # Without borders and with two lines a row, the table fits 80 columns and breaks no interval.
    title = f"{summaries[0]['name']}: {summaries[0]['model']}"
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0, leading=1)
    for column in ("benchmark", "problems\nx k", "pass@1", "pass@k", "maj@k", "truncated\nno answer", "tokens"):
        is_text = column == "benchmark"
        table.add_column(column, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for summary in summaries:
        k, metrics = summary["k"], {name: Estimate(**values) for name, values in summary["metrics"].items()}
        shares = [
            _percent(metrics[name]).replace(" [", "\n[") if name in metrics else "-"
            for name in ("pass@1", f"pass@{k}", f"maj@{k}")
        ]
        table.add_row(
            summary["benchmark"],
            f"{summary['num_problems']}\nx {k}",
            *(shares if k > 1 else (shares[0], "-", "-")),
            "\n".join(f"{metrics[name].value:.1%}" for name in ("outcome/truncated", "outcome/no_answer")),
            f"{metrics['length/mean'].value:.0f}",
        )
    return table


def _title(summary: dict[str, Any]) -> str:
    return " / ".join(filter(None, (summary["name"], summary.get("benchmark"))))


def is_share(metric: str) -> bool:
    """True if the metric's name says that it lies between 0 and 1."""
    return metric.startswith(("pass@", "maj@", "outcome/")) or metric.endswith("/share")


def _percent(e: Estimate, *, signed: bool = False) -> str:
    value = f"{100 * e.value:+.1f}" if signed else f"{100 * e.value:.1f} %"
    return f"{value} [{100 * e.low:.1f}, {100 * e.high:.1f}]"


def show_comparison(base: Path, trained: Path) -> list[Comparison]:
    """Print the paired gain of the second evaluation over the first; of two folders of benchmarks, for each one that both have."""
    from rich.console import Console

    console = Console()
    comparisons = []
    for one, other in _pairs(base, trained):
        summaries = [scores.read_summary(one), scores.read_summary(other)]
        samples = [scores.read_samples(one), scores.read_samples(other)]
        try:
            comparison = scores.compare(*samples)
        except ValueError as error:
            raise ValueError(f"{one} and {other} are not of the same problems: {error}") from None
        titles = [_title(summary) for summary in summaries]
        if titles[0] == titles[1]:  # both are `final`, of two runs
            titles = [str(one), str(other)]
        width = max(16, *map(len, titles))
        for title, summary in zip(titles, summaries, strict=True):
            estimate = Estimate(**summary["metrics"]["pass@1"])
            console.print(
                f"{title:>{width}}  pass@1 {_percent(estimate)}  temperature {summary['temperature']:g}"
                f"{', k ' + str(summary['k']) if summary.get('k', 1) > 1 else ''}",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )
        console.print(
            f"[bold]{'gain':>{width}}  {_percent(comparison.gain, signed=True)}[/] points on {comparison.gain.n} problems: "
            f"{comparison.num_better} better, {comparison.num_worse} worse, {comparison.test} p = {shown_p(comparison.p)}",
            highlight=False,
            soft_wrap=True,
        )
        if line := too_small(comparison):
            console.print(f"[yellow]warning:[/] {line}", highlight=False, soft_wrap=True)
        comparisons.append(comparison)
    return comparisons


def too_small(comparison: Comparison) -> str | None:
    """A warning that the benchmark has too few problems to resolve the difference; None if it has enough."""
    if not comparison.is_too_small:
        return None
    line = (
        f"{comparison.gain.n} problems are too few for this difference: they show one of {100 * comparison.resolvable:.1f} "
        "points or more (80 % power)"
    )
    if needed := comparison.num_problems_needed:
        line += f"; {100 * abs(comparison.gain.value):.1f} points need about {needed:,} problems"
    return line


def _pairs(base: Path, trained: Path) -> list[tuple[Path, Path]]:
    """The two evaluations, or a pair for each benchmark that two folders share.

    Raises: ValueError if they share none.
    """
    places = [(path / scores.SUMMARY).is_file() or path.is_file() for path in (base, trained)]
    if any(places):
        return [(base, trained)]
    found = [{file.parent.name for file in path.glob(f"*/{scores.SUMMARY}")} for path in (base, trained)]
    if not (shared := sorted(found[0] & found[1])):
        empty = base if not found[0] else trained if not found[1] else None
        if empty:
            raise scores.not_an_evaluation(empty)
        raise ValueError(f"{base} and {trained} share no benchmark")
    return [(base / name, trained / name) for name in shared]


def shown_p(p: float) -> str:
    """The p-value in three digits, or `< 1e-12`, below which its size means nothing."""
    return "< 1e-12" if p < 1e-12 else f"{p:.3g}"
