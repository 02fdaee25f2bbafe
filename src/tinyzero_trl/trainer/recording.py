"""Rollouts as records: verified, measured, and written row by row in parquet shards.

Axes: see tinyzero_trl.algorithms.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tinyzero_trl import storage
from tinyzero_trl.intervals import Estimate, share
from tinyzero_trl.rewards import text_of, verdict_of
from tinyzero_trl.task import Outcome, Task, Verdict
from tinyzero_trl.trainer.problems import ROW_INDEX

logger = logging.getLogger(__name__)
NOT_RAW = ("prompt", "prefill", ROW_INDEX)
"""Columns of a row that are not the task's own."""

Record = dict[str, Any]
"""One rollout: the columns of rollouts/*.parquet by name."""


@dataclass(frozen=True)
class Generated:
    """This process's completions of the batch under way, as the engine gave them."""

    prompt_ids: Sequence[Sequence[int]] = ()
    completion_ids: Sequence[Sequence[int]] = ()
    completions: Sequence[Any] = ()
    """Text or chat messages."""
    seconds: float = 0.0
    """Time of generation."""


def verdict_on(task: Task, completion: Any, *, row: dict[str, Any], is_truncated: bool) -> Verdict:
    """The task's verdict on a completion to a row, text or chat messages, with the row's prefill before it."""
    response = (row.get("prefill") or "") + (text_of(completion) or "")
    return verdict_of(task, response, row=row, is_truncated=is_truncated)


def records_of(
    rows: Sequence[dict[str, Any]],
    generated: Generated,
    *,
    task: Task,
    advantages: Sequence[float],
    seeds: Sequence[int] | None,
    is_truncated: Callable[[Sequence[int]], bool],
    **origin: int | None,
) -> list[Record]:
    """This process's rollouts, verified. seeds: of each row, None where they are not ours. origin: columns that all of them share."""
    records = []
    for row, prompt_ids, ids, completion, advantage, seed in zip(
        rows,
        generated.prompt_ids,
        generated.completion_ids,
        generated.completions,
        advantages,
        seeds or [None] * len(rows),
        strict=True,
    ):
        was_cut = is_truncated(ids)
        raw = {key: value for key, value in row.items() if key not in NOT_RAW}
        prompt = row["prompt"]
        records.append(
            {
                **origin,
                "seed": seed,
                "prompt": prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False),
                "prefill": row.get("prefill") or "",
                "completion": text_of(completion) or "",
                "num_prompt_tokens": len(prompt_ids),
                "num_completion_tokens": len(ids),
                "is_truncated": was_cut,
                "outcome": str(verdict_on(task, completion, row=row, is_truncated=was_cut).outcome),
                "advantage": advantage,
                "row": json.dumps(raw, ensure_ascii=False, default=str),
                **({ROW_INDEX: row[ROW_INDEX]} if ROW_INDEX in row else {}),
            }
        )
    return records


def add_rewards(
    records: Sequence[Record],
    rewards_NF: Sequence[Sequence[float]],
    *,
    weights: Sequence[float],
    names: Sequence[str],
    num_generations: int,
    first_problem: int,
) -> None:
    """Add to the records of all processes their problem, each reward, and their weighted sum; None where there is none (NaN)."""
    for index, (record, rewards) in enumerate(zip(records, rewards_NF, strict=True)):
        record["problem"] = first_problem + index // num_generations
        known = [(reward, weight) for reward, weight in zip(rewards, weights, strict=True) if reward == reward]
        record["reward"] = sum(reward * weight for reward, weight in known) if known else None
        for name, reward in zip(names, rewards, strict=True):
            record[f"reward/{name}"] = reward if reward == reward else None


