"""Reading the files of a run folder for a report.

A file that is missing, cut off or damaged leaves a note, never an error.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyzero_trl.evaluation import scores
from tinyzero_trl.intervals import Comparison, Estimate, compare, share
from tinyzero_trl.redaction import redacted
from tinyzero_trl.rollout import Rollout
from tinyzero_trl.runs import metric_lines
from tinyzero_trl.storage import is_number, plain_record

NUM_PROBLEMS_SHOWN = 6
"""Number of problems whose responses are shown."""
NUM_STEPS_SHOWN = 4
"""Most responses shown of a problem, from different steps."""
NUM_FILES_NAMED = 3
"""Number of unreadable shards that a note names."""
MAX_STEP = 10**9
"""Largest step of a run; a larger number in a file is damage."""


@dataclass(frozen=True)
class Response:
    """One response to a problem at one step of the run."""

    step: int
    """Optimizer steps before it; 0 is the base model."""
    label: str
    """Name of the step for the reader: base, step N or trained."""
    prefill: str
    """Beginning of the response that the prompt already contains."""
    completion: str
    """Text that the model generated."""
    outcome: str
    """Outcome of the verdict."""
    num_tokens: int
    """Tokens of the completion."""
    explanation: str
    """Why it is not correct, in a few words; empty if the file does not say it."""


@dataclass
class RunFiles:
    """Everything that a report shows of a run, read from its folder."""

    folder: Path
    run: dict[str, Any] = field(default_factory=dict)
    """Content of run.yaml, without its provenance."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """The run's provenance: command, versions, hardware, data."""
    train: list[dict[str, Any]] = field(default_factory=list)
    """Lines of metrics.jsonl about training steps."""
    evals: list[dict[str, Any]] = field(default_factory=list)
    """Lines of metrics.jsonl about evaluations during training."""
    batches: list[tuple[int, Estimate]] = field(default_factory=list)
    """Step and accuracy of each training batch, the interval over its problems."""
    checks: list[tuple[int, Estimate]] = field(default_factory=list)
    """Step and accuracy of each evaluation during training, the interval over its problems."""
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Summary of each evaluation of the run, by name."""
    comparison: Comparison | None = None
    """The paired test of trained against base, if both were evaluated on the same problems."""
    problems: list[tuple[dict[str, Any], list[Response]]] = field(default_factory=list)
    """The problems to show: row and responses, oldest first."""
    missing: list[str] = field(default_factory=list)
    """One line for each part of the run that is missing or damaged."""

    @property
    def task(self) -> str:
        """Name of the run's task; empty if run.yaml does not name it."""
        name = self.run.get("task")
        return name if isinstance(name, str) else ""

    @property
    def model(self) -> str:
        """The model that the run started from: the last two parts of its path."""
        name = (self.run.get("model") or {}).get("model_name_or_path")
        return "/".join(name.split("/")[-2:]) if isinstance(name, str) else "the model"

    @property
    def base(self) -> dict[str, Any] | None:
        """Summary of the evaluation before training."""
        return self.evaluations.get("base")

    @property
    def trained(self) -> dict[str, Any] | None:
        """Summary of the evaluation after training: final, or else the last checkpoint that was evaluated."""
        numbered = [name for name in self.evaluations if name.startswith("checkpoint-")]
        last = max(numbered, key=_step_of, default=None)
        return self.evaluations.get("final") or (self.evaluations[last] if last else None)

    @property
    def num_steps(self) -> int:
        """The last step that was logged."""
        return max((int(line["step"]) for line in self.train), default=0)


def read_run(folder: Path) -> RunFiles:
    """Everything in `folder` that can be read. Raises: ValueError if there is no such folder."""
    if not folder.is_dir():
        raise ValueError(f"there is no run folder {folder}")
    files = RunFiles(folder)
    _read_record(files)
    _read_metrics(files)
    for kind, found in (("train", files.batches), ("eval", files.checks)):
        for step, table in _shards(files, kind, ("problem", "outcome")):
            rates: dict[int, list[float]] = defaultdict(list)
            for problem, outcome in zip(table["problem"], table["outcome"], strict=True):
                rates[problem].append(float(outcome == "correct"))
            found.append((step, share([sum(values) / len(values) for values in rates.values()])))
    if not files.batches:
        files.missing.append("rollouts/ has no training shard, so training accuracy has no interval.")
    samples = _read_evaluations(files)
    if files.base and files.trained:
        pair = [samples[str(summary["name"])] for summary in (files.base, files.trained)]
        if pair[0].keys() == pair[1].keys() and pair[0]:
            keys = sorted(pair[0])
            files.comparison = compare(*([_rate(side[key]) for key in keys] for side in pair))
        else:
            files.missing.append("Base and trained answered different problems, so there is no paired gain.")
    for name in ("base", "trained"):
        if getattr(files, name) is None:
            files.missing.append(f"The {name} model has no evaluation on held-out problems (tinyzero evaluate).")
    files.problems = _pick(_responses(files, samples))
    if not files.problems:
        files.missing.append("No held-out problem was answered at two times of the run.")
    return files


def metric(summary: dict[str, Any] | None, key: str) -> Estimate | None:
    """A metric of an evaluation; None if the evaluation or the metric is missing."""
    found = (summary or {}).get("metrics", {}).get(key)
    return Estimate(**found) if found else None


def _read_record(files: RunFiles) -> None:
    try:
        content = redacted(plain_record(files.folder / "run.yaml"))
    except (OSError, ValueError) as error:
        files.missing.append(f"run.yaml cannot be read, so configuration, versions and hardware are unknown: {error}.")
        return
    files.run, files.provenance = content, content.pop("provenance", None) or {}


