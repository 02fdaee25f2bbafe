"""Rollouts made of completions: verified, scored, measured, and written row by row in parquet shards.

Axes: see tinyzero_trl.algorithms.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tinyzero_trl import storage
from tinyzero_trl.intervals import Estimate, share
from tinyzero_trl.rewards import text_of, verified
from tinyzero_trl.rollout import ROW_INDEX, Rollout
from tinyzero_trl.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generated:
    """This process's completions as the engine gave them last."""

    prompt_ids: Sequence[Sequence[int]] = ()
    completion_ids: Sequence[Sequence[int]] = ()
    completions: Sequence[Any] = ()
    """Text or chat messages."""
    seconds: float = 0.0
    """Time of generation."""


def rollouts_of(
    rows: Sequence[dict[str, Any]],
    generated: Generated,
    *,
    task: Task,
    seeds: Sequence[int] | None,
    is_truncated: Callable[[Sequence[int]], bool],
    step: int,
    generation: int,
    weights_step: int | None,
) -> list[Rollout]:
    """A rollout of each row with the task's verdict, not scored yet. seeds: of each row, None where they are not ours."""
    rollouts = []
    each_seed: Sequence[int | None] = seeds or [None] * len(rows)
    parts = (generated.prompt_ids, generated.completion_ids, generated.completions, each_seed)
    for row, prompt_ids, ids, completion, seed in zip(rows, *parts, strict=True):
        rollouts.append(
            verified(
                task,
                row,
                completion=text_of(completion) or "",
                num_completion_tokens=len(ids),
                is_truncated=is_truncated(ids),
                num_prompt_tokens=len(prompt_ids),
                step=step,
                generation=generation,
                seed=seed,
                weights_step=weights_step,
                row_index=row.get(ROW_INDEX),
            )
        )
    return rollouts


def scored(
    rollouts: Sequence[Rollout],
    rewards_BF: Sequence[Sequence[float]],
    *,
    weights: Sequence[float],
    names: Sequence[str],
    advantages: Sequence[float],
    problems: Sequence[int],
) -> list[Rollout]:
    """The rollouts with their problem, their rewards (None in the place of NaN), the weighted sum of these, and their advantage."""
    found = []
    for rollout, rewards, advantage, problem in zip(rollouts, rewards_BF, advantages, problems, strict=True):
        known = [reward * weight for reward, weight in zip(rewards, weights, strict=True) if reward == reward]
        by_name = {name: reward if reward == reward else None for name, reward in zip(names, rewards, strict=True)}
        total = sum(known) if known else None
        found.append(replace(rollout, problem=problem, rewards=by_name, reward=total, advantage=advantage))
    return found


def measured(rollouts: Sequence[Rollout], *, task: Task, seconds: float) -> dict[str, float]:
    """Metrics of a batch of rollouts: accuracy, outcomes, lengths, the task's behaviours, speed. seconds: their generation took."""
    num_by_outcome = Counter(rollout.outcome for rollout in rollouts)
    metrics = {"accuracy": sum(rollout.is_correct for rollout in rollouts) / len(rollouts)}
    metrics |= {f"outcomes/{outcome}": num_by_outcome[str(outcome)] / len(rollouts) for outcome in task.outcomes}
    for name, is_wanted in (("correct", True), ("wrong", False)):
        lengths = [rollout.num_completion_tokens for rollout in rollouts if rollout.is_correct is is_wanted]
        metrics[f"length/{name}"] = _mean(lengths)
    for name, behaviour in task.behaviours.items():
        values = [
            behaviour(rollout.response, **{column: rollout.row[column] for column in task.columns})
            for rollout in rollouts
        ]
        metrics[name] = _mean([value for value in values if not math.isnan(value)])
    num_tokens = sum(rollout.num_completion_tokens for rollout in rollouts)
    return {**metrics, "tokens_per_second": num_tokens / max(seconds, 1e-9)}


def accuracy_of(rollouts: Sequence[Rollout]) -> Estimate:
    """Share of correct responses, the mean over problems, with its 95 % interval.

    The problem is the unit of the interval, however many responses it has.
    """
    rates: dict[int, list[float]] = defaultdict(list)
    for rollout in rollouts:
        rates[rollout.problem].append(float(rollout.is_correct))
    return share([_mean(values) for values in rates.values()])


def held_out_metrics(sampled: Sequence[Rollout], greedy: Sequence[Rollout]) -> dict[str, float]:
    """Intervals of an evaluation's accuracy, sampled and, where there are such rollouts, greedy; metric_for_best_model takes any of them."""
    estimate = accuracy_of(sampled)
    metrics = {"eval_accuracy_low": estimate.low, "eval_accuracy_high": estimate.high}
    if greedy:
        estimate = accuracy_of(greedy)
        metrics |= {
            "eval_greedy_accuracy": estimate.value,
            "eval_greedy_accuracy_low": estimate.low,
            "eval_greedy_accuracy_high": estimate.high,
            "eval_greedy_length": _mean([rollout.num_completion_tokens for rollout in greedy]),
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

    def write(self, mode: str, step: int, rollouts: Sequence[Rollout]) -> None:
        """Write one shard; several of the same training step are numbered."""
        # steps_per_generation below gradient_accumulation_steps generates several times for one step.
        part = self._last[1] + 1 if mode == "train" and self._last[0] == step else 0
        if mode == "train":
            self._last = (step, part)
        target = self.folder / f"{mode}-{step:08d}{f'.{part}' if part else ''}.parquet"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with storage.replacing(target) as file:
                pq.write_table(
                    pa.Table.from_pylist([rollout.columns() for rollout in rollouts]), file, compression="zstd"
                )
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
