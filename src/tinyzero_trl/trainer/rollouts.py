"""Every rollout of a run, row by row, in parquet shards; and what the rows say about learning, as metrics.

Axes: N = completions of a generation batch over all processes, F = reward functions.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.utils import gather_object

from tinyzero_trl import storage
from tinyzero_trl.rewards import text_of, verdict_of
from tinyzero_trl.task import Outcome, Task
from tinyzero_trl.trainer.problems import ROW_INDEX, Problems
from tinyzero_trl.trainer.stopping import Stopping

logger = logging.getLogger(__name__)
NOT_RAW = ("prompt", "prefill", ROW_INDEX)


class Rollouts(Problems, Stopping):
    """Writes `rollouts/{train,eval}-<step>.parquet` and `metrics.jsonl`; adds accuracy, outcomes, lengths and seconds."""

    rewards_NF: torch.Tensor
    """Of the batch that was just scored (Estimators)."""
    weights_step: int | None
    """Of the weights that made the batch (Generating, or the rollout function)."""

    def __init__(self, *args: Any, task: Task | None = None, seconds_before: float = 0.0, **kwargs: Any):
        """task: verifies every response; None writes and adds nothing. seconds_before: what earlier attempts took."""
        self.task = task
        self._started = time.monotonic() - seconds_before
        self._generated: tuple[list[Any], ...] = ()
        self._seconds: dict[str, float] = defaultdict(float)
        self._generation_seconds = 0.0
        """Of the batch that was just generated."""
        self._eval_records: list[dict[str, Any]] = []
        self._last_shard = (-1, 0)
        super().__init__(*args, **kwargs)

    def _generate(self, prompts: list[Any]) -> Any:
        start = time.perf_counter()
        generated = super()._generate(prompts)
        seconds = time.perf_counter() - start
        self._seconds["generation"] += seconds
        if self.rollout_temperature is not None:
            return generated
        prompt_ids, completion_ids, _, completions = generated[:4]
        self._generated = (prompt_ids, completion_ids, completions)
        self._generation_seconds = seconds
        return generated

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        start = time.perf_counter()
        # The verdict on a response that ran into the token limit is another; rewards have to know what `_keep` knows.
        inputs = [
            {**row, "is_truncated": self.is_truncated(ids)}
            for row, ids in zip(inputs, completion_ids_list, strict=True)
        ]
        rewards_NF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._seconds["scoring"] += time.perf_counter() - start
        return rewards_NF

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        scored = super()._generate_and_score_completions(inputs)
        if self.task is not None:
            start = time.perf_counter()
            is_solved = self._keep(inputs, _mean_advantages(scored))
            scored["is_solved"] = torch.tensor(is_solved, device=self.accelerator.device)
            self._seconds["scoring"] += time.perf_counter() - start
        return scored

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        # The last micro-step of an optimizer step; the last step of an epoch may have fewer of them than the others.
        is_last = self.accelerator.sync_gradients
        before = self._seconds["generation"] + self._seconds["scoring"]
        start = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        spent = time.perf_counter() - start - (self._seconds["generation"] + self._seconds["scoring"] - before)
        self._seconds["training"] += spent
        if self.task is not None and is_last:
            for name, seconds in self._seconds.items():
                self._metrics["train"][f"seconds/{name}"].append(seconds)
            self._seconds.clear()
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self._seconds.clear()
        metrics = super().evaluate(*args, **kwargs)
        self._seconds.clear()
        if self._eval_records:
            self._write("eval", self.state.global_step, self._eval_records)
            self._eval_records = []
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if self.task is None or not self.is_world_process_zero():
            return
        entry = {"step": self.state.global_step, "seconds": round(time.monotonic() - self._started, 3), **_finite(logs)}
        try:
            storage.append_text(Path(self.args.output_dir) / "metrics.jsonl", json.dumps(entry, default=float) + "\n")
        except (
            OSError
        ) as error:  # a full disk must not end training here; saving a checkpoint says so with its own exit code
            logger.warning("metrics.jsonl: %s", error)

    def _keep(self, inputs: list[dict[str, Any]], advantages: torch.Tensor) -> list[bool]:
        """Verify this process's responses, gather all of them, log their metrics and write their shard.

        Whether each of this process's responses is correct.
        """
        assert self.task is not None
        mode = "train" if self.model.training else "eval"
        mine: list[dict[str, Any]] = []
        seeds: list[Any] = self.batch_seeds or [None] * len(inputs)
        for row, prompt_ids, ids, completion, advantage, seed in zip(
            inputs, *self._generated, advantages.tolist(), seeds, strict=True
        ):
            text = text_of(completion) or ""
            is_truncated = self.is_truncated(ids)
            response = (row.get("prefill") or "") + text
            verdict = verdict_of(self.task, response, row=row, is_truncated=is_truncated)
            raw = {key: value for key, value in row.items() if key not in NOT_RAW}
            mine.append(
                {
                    "step": self.state.global_step + (mode == "train"),
                    "generation": self.batch_number,
                    "seed": seed,
                    "weights_step": self.weights_step,
                    "prompt": row["prompt"]
                    if isinstance(row["prompt"], str)
                    else json.dumps(row["prompt"], ensure_ascii=False),
                    "prefill": row.get("prefill") or "",
                    "completion": text,
                    "num_prompt_tokens": len(prompt_ids),
                    "num_completion_tokens": len(ids),
                    "is_truncated": is_truncated,
                    "outcome": str(verdict.outcome),
                    "advantage": advantage,
                    "row": json.dumps(raw, ensure_ascii=False, default=str),
                    **({ROW_INDEX: row[ROW_INDEX]} if ROW_INDEX in row else {}),
                }
            )
        records = gather_object(mine)
        rewards_NF = self.rewards_NF.tolist()
        weights = self.reward_weights.tolist()
        num_generations = (self.num_generations if mode == "train" else self.num_generations_eval) or 1
        first_problem = self._eval_records[-1]["problem"] + 1 if mode == "eval" and self._eval_records else 0
        for index, (record, rewards) in enumerate(zip(records, rewards_NF, strict=True)):
            record["problem"] = first_problem + index // num_generations
            known = [(reward, weight) for reward, weight in zip(rewards, weights, strict=True) if reward == reward]
            record["reward"] = sum(reward * weight for reward, weight in known) if known else None
            for name, reward in zip(self.reward_func_names, rewards, strict=True):
                record[f"reward/{name}"] = reward if reward == reward else None
        self._measure(mode, records)
        if mode == "train":
            self._write(mode, self.state.global_step + 1, records)
        else:
            self._eval_records += records
        return [record["outcome"] == Outcome.correct for record in mine]

    def _measure(self, mode: str, records: list[dict[str, Any]]) -> None:
        metrics = self._metrics[mode]
        num_by_outcome = Counter(record["outcome"] for record in records)
        metrics["accuracy"].append(num_by_outcome[Outcome.correct] / len(records))
        assert self.task is not None
        for outcome in self.task.outcomes:
            metrics[f"outcomes/{outcome}"].append(num_by_outcome[outcome] / len(records))
        for name, is_wanted in (("correct", True), ("wrong", False)):
            lengths = [r["num_completion_tokens"] for r in records if (r["outcome"] == Outcome.correct) is is_wanted]
            metrics[f"length/{name}"].append(sum(lengths) / len(lengths) if lengths else float("nan"))
        rows = [json.loads(record["row"]) for record in records]
        for name, behaviour in self.task.behaviours.items():
            measured = [
                behaviour(
                    record["prefill"] + record["completion"], **{column: row[column] for column in self.task.columns}
                )
                for record, row in zip(records, rows, strict=True)
            ]
            values = [value for value in measured if not math.isnan(value)]
            metrics[name].append(sum(values) / len(values) if values else float("nan"))
        num_tokens = sum(record["num_completion_tokens"] for record in records)
        metrics["tokens_per_second"].append(num_tokens / max(self._generation_seconds, 1e-9))

    def _write(self, mode: str, step: int, records: list[dict[str, Any]]) -> None:
        if not self.is_world_process_zero():
            return
        # steps_per_generation below gradient_accumulation_steps generates several times for one step.
        part = self._last_shard[1] + 1 if mode == "train" and self._last_shard[0] == step else 0
        if mode == "train":
            self._last_shard = (step, part)
        folder = Path(self.args.output_dir) / "rollouts"
        target = folder / f"{mode}-{step:08d}{f'.{part}' if part else ''}.parquet"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with storage.replacing(target) as file:
                pq.write_table(pa.Table.from_pylist(records), file, compression="zstd")
        except OSError as error:  # as in `log`
            logger.warning("%s: %s", target.name, error)


def _mean_advantages(scored: dict[str, Any]) -> torch.Tensor:
    """One advantage a row, [B]: the mean over its tokens where each token has its own."""
    advantages: torch.Tensor = scored["advantages"]
    if advantages.dim() == 1:
        return advantages
    mask = scored["completion_mask"]
    return (advantages * mask).sum(1) / mask.sum(1).clamp(min=1)


def _finite(logs: dict[str, Any]) -> dict[str, Any]:
    """The entries as JSON can hold them: plain numbers, null for what is not finite."""
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in logs.items()}
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in plain.items()
    }
