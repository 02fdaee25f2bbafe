"""Evaluation during training: drawn with settings of its own, once more greedily where asked, with intervals over problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from accelerate.utils import gather_object

from tinyzero_trl.config import EvaluationSettings
from tinyzero_trl.intervals import Estimate, share
from tinyzero_trl.rewards import text_of, verdict_of
from tinyzero_trl.task import Outcome
from tinyzero_trl.trainer.extra_rollout import extra_rollout
from tinyzero_trl.trainer.rollouts import Rollouts


class HeldOut(Rollouts):
    """Adds `eval_accuracy_low`, `_high`, and `eval_greedy_accuracy`, `_low`, `_high`; metric_for_best_model takes any of them.

    The problem is the unit of an interval, however many responses it has (num_generations_eval).
    """

    evaluation: EvaluationSettings

    def __init__(self, *args: Any, **kwargs: Any):
        self._greedy_records: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        standing = self.args.temperature
        self._greedy_records = []
        if self.evaluation.temperature is not None:
            self.args.temperature = self.evaluation.temperature
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.args.temperature = standing

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        scored = super()._generate_and_score_completions(inputs)
        if self.evaluation.greedy and self.task is not None and not self.model.training:
            self._greedy_records += self._answered_greedily(inputs[:: self.num_generations_eval or 1])
        return scored

    def _answered_greedily(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Verdict and length of one greedy response to each row, over all processes."""
        assert self.task is not None
        with extra_rollout(self, temperature=0.0, mode="eval"):
            _, ids_of_rows, _, completions, *_ = self._generate([row["prompt"] for row in rows])
        mine = []
        for row, ids, completion in zip(rows, ids_of_rows, completions, strict=True):
            response = (row.get("prefill") or "") + (text_of(completion) or "")
            verdict = verdict_of(self.task, response, row=row, is_truncated=self.is_truncated(ids))
            mine.append({"outcome": str(verdict.outcome), "num_completion_tokens": len(ids)})
        first = len(self._greedy_records)
        return [{**record, "problem": first + index} for index, record in enumerate(gather_object(mine))]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if not self.model.training and self._eval_records:
            e = accuracy_of(self._eval_records)
            logs |= {"eval_accuracy_low": e.low, "eval_accuracy_high": e.high}
            if self._greedy_records:
                e = accuracy_of(self._greedy_records)
                lengths = [record["num_completion_tokens"] for record in self._greedy_records]
                logs |= {
                    "eval_greedy_accuracy": e.value,
                    "eval_greedy_accuracy_low": e.low,
                    "eval_greedy_accuracy_high": e.high,
                    "eval_greedy_length": sum(lengths) / len(lengths),
                }
        super().log(logs, start_time)


def accuracy_of(records: Sequence[dict[str, Any]]) -> Estimate:
    """Share of correct responses, the mean over problems, with its 95 % interval."""
    rates: dict[int, list[float]] = defaultdict(list)
    for record in records:
        rates[record["problem"]].append(float(record["outcome"] == Outcome.correct))
    return share([sum(values) / len(values) for values in rates.values()])
