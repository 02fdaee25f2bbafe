"""Stop strings in training: what stopped is not truncated, wherever truncation counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tinyzero_trl.generation.transformers_rollout import transformers_rollout
from tinyzero_trl.rewards import for_trl
from tinyzero_trl.tasks import TASKS
from tinyzero_trl.trainer import TinyZeroTrainer

STOP = "</answer>"
TEXTS = [f"</think><answer>6 + 3{STOP}", "</think><answer>6 + 3</ans"]
TASK = TASKS["countdown"]
ROWS = [{"prompt": f"{n}: <think>", "prefill": "<think>", "nums": [6, 3], "target": 9} for n in range(16)]


def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """Completions without an end token, every other one of which ends with the stop string."""
    prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
    ids = [trainer.processing_class(TEXTS[row % 2])["input_ids"] for row in range(len(prompts))]
    return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": [[-1.0] * len(item) for item in ids]}


def trained(build: Any, **settings: Any) -> Any:
    reward = for_trl(TASK.rewards["equation"], name="equation")
    settings = {"rollout_func": rollout, "max_steps": 1, "max_completion_length": 64, **settings}
    trainer = build(TinyZeroTrainer, task=TASK, rows=ROWS, reward_funcs=[reward], **settings)
    trainer.train()
    return trainer


@pytest.mark.parametrize("stop", [[], [STOP]], ids=["without", "with"])
def test_metrics_rewards_and_rollouts_know_what_ended_at_a_stop_string(build: Any, stop: list[str]) -> None:
    trainer = trained(build, stop=stop)
    logged = next(entry for entry in trainer.state.log_history if "completions/clipped_ratio" in entry)
    assert logged["completions/clipped_ratio"] == (0.5 if stop else 1.0)
    assert logged.get("completions/stopped_ratio") == (0.5 if stop else None)
    assert logged["completions/mean_terminated_length"] == (len(TEXTS[0]) if stop else 0)
    (shard,) = (Path(trainer.args.output_dir) / "rollouts").glob("*")
    rows = pq.read_table(shard).to_pylist()
    assert [row["is_truncated"] for row in rows] == [not stop, True] * (len(rows) // 2)
    assert {row["outcome"] for row in rows[1::2]} == {"truncated"}
    assert {row["outcome"] for row in rows[::2]} == {"correct"}


def test_truncated_completions_are_masked_and_stopped_ones_are_trained_on(build: Any) -> None:
    seen: list[dict[str, Any]] = []

    class Watched(TinyZeroTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            scored = super()._generate_and_score_completions(inputs)
            seen.append(scored)
            return scored

    reward = for_trl(TASK.rewards["equation"], name="equation")
    settings = {"rollout_func": rollout, "max_steps": 1, "max_completion_length": 64}
    trainer = build(Watched, rows=ROWS, reward_funcs=[reward], stop=[STOP], mask_truncated_completions=True, **settings)
    trainer.train()
    lengths = seen[0]["completion_mask"].sum(1).tolist()
    assert lengths == [len(TEXTS[0]), 0] * (len(lengths) // 2)
    assert seen[0]["num_items_in_batch"] == sum(lengths)


def test_without_stop_strings_the_mask_is_trls_own(build: Any) -> None:
    trainer = trained(build, mask_truncated_completions=True)
    assert trainer.mask_truncated_completions
    assert trainer.stop_strings is None


def test_the_trainers_own_sampler_ends_completions_at_the_string(build: Any) -> None:
    letters = set("aeiou")
    trainer = trained(build, rollout_func=transformers_rollout, stop=sorted(letters))
    (shard,) = (Path(trainer.args.output_dir) / "rollouts").glob("*")
    rows = pq.read_table(shard).to_pylist()
    stopped = [row for row in rows if letters & set(row["completion"])]
    assert stopped
    assert all(row["completion"][-1] in letters and not row["is_truncated"] for row in stopped)
    assert all(letters.isdisjoint(row["completion"][:-1]) for row in stopped)
