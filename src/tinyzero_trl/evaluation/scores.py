"""Verified samples -> metrics with intervals; and writing and reading the evaluation folder that holds both."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tinyzero_trl import intervals, storage
from tinyzero_trl.evaluation import benchmarks
from tinyzero_trl.failures import kind_of
from tinyzero_trl.intervals import Comparison, Estimate
from tinyzero_trl.rollout import Rollout
from tinyzero_trl.task import Task, Verdict

SUMMARY, SAMPLES = "summary.json", "samples.parquet"
"""Names of the files in an evaluation folder: settings and metrics; samples with their verdicts."""
AUDIT = "audit.json"
"""Name of the file with a second grader's verdicts, written by `audit`."""
MANY_TRUNCATED = 0.05
"""Share of truncated responses above which the reader is warned."""
MAX_UNDECIDED = 0.005
"""Share of samples without a verdict above which the metrics tell more about the verifier than about the model."""


def metrics(samples: Sequence[Rollout], *, task: Task) -> dict[str, Estimate]:
    """Every metric of an evaluation by name. Means and intervals are over problems, whatever the number of samples of each.

    maj@k votes by the task's normal form of the answer (`Task.canonical`), which knows nothing of the right answer.
    """
    groups: dict[int, list[Rollout]] = defaultdict(list)
    for sample in samples:
        groups[sample.problem].append(sample)
    problems = [groups[index] for index in sorted(groups)]
    k = min(len(group) for group in problems)
    values = {"pass@1": intervals.share(_per_problem(problems, lambda sample: sample.is_correct))}
    if k > 1:
        # With 16 samples also pass@2, @4 and @8, whose unbiased estimator uses all samples.
        for size in [*(2**power for power in range(1, k.bit_length()) if 2**power < k), k]:
            values[f"pass@{size}"] = intervals.share(
                [
                    intervals.pass_at_k(len(group), sum(sample.is_correct for sample in group), size)
                    for group in problems
                ]
            )
        values[f"maj@{k}"] = intervals.share([_majority(group, task.canonical) for group in problems])
    for outcome in task.outcomes:
        is_it = _per_problem(problems, lambda sample, outcome=outcome: sample.outcome == outcome)  # type: ignore[misc]
        values[f"outcome/{outcome}"] = intervals.share(is_it)
    # A truncated response is wrong in pass@1; this metric leaves it out instead.
    ended = _per_problem(problems, lambda sample: math.nan if sample.is_truncated else float(sample.is_correct))
    if ended:
        values["correct_of_ended/share"] = intervals.share(ended)
    lengths: dict[str, Callable[[Rollout], float]] = {
        "length/mean": lambda sample: sample.num_completion_tokens,
        "length/correct": lambda sample: sample.num_completion_tokens if sample.is_correct else math.nan,
        "length/wrong": lambda sample: math.nan if sample.is_correct else sample.num_completion_tokens,
    }
    for name, length in lengths.items():
        if counted := _per_problem(problems, length):
            e = intervals.mean(counted)
            values[name] = replace(e, low=max(e.low, 0.0))  # with two problems, Student's t interval reaches below zero
    for name, behaviour in task.behaviours.items():

        def measured(sample: Rollout, behaviour: Callable[..., float] = behaviour) -> float:
            return behaviour(sample.prefill + sample.completion, **{name: sample.row[name] for name in task.columns})

        if counted := _per_problem(problems, measured):
            values[name] = (intervals.share if name.endswith("/share") else intervals.mean)(counted)
    by_difficulty: dict[str, list[list[Rollout]]] = defaultdict(list)
    for group in problems:
        by_difficulty[task.difficulty(group[0].row)].append(group)
    if by_difficulty.keys() != {""}:
        for label in sorted(by_difficulty):
            is_correct = _per_problem(by_difficulty[label], lambda sample: sample.is_correct)
            values[f"pass@1/{label or 'no level'}"] = intervals.share(is_correct)
    return values


