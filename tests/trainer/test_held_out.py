"""Held-out problems during training: their own temperature, greedy beside sampled, intervals over problems, the best model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tinyzero_trl.config import EvaluationSettings
from tinyzero_trl.intervals import share
from tinyzero_trl.rewards import for_trl
from tinyzero_trl.tasks.countdown import TASK
from tinyzero_trl.trainer import TinyZeroTrainer

pytestmark = pytest.mark.slow


def rows(num: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{n}: <think>", "prefill": "<think>", "nums": [6, 3], "target": 9} for n in range(num)]


class Answers:
    """A rollout function that solves everything greedily, and of the sampled responses every other one."""

    def __init__(self) -> None:
        self.temperatures: list[tuple[str, float, int]] = []

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        extra = trainer.rollout_temperature
        temperature = trainer.args.temperature if extra is None else extra
        self.temperatures.append(("train" if trainer.model.training else "eval", temperature, len(prompts)))
        tokenizer = trainer.processing_class
        prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
        is_right = [temperature == 0 or index % 2 == 1 for index in range(len(prompts))]
        texts = [f"</think><answer>{'6 + 3' if right else '6 - 3'}</answer>" for right in is_right]
        ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": [[0.0] * len(item) for item in ids]}


def test_evaluation_has_its_own_temperature_a_greedy_pass_and_intervals_that_choose_the_best_model(build: Any) -> None:
    answers = Answers()
    trainer = build(
        TinyZeroTrainer,
        task=TASK,
        rows=rows(16),
        eval_rows=rows(8),
        reward_funcs=[for_trl(TASK.rewards["equation"], name="equation")],
        rollout_func=answers,
        evaluation=EvaluationSettings(temperature=0.6, greedy=True),
        per_device_eval_batch_size=8,
        num_generations_eval=2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="best",
        metric_for_best_model="eval_greedy_accuracy_low",
    )
    trainer.train()
    asked = set(answers.temperatures)
    assert asked == {("train", 1.0, 16), ("eval", 0.6, 8), ("eval", 0.0, 4)}
    folder = Path(trainer.args.output_dir)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (first, second) = [line for line in lines if "eval_accuracy" in line]
    expected = share([0.5] * 8)
    assert (first["eval_accuracy"], first["eval_accuracy_low"], first["eval_accuracy_high"]) == (
        pytest.approx(0.5),
        pytest.approx(expected.low),
        pytest.approx(expected.high),
    )
    greedy = share([1.0] * 8)
    assert (first["eval_greedy_accuracy"], first["eval_greedy_accuracy_low"]) == (1.0, pytest.approx(greedy.low))
    assert second["eval_greedy_length"] == first["eval_greedy_length"]
    # Recorded, and in the other metrics, are the sampled responses alone.
    assert len(pq.read_table(folder / "rollouts" / "eval-00000001.parquet")) == 16
    assert first["eval_outcomes/correct"] == 0.5
    assert trainer.state.best_metric == pytest.approx(greedy.low)
    assert trainer.args.temperature == 1.0


def test_without_settings_of_its_own_an_evaluation_draws_as_training_does(build: Any) -> None:
    answers = Answers()
    trainer = build(
        TinyZeroTrainer,
        task=TASK,
        rows=rows(16),
        eval_rows=rows(4),
        reward_funcs=[for_trl(TASK.rewards["equation"], name="equation")],
        rollout_func=answers,
        temperature=0.9,
        per_device_eval_batch_size=4,
        num_generations_eval=1,
        max_steps=1,
    )
    metrics = trainer.evaluate()
    assert set(answers.temperatures) == {("eval", 0.9, 4)}
    assert metrics["eval_accuracy_low"] < metrics["eval_accuracy"] == 0.5 < metrics["eval_accuracy_high"]
    assert "eval_greedy_accuracy" not in metrics
