"""A seed for each completion, from the run's seed, the number of its batch and its place there."""

from __future__ import annotations

from typing import Any

from tinyzero_trl.seeding import row_seeds
from tinyzero_trl.trainer.state import ResumableState


class Seeds(ResumableState):
    """Counts the batches that are generated, and gives the rows of each their seeds."""

    rollout_temperature: float | None = None
    """What completions are drawn with in the place of args.temperature; 0 (greedy) is an extra rollout that is not recorded."""
    num_generated_batches: int = 0
    """Training batches so far, each round of dynamic sampling one; extra rollouts are none."""
    batch_number: int = 0
    """Of the batch being generated: training batches are counted through, an evaluation's from 0."""
    batch_seeds: list[int] | None = None
    """Of this process's rows of it; None where another's rollout function generates, or vLLM."""
    _num_eval_batches = 0

    def next_row_seeds(self, num_rows: int) -> list[int]:
        """A seed for each of this process's rows of the batch being generated.

        The place of a row is that among the rows of all processes. Every evaluation draws alike.
        """
        parts = (self.args.seed, "train" if self.model.training else "eval", self.batch_number)
        seeds = row_seeds(parts, first=self.accelerator.process_index * num_rows, num_rows=num_rows)
        if self.rollout_temperature is None:
            self.batch_seeds = seeds
        return seeds

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.model.training:
            self.batch_number = self.num_generated_batches
            self.num_generated_batches += 1
        else:
            self.batch_number = self._num_eval_batches
            self._num_eval_batches += 1
        scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return scored

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        self._num_eval_batches = 0
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def resume_state(self) -> dict[str, Any]:
        return {**super().resume_state(), "num_generated_batches": self.num_generated_batches}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        super().load_resume_state(state)
        self.num_generated_batches = int(state["num_generated_batches"])