def _read_metrics(files: RunFiles) -> None:
    path = files.folder / "metrics.jsonl"
    for line in metric_lines(path) if path.is_file() else ():
        if not 0 <= line["step"] <= MAX_STEP:
            continue
        numbers = {name: value for name, value in line.items() if is_number(value)}
        if any(name.startswith("eval_") for name in line):
            files.evals.append({name.removeprefix("eval_"): value for name, value in numbers.items()})
        elif "reward" in line or "accuracy" in line:
            files.train.append(numbers)
    if not files.train:
        files.missing.append("metrics.jsonl has no training step, so there are no curves.")


def _shards(files: RunFiles, kind: str, columns: tuple[str, ...]) -> list[tuple[int, dict[str, Any]]]:
    """Step and columns of every readable shard, in the order of steps; the others are noted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"problem": pa.int64(), "num_completion_tokens": pa.int64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in columns])
    tables: list[tuple[int, dict[str, Any]]] = []
    unread: list[str] = []
    for path in sorted((files.folder / "rollouts").glob(f"{kind}-*.parquet")):
        digits = path.stem.removeprefix(f"{kind}-").split(".")[0]
        try:
            has_all = "explanation" in pq.read_schema(path).names
            wanted = [name for name in columns if name != "explanation" or has_all]
            table = pq.read_table(path, columns=wanted)
            if len(wanted) < len(columns):  # written by an older version
                table = table.append_column("explanation", pa.array([""] * len(table), pa.string()))
            table = table.select(columns).cast(schema)
            if (
                not digits.isascii()
                or not digits.isdigit()
                or not len(table)
                or any(c.null_count for c in table.columns)
            ):
                raise ValueError
            tables.append((int(digits), table.to_pydict()))
        except (pa.ArrowException, OSError, ValueError, KeyError):
            unread.append(path.name)  # such as one cut off by a full disk
    note = f"{len(unread)} of rollouts/ cannot be read and are left out: {', '.join(unread[:NUM_FILES_NAMED])}."
    if unread and note not in files.missing:
        files.missing.append(note)
    return tables


def _read_evaluations(files: RunFiles) -> dict[str, dict[str, list[Rollout]]]:
    """Samples by evaluation and problem. Summaries are put into `files.evaluations`."""
    found: dict[str, dict[str, list[Rollout]]] = {}
    for path in sorted((files.folder / "evaluation").glob(f"*/{scores.SUMMARY}")):
        name = path.parent.name
        try:
            summary, samples = scores.read_summary(path.parent), scores.read_samples(path.parent)
        except (OSError, ValueError) as error:
            files.missing.append(f"evaluation/{name} cannot be read: {error}.")
            continue
        found[name] = defaultdict(list)
        for sample in samples:
            found[name][_key(sample.row)].append(sample)
        files.evaluations[name] = {**summary, "name": name}
    return found


def _responses(files: RunFiles, evaluated: Mapping[str, Mapping[str, list[Rollout]]]) -> dict[str, list[Response]]:
    """The first response to each problem at every step with one, oldest first, by problem."""
    found: dict[str, dict[int, Response]] = defaultdict(dict)
    columns = ("row", "prefill", "completion", "outcome", "num_completion_tokens", "explanation")
    for step, table in _shards(files, "eval", columns):
        for text, *rest in zip(*(table[name] for name in columns), strict=True):
            try:
                row = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                found[_key(row)].setdefault(step, Response(step, "base" if step == 0 else f"step {step}", *rest))
    for name, by_problem in evaluated.items():
        step = 0 if name == "base" else _step_of(name) or (files.num_steps or MAX_STEP)
        if name not in ("base", "final") and _step_of(name) == 0:
            continue
        label = {"base": "base", "final": "trained"}.get(name, f"step {step}")
        for key, samples in by_problem.items():
            first = samples[0]
            found[key][step] = Response(step, label, *(getattr(first, column) for column in columns[1:]))
    return {key: [times[step] for step in sorted(times)] for key, times in found.items()}


def _pick(responses: dict[str, list[Response]]) -> list[tuple[dict[str, Any], list[Response]]]:
    """A few problems with responses at the most steps: mostly learned ones, one that was always right, one still wrong."""
    most = max((len(times) for times in responses.values()), default=0)
    if most < 2:
        return []
    learned: list[tuple[str, list[Response]]] = []
    kept: list[tuple[str, list[Response]]] = []
    failed: list[tuple[str, list[Response]]] = []
    for key, times in sorted(responses.items()):
        if len(times) == most:
            before, after = times[0].outcome == "correct", times[-1].outcome == "correct"
            (learned if after and not before else kept if after else failed).append((key, times))
    # The longest last responses show most of what was learned, as long as they fit the page.
    learned.sort(key=lambda item: (len(item[1][-1].completion) > 900, -len(item[1][-1].completion), item[0]))
    picked = learned[: NUM_PROBLEMS_SHOWN - 2] + kept[:1] + failed[:1]
    picked += [item for item in learned + kept + failed if item not in picked][: NUM_PROBLEMS_SHOWN - len(picked)]
    last = most - 1
    columns = sorted({round(last * index / (NUM_STEPS_SHOWN - 1)) for index in range(NUM_STEPS_SHOWN)})
    return [(json.loads(key), [times[column] for column in columns]) for key, times in picked]


def _key(row: Mapping[str, Any]) -> str:
    """The row as text, the same for a rollout and an evaluation, whatever the order of its columns."""
    return json.dumps(row, sort_keys=True)


def _rate(samples: list[Rollout]) -> float:
    return math.fsum(sample.is_correct for sample in samples) / len(samples)


def _step_of(name: str) -> int:
    """The number N of `checkpoint-N`; 0 for any other name."""
    digits = name.removeprefix("checkpoint-")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 0
