"""Grading a finished evaluation again, by a grader that shares no code with ours: how often the two disagree, and on which samples."""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from tinyzero_trl import intervals, storage
from tinyzero_trl.evaluation import scores, second_graders
from tinyzero_trl.intervals import Estimate
from tinyzero_trl.rewards import KILL_SECONDS, discard
from tinyzero_trl.rollout import Rollout
from tinyzero_trl.tasks import TASKS

MANY = 0.02
"""Share of disagreements above which a person should read the list before quoting a metric."""
MAX_WORKERS = 16
"""Most worker processes, on a machine with as many cores."""
CPU_SECONDS = 10.0
"""Processor time for one sample: more than our verifier has, because math-verify reads the whole response."""
WALL_SECONDS = 60.0
"""Time for one sample on the clock."""
MEMORY_GIB = 4.0
"""Memory of a worker process."""
SHOWN = 10
"""Number of disagreements printed; the file has all of them."""
TAIL = 300
"""Characters from the end of a response that the file has."""


def audit(folder: Path, console: Console | None = None) -> dict[str, Any]:
    """Write the evaluation's audit.json, and return it: the share of samples the second grader judges otherwise, and each of them.

    A sample that exceeds the grader's time or memory is `undecided`, and counts as no disagreement. console: shows progress.
    Raises: ValueError if `folder` is no evaluation, or if its task has no second grader.
    """
    summary, samples = scores.read_summary(folder), scores.read_samples(folder)
    folder = folder if folder.is_dir() else folder.parent
    # Only shipped tasks, by name: a folder from somebody else must not import that person's code.
    task = TASKS.get(str(summary.get("task")))
    if task is None or task.name not in second_graders.GRADERS:
        raise ValueError(
            f"{folder}: there is no second grader of {summary.get('task', 'no task at all')}; there is {', '.join(second_graders.GRADERS)}"
        )
    verdicts = list(
        track(
            _graded(task.name, samples, task.columns),
            f"Grading {folder.name} again",
            total=len(samples),
            console=console,
            transient=True,
            disable=console is None or not console.is_terminal,
        )
    )
    found = [
        {
            "problem": sample.problem,
            "sample": sample.sample,
            **{name: sample.row[name] for name in task.columns},
            "outcome": sample.outcome,
            "found": sample.answer,
            "second": "correct" if verdict else "wrong",
            "response_end": (sample.prefill + sample.completion)[-TAIL:],
        }
        for sample, verdict in zip(samples, verdicts, strict=True)
        if verdict is not None and verdict != sample.is_correct
    ]
    by_problem: dict[int, list[float]] = {}
    for sample, verdict in zip(samples, verdicts, strict=True):
        if verdict is not None:
            by_problem.setdefault(sample.problem, []).append(float(verdict != sample.is_correct))
    content = {
        "schema": 1,
        "grader": f"{task.name}: {second_graders.__name__}, math-verify {importlib.metadata.version('math-verify')}",
        "num_samples": len(samples),
        "num_undecided": verdicts.count(None),
        "num_disagreements": len(found),
        "disagreement": intervals.share([sum(each) / len(each) for each in by_problem.values()]).as_dict()
        if by_problem
        else None,
        "disagreements": found,
    }
    storage.write_text(folder / scores.AUDIT, json.dumps(content, indent=1) + "\n")
    return content


def show(paths: Sequence[Path]) -> None:
    """Audit each evaluation, or each benchmark in a folder, and print the share and the first disagreements.

    Raises: ValueError.
    """
    console = Console(highlight=False, soft_wrap=True, markup=False)
    folders = [folder for path in paths for folder in _evaluations_in(path)]
    for folder in folders:
        content = audit(folder, console)
        console.print(f"{folder}: {_said(content)}")
        for one in content["disagreements"][:SHOWN]:
            expected = ", ".join(str(one[name]) for name in one if name not in _OWN)
            console.print(
                f"  problem {one['problem']}, sample {one['sample']}: {one['outcome']} here, {one['second']} there; "
                f"expected {_short(expected)}, found {_short(one['found'])}"
            )
        if (rest := content["num_disagreements"] - SHOWN) > 0:
            console.print(f"  and {rest} more in {folder / scores.AUDIT}")
        if content["disagreement"] and content["disagreement"]["value"] > MANY:
            console.print(f"note: that is more than {MANY:.0%}; read the list before you quote a figure")


def _evaluations_in(path: Path) -> list[Path]:
    if path.is_file() or (path / scores.SUMMARY).is_file():
        return [path]
    if not (found := sorted(file.parent for file in path.glob(f"*/{scores.SUMMARY}"))):
        raise scores.not_an_evaluation(path)
    return found


_OWN = ("problem", "sample", "outcome", "found", "second", "response_end")


def _said(content: dict[str, Any]) -> str:
    if content["disagreement"] is None:
        return f"the second grader decided none of {content['num_samples']} samples"
    e = Estimate(**content["disagreement"])
    kinds = Counter(f"{one['outcome']} here and {one['second']} there" for one in content["disagreements"])
    line = (
        f"the second grader disagrees on {content['num_disagreements']} of {content['num_samples']} samples, "
        f"{e.value:.2%} [{e.low:.2%}, {e.high:.2%}]"
    )
    if kinds:
        line += ": " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    if content["num_undecided"]:
        line += f"; it could not decide {content['num_undecided']}"
    return line


def _short(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 40 else f"{line[:37]}..."


def _graded(task: str, samples: Sequence[Rollout], columns: Sequence[str]) -> Iterator[bool | None]:
    """True or False for each sample in order, as the second grader judges; None if it ran out of time or memory."""
    from pebble import ProcessPool

    pool = ProcessPool(
        max_workers=min(os.cpu_count() or 2, MAX_WORKERS),
        initializer=second_graders.prepare_worker,
        initargs=(os.getpid(), MEMORY_GIB),
        context=multiprocessing.get_context("spawn"),
    )
    try:
        futures = [
            pool.schedule(
                second_graders.grade,
                args=(task, s.prefill + s.completion, {name: s.row[name] for name in columns}, CPU_SECONDS),
                timeout=WALL_SECONDS,
            )
            for s in samples
        ]
        for future in futures:
            try:
                yield future.result()
            except Exception:  # a time limit, a worker that died, or what sympy raises of a model's text
                yield None
    finally:
        discard(pool).join(KILL_SECONDS)
