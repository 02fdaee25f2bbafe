"""A rollout: one completion to one prompt, what it was worth, and where it comes from; the record of training and of evaluation.

Its fields are the columns of rollouts/*.parquet and, as far as an evaluation knows them, of samples.parquet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tinyzero_trl.task import Outcome, Row, Verdict

ROW_INDEX = "row_index"
"""Column of the training data, added where a feature chooses among its rows: the number of the row."""
NOT_RAW = ("prompt", "prefill", ROW_INDEX)
"""Columns of a row that are not the task's own."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """Made once after generation (`rewards.verified`), verified once, scored from the verdict, recorded.

    Token ids and log-probabilities are not here: they are tensors of the batch that is trained on.
    """

    row: Row
    """The task's own columns; JSON in the file."""
    prompt: str
    """The prompt as text; chat messages as JSON."""
    prefill: str
    """Beginning of the response that the prompt already contains."""
    completion: str
    """Text that the model generated, without the prefill."""
    num_completion_tokens: int
    """Tokens of the completion, with the end token."""
    is_truncated: bool
    """True if the completion ran into the token limit."""

    verdict: Verdict
    """The task's; its outcome and explanation are columns."""

    problem: int = 0
    """Number of the problem in its batch or evaluation."""
    sample: int = 0
    """Number among the completions of its problem in an evaluation, from 0 to k - 1."""

    num_prompt_tokens: int = 0
    """Tokens of the prompt; 0 in an evaluation, which keeps the prompt alone."""
    step: int = 0
    """Optimizer step that it is trained in, or after which it was an answer to a held-out problem."""
    generation: int = 0
    """Number of the batch: training batches are counted through, those of an evaluation from 0."""
    seed: int | None = None
    """Seed it was drawn with; None if another rollout function draws."""
    weights_step: int | None = None
    """Optimizer steps behind the weights that wrote it; None where the rollout function does not say."""
    row_index: int | None = None
    """Number of the row in the training data, where a feature chooses among rows."""

    rewards: Mapping[str, float | None] = field(default_factory=dict)
    """Number by reward function, None where it gave none; columns `reward/<name>`."""
    reward: float | None = None
    """Their weighted sum; None where none gave anything."""
    advantage: float = 0.0
    """Mean over its tokens where each token has its own."""

    @property
    def response(self) -> str:
        """Prefill and completion: what verifiers and rewards read."""
        return self.prefill + self.completion

    @property
    def is_correct(self) -> bool:
        """True if the outcome is `correct`."""
        return self.verdict.outcome == Outcome.correct

    @property
    def outcome(self) -> str:
        """Outcome of the verdict."""
        return str(self.verdict.outcome)

    @property
    def answer(self) -> str | None:
        """The answer as written, if the response has exactly one."""
        return self.verdict.answer

    @property
    def explanation(self) -> str:
        """Why it is not correct, in a few words; empty in files from before this column."""
        return self.verdict.explanation

    def columns(self) -> dict[str, Any]:
        """The cells of its line in rollouts/*.parquet, by column."""
        return {
            "step": self.step,
            "generation": self.generation,
            "problem": self.problem,
            "seed": self.seed,
            "weights_step": self.weights_step,
            "prompt": self.prompt,
            "prefill": self.prefill,
            "completion": self.completion,
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_completion_tokens": self.num_completion_tokens,
            "is_truncated": self.is_truncated,
            "outcome": self.outcome,
            "explanation": self.explanation,
            "reward": self.reward,
            **{f"reward/{name}": value for name, value in self.rewards.items()},
            "advantage": self.advantage,
            "row": json.dumps(dict(self.row), ensure_ascii=False, default=str),
            **({ROW_INDEX: self.row_index} if self.row_index is not None else {}),
        }