def warnings(summary: Mapping[str, Any]) -> list[str]:
    """Warnings for a reader of these metrics: too few samples, many truncated responses, responses without a verdict."""
    lines = []
    if summary.get("benchmark") and (line := benchmarks.warning(summary["num_problems"], summary["k"])):
        lines.append(line)
    truncated = summary["metrics"].get("outcome/truncated", {}).get("value", 0.0)
    if truncated > MANY_TRUNCATED:
        lines.append(
            f"{truncated:.0%} of the responses had no answer before {summary.get('max_new_tokens')} tokens, and count as wrong"
        )
    if num_undecided := undecided(summary):
        lines.append(
            f"{num_undecided:.2%} of the responses got no verdict, and count as wrong: the verifier gave up (docs/math-verifier.md)"
        )
    return lines


def undecided(summary: Mapping[str, Any]) -> float:
    """Share of samples that the verifier gave up on; 0 for a task whose verifier always decides."""
    return float(summary["metrics"].get("outcome/undecided", {}).get("value", 0.0))


def write(folder: Path, *, summary: dict[str, Any], samples: Sequence[Rollout]) -> None:
    """Write an evaluation folder. summary.json comes last and whole, so a folder that has it is complete."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for name in (SUMMARY, AUDIT):  # they belong to other samples
        (folder / name).unlink(missing_ok=True)
    columns = {name: [getattr(sample, name) for sample in samples] for name in _columns_of_file()}
    columns["row"] = [json.dumps(row) for row in columns["row"]]
    with storage.replacing(folder / SAMPLES) as file:
        pq.write_table(pa.table(columns, schema=pa.schema(list(_columns_of_file().items()))), file)
    storage.write_text(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")


def read_summary(path: Path) -> dict[str, Any]:
    """Content of the summary.json at `path`, an evaluation folder or that file itself.

    Raises: ValueError that names the file, if it is missing or no summary.
    """
    file = path if path.name == SUMMARY else path / SUMMARY
    if not file.is_file():
        raise not_an_evaluation(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}; {_AGAIN}") from error
    if reason := _why_not_a_summary(content):
        raise ValueError(f"{file} is not the summary of an evaluation: {reason}; {_AGAIN}")
    return {"name": file.parent.name, "num_problems": content["metrics"]["pass@1"]["n"], "k": 1, **content}


_AGAIN = "make it again with tinyzero evaluate --overwrite"


def _why_not_a_summary(content: Any) -> str | None:
    """The first way in which a summary differs from what its readers expect, or None."""
    if not isinstance(content, dict):
        return f"it holds {kind_of(content)}"
    if not isinstance(content.get("metrics"), dict):
        return "it has no metrics"
    for name, kinds, is_optional in KEYS:
        value: Any = content.get(name)
        if name not in content and is_optional:
            continue
        if type(value) not in kinds or (type(value) in (int, float) and not 0 <= value < LARGE):
            return f"{name} is {value!r:.80}"
    for name, values in content["metrics"].items():
        is_estimate = isinstance(values, dict) and values.keys() == Estimate.__dataclass_fields__.keys()
        if not is_estimate or not all(type(v) in (int, float) and -LARGE < v < LARGE for v in values.values()):
            return f"metrics has no value, low, high and n of {name}"
    return None if "pass@1" in content["metrics"] else "metrics has no pass@1"


KEYS: tuple[tuple[str, tuple[type, ...], bool], ...] = (
    ("temperature", (int, float), False),
    ("num_problems", (int,), True),
    ("k", (int,), True),
    ("max_new_tokens", (int,), True),
    ("top_p", (int, float), True),
    ("name", (str,), True),
    ("task", (str,), True),
    ("model", (str,), True),
    ("benchmark", (str, type(None)), True),
)
"""Keys of a summary that its readers use: name, types, and True if the key may be missing."""
LARGE = 1e12
"""Bound that no number of an evaluation reaches; neither infinity nor NaN is below it."""


def not_an_evaluation(path: Path) -> ValueError:
    """The error for a path without a summary; for a run folder it names the evaluations in it."""
    found = sorted(str(place) for place in path.glob("evaluation/*") if place.is_dir())
    hint = f"; there is {', '.join(found)}" if found else ""
    return ValueError(f"{path} is not an evaluation: it has no {SUMMARY}{hint}")


def read_samples(path: Path) -> list[Rollout]:
    """Every sample of the evaluation at `path`, a folder or its summary.json, in the order they were written.

    Raises: ValueError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = (path.parent if path.name == SUMMARY else path) / SAMPLES
    if not file.is_file():
        raise ValueError(f"{path} is not an evaluation: it has no {SAMPLES}")
    try:
        names = pq.read_schema(file).names
        columns = {name: kind for name, kind in _columns_of_file().items() if name != "explanation" or name in names}
        if missing := [name for name in columns if name not in names]:
            raise ValueError(f"it has no column {', '.join(missing)}")
        table = pq.read_table(file, columns=list(columns)).cast(pa.schema(list(columns.items())))
        if empty := [name for name in columns if name != "answer" and table[name].null_count]:
            raise ValueError(f"column {', '.join(empty)} has empty cells")
        rows = table.to_pylist()
        samples = [_rollout(row) for row in rows]
        if any(not isinstance(sample.row, dict) for sample in samples):
            raise ValueError("column row must hold objects")
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {' '.join(str(error).split())[:200]}; {_AGAIN}") from error
    if not samples:
        raise ValueError(f"{file} has no samples; {_AGAIN}")
    return samples