def measured(records: Sequence[Record], *, task: Task, seconds: float) -> dict[str, float]:
    """What the rollouts of a batch say about learning, as metrics. seconds: their generation took."""
    num_by_outcome = Counter(record["outcome"] for record in records)
    metrics = {"accuracy": num_by_outcome[Outcome.correct] / len(records)}
    metrics |= {f"outcomes/{outcome}": num_by_outcome[outcome] / len(records) for outcome in task.outcomes}
    for name, is_wanted in (("correct", True), ("wrong", False)):
        lengths = [r["num_completion_tokens"] for r in records if is_solved(r) is is_wanted]
        metrics[f"length/{name}"] = _mean(lengths)
    rows = [json.loads(record["row"]) for record in records]
    for name, behaviour in task.behaviours.items():
        values = [
            behaviour(record["prefill"] + record["completion"], **{column: row[column] for column in task.columns})
            for record, row in zip(records, rows, strict=True)
        ]
        metrics[name] = _mean([value for value in values if not math.isnan(value)])
    num_tokens = sum(record["num_completion_tokens"] for record in records)
    return {**metrics, "tokens_per_second": num_tokens / max(seconds, 1e-9)}


def is_solved(record: Record) -> bool:
    """True for a correct response."""
    return bool(record["outcome"] == Outcome.correct)


def accuracy_of(records: Sequence[Record]) -> Estimate:
    """Share of correct responses, the mean over problems, with its 95 % interval.

    The problem is the unit of the interval, however many responses it has.
    """
    rates: dict[int, list[float]] = defaultdict(list)
    for record in records:
        rates[record["problem"]].append(float(is_solved(record)))
    return share([_mean(values) for values in rates.values()])


def held_out_metrics(sampled: Sequence[Record], greedy: Sequence[Record]) -> dict[str, float]:
    """Intervals of an evaluation's accuracy, sampled and, where there are such records, greedy; metric_for_best_model takes any of them."""
    estimate = accuracy_of(sampled)
    metrics = {"eval_accuracy_low": estimate.low, "eval_accuracy_high": estimate.high}
    if greedy:
        estimate = accuracy_of(greedy)
        metrics |= {
            "eval_greedy_accuracy": estimate.value,
            "eval_greedy_accuracy_low": estimate.low,
            "eval_greedy_accuracy_high": estimate.high,
            "eval_greedy_length": _mean([record["num_completion_tokens"] for record in greedy]),
        }
    return metrics


@contextmanager
def left_out(metrics: dict[str, list[float]]) -> Iterator[None]:
    """Take out again what is added to the metrics in the block."""
    num_entries = {name: len(values) for name, values in metrics.items()}
    yield
    for name in list(metrics):
        metrics[name] = metrics[name][: num_entries.get(name, 0)]
        if not metrics[name]:  # TRL would log it as empty
            del metrics[name]


class Shards:
    """The files rollouts/{train,eval}-<step>.parquet of a run folder. A disk that is full does not end training."""

    def __init__(self, run: Path):
        self.folder = run / "rollouts"
        self._last = (-1, 0)

    def write(self, mode: str, step: int, records: list[Record]) -> None:
        """Write one shard; several of the same training step are numbered."""
        # steps_per_generation below gradient_accumulation_steps generates several times for one step.
        part = self._last[1] + 1 if mode == "train" and self._last[0] == step else 0
        if mode == "train":
            self._last = (step, part)
        target = self.folder / f"{mode}-{step:08d}{f'.{part}' if part else ''}.parquet"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with storage.replacing(target) as file:
                pq.write_table(pa.Table.from_pylist(records), file, compression="zstd")
        except OSError as error:  # saving a checkpoint says so with its own exit code
            logger.warning("%s: %s", target.name, error)


def append_metrics(run: Path, entry: dict[str, Any]) -> None:
    """Add a line to metrics.jsonl: numbers, null for those that are not finite. A disk that is full does not end training."""
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in entry.items()}
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in plain.items()
    }
    try:
        storage.append_text(run / "metrics.jsonl", json.dumps(finite, default=float) + "\n")
    except OSError as error:  # as in `Shards.write`
        logger.warning("metrics.jsonl: %s", error)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