def compare(base: Sequence[Rollout], trained: Sequence[Rollout]) -> Comparison:
    """The paired test of two evaluations. Raises: ValueError if they have different problems."""
    rates = [_rates(base), _rates(trained)]
    if len(rates[0]) != len(rates[1]):
        raise ValueError(f"they hold {len(rates[0])} and {len(rates[1])} problems")
    if num_other := len(rates[0].keys() - rates[1].keys()):
        raise ValueError(f"{num_other} of {len(rates[0])} problems of the first are not in the second")
    order = sorted(rates[0])
    return intervals.compare([rates[0][key] for key in order], [rates[1][key] for key in order])


def _columns_of_file() -> dict[str, Any]:
    """Columns of samples.parquet: what an evaluation knows of a Rollout; `row` is JSON."""
    import pyarrow as pa

    texts = dict.fromkeys(("row", "prompt", "prefill", "completion", "outcome", "answer", "explanation"), pa.string())
    numbers = dict.fromkeys(("problem", "sample", "num_completion_tokens"), pa.int64())
    return {**numbers, **texts, **dict.fromkeys(("is_truncated", "is_correct"), pa.bool_())}


def _rollout(cells: dict[str, Any]) -> Rollout:
    """The record of a line of samples.parquet."""
    del cells["is_correct"]  # the outcome says it
    # An outcome may be one of a person's own task.
    outcome, answer, explanation = cells.pop("outcome"), cells.pop("answer"), cells.pop("explanation", "")
    return Rollout(
        **{**cells, "row": json.loads(cells["row"])}, verdict=Verdict(outcome, answer=answer, explanation=explanation)
    )


def _per_problem(problems: Sequence[Sequence[Rollout]], figure: Callable[[Rollout], float]) -> list[float]:
    """The mean of `figure` over the samples of each problem, without samples of NaN; a problem with no other sample is left out."""
    means = []
    for group in problems:
        counted = [value for value in map(figure, group) if not math.isnan(value)]
        if counted:
            means.append(float(np.mean(counted)))
    return means


def _majority(group: Sequence[Rollout], canonical: Callable[[str], str]) -> float:
    answers = [None if sample.answer is None else canonical(sample.answer) for sample in group]
    return intervals.majority(answers, [sample.is_correct for sample in group])


def _rates(samples: Sequence[Rollout]) -> dict[str, float]:
    """Pass rate by problem; a problem that appears twice in an evaluation counts as two."""
    is_correct: dict[str, dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        is_correct[json.dumps(sample.row, sort_keys=True)][sample.problem].append(sample.is_correct)
    return {
        f"{row} #{count}": float(np.mean(group))
        for row, by_problem in is_correct.items()
        for count, (_, group) in enumerate(sorted(by_problem.items()))
    }
