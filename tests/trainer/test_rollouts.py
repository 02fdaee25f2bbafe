"""Files in which a run records itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tinyzero_trl.generation.transformers_rollout import transformers_rollout
from tinyzero_trl.rewards import for_trl
from tinyzero_trl.task import Outcome, Verdict
from tinyzero_trl.tasks import TASKS
from tinyzero_trl.tasks.math.workers import UndecidedError
from tinyzero_trl.trainer import TinyZeroTrainer

TASK = TASKS["countdown"]
COLUMNS = {
    "step", "problem", "prompt", "prefill", "completion", "num_prompt_tokens", "num_completion_tokens", "is_truncated",
    "reward", "reward/equation", "reward/graded", "outcome", "explanation", "advantage", "row", "generation", "seed", "weights_step",
}  # fmt: skip


@pytest.fixture
def solved() -> Any:
    """A rollout function whose odd completions solve the row and whose even ones do not."""

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        tokenizer = trainer.processing_class
        prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
        texts = [f"</think><answer>{'6 + 3' if i % 2 else '6 - 3'}</answer>" for i in range(len(prompts))]
        ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": [[0.0] * len(item) for item in ids]}

    return rollout


def rewards() -> list[Any]:
    return [for_trl(TASK.rewards[name], name=name) for name in ("equation", "graded")]


def rows(num: int = 16) -> list[dict[str, Any]]:
    return [{"prompt": f"{n}: <think>", "prefill": "<think>", "nums": [6, 3], "target": 9} for n in range(num)]


def test_every_rollout_of_every_step_is_in_a_shard_with_its_outcome_and_advantage(build: Any, solved: Any) -> None:
    trainer = build(
        TinyZeroTrainer, task=TASK, rows=rows(), reward_funcs=rewards(), reward_weights=[1.0, 0.5], rollout_func=solved
    )
    trainer.train()
    shards = sorted((Path(trainer.args.output_dir) / "rollouts").glob("*"))
    assert [path.name for path in shards] == ["train-00000001.parquet", "train-00000002.parquet"]
    table = pq.read_table(shards[1]).to_pylist()
    assert set(table[0]) == COLUMNS
    assert len(table) == 16
    assert [row["step"] for row in table] == [2] * 16
    assert [row["problem"] for row in table] == [index // 4 for index in range(16)]
    assert [row["outcome"] for row in table] == ["wrong_value", "correct"] * 8
    assert [row["explanation"] for row in table] == ["3 is not 9", ""] * 8
    assert [row["reward"] for row in table] == pytest.approx([0.05, 1.5] * 8)
    assert {row["advantage"] > 0 for row in table if row["outcome"] == "correct"} == {True}
    assert {row["prompt"] for row in table if row["problem"] == 0} == {table[0]["prompt"]}
    assert json.loads(table[0]["row"]) == {"nums": [6, 3], "target": 9}
    assert not table[0]["is_truncated"]


def test_a_response_is_verified_once_and_rewards_get_the_verdict(build: Any, solved: Any) -> None:
    verified: list[str] = []
    seen: list[Any] = []

    def verify(response: str, **columns: Any) -> Verdict:
        verified.append(response)
        return TASK.verify(response, **columns)

    def of_verdict(response: str, *, verdict: Verdict | None = None) -> float:
        seen.append(verdict)
        return float(verdict is not None and verdict.outcome is Outcome.correct)

    trainer = build(
        TinyZeroTrainer,
        task=dataclasses.replace(TASK, verify=verify),
        rows=rows(),
        reward_funcs=[*rewards(), for_trl(of_verdict, name="of_verdict")],
        rollout_func=solved,
        max_steps=1,
    )
    trainer.train()
    assert len(verified) == len(seen) == 16
    (shard,) = (Path(trainer.args.output_dir) / "rollouts").iterdir()
    assert [row["reward/of_verdict"] for row in pq.read_table(shard).to_pylist()] == [0.0, 1.0] * 8


def test_a_response_that_was_cut_off_or_not_decided_earns_what_its_verdict_says(build: Any, monkeypatch: Any) -> None:
    """The same words are right where the response ended by itself, and no answer where it ran into the limit."""

    def gives_up(*_: object) -> Any:
        raise UndecidedError

    monkeypatch.setattr("tinyzero_trl.tasks.math.verdict.compare", gives_up)

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        tokenizer = trainer.processing_class
        prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
        texts = [r"so \boxed{9+z}" if i % 4 == 3 else "so 6 + 3 = 9" for i in range(len(prompts))]
        ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] * (i % 2) for i, text in enumerate(texts)]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": [[0.0] * len(item) for item in ids]}

    task = TASKS["math"]
    problems = [{"prompt": f"{n}:", "prefill": "", "problem": "6 + 3", "answer": "9"} for n in range(16)]
    trainer = build(
        TinyZeroTrainer,
        task=task,
        rows=problems,
        reward_funcs=[for_trl(task.rewards["accuracy"], name="accuracy")],
        rollout_func=rollout,
    )
    trainer.train()
    table = pq.read_table(Path(trainer.args.output_dir) / "rollouts" / "train-00000001.parquet").to_pylist()
    assert [row["outcome"] for row in table] == ["truncated", "correct", "truncated", "undecided"] * 4
    assert [row["reward"] for row in table] == [0.0, 1.0, 0.0, 0.0] * 4
    entry = json.loads((Path(trainer.args.output_dir) / "metrics.jsonl").read_text().splitlines()[0])
    shares = {key.removeprefix("outcomes/"): value for key, value in entry.items() if key.startswith("outcomes/")}
    assert shares.keys() == set(task.outcomes)
    assert (shares["undecided"], shares["correct"], shares["truncated"]) == (0.25, 0.25, 0.5)
    assert "is_truncated" not in json.loads(table[0]["row"])


def test_metrics_are_one_json_object_a_step(build: Any, solved: Any) -> None:
    trainer = build(TinyZeroTrainer, task=TASK, rows=rows(), reward_funcs=rewards(), rollout_func=solved)
    trainer.train()
    entries = [json.loads(line) for line in (Path(trainer.args.output_dir) / "metrics.jsonl").read_text().splitlines()]
    entries = [entry for entry in entries if "reward" in entry]
    assert [entry["step"] for entry in entries] == [1, 2]
    assert [entry["accuracy"] for entry in entries] == [0.5, 0.5]
    assert [entry["outcomes/wrong_value"] for entry in entries] == [0.5, 0.5]
    assert not any("outcomes/undecided" in entry for entry in entries)  # the verifier of Countdown cannot give up
    assert all(entry[f"seconds/{name}"] >= 0 for entry in entries for name in ("generation", "scoring", "training"))
    assert all(entry["length/correct"] == entry["length/wrong"] for entry in entries)
    assert entries[0]["seconds"] < entries[1]["seconds"]


def test_training_and_evaluation_are_kept_apart(build: Any, solved: Any) -> None:
    from datasets import Dataset

    trainer = build(
        TinyZeroTrainer,
        task=TASK,
        rows=rows(),
        reward_funcs=rewards(),
        rollout_func=solved,
        per_device_eval_batch_size=8,
        num_generations_eval=2,
    )
    trainer.eval_dataset = Dataset.from_list(rows(8))
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == metrics["eval_loss"]
    folder = Path(trainer.args.output_dir)
    table = pq.read_table(folder / "rollouts" / "eval-00000002.parquet").to_pylist()
    assert [row["problem"] for row in table] == [index // 2 for index in range(16)]
    assert len(list((folder / "rollouts").glob("train-*"))) == 2
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval_accuracy"] == 0.5


def test_a_disk_that_is_full_for_the_rollouts_does_not_end_training(build: Any, solved: Any, monkeypatch: Any) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    trainer = build(TinyZeroTrainer, task=TASK, rows=rows(), reward_funcs=rewards(), rollout_func=solved)
    trainer.train()
    assert trainer.state.global_step == 2


def test_every_completion_of_a_run_has_its_own_seed_and_an_evaluation_has_the_same_at_any_step(build: Any) -> None:
    from datasets import Dataset

    trainer = build(
        TinyZeroTrainer,
        task=TASK,
        rows=rows(),
        reward_funcs=rewards(),
        rollout_func=transformers_rollout,
        per_device_eval_batch_size=8,
        num_generations_eval=2,
        learning_rate=0.0,
    )
    trainer.eval_dataset = Dataset.from_list(rows(8))
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    folder = Path(trainer.args.output_dir) / "rollouts"
    train = [row for path in sorted(folder.glob("train-*")) for row in pq.read_table(path).to_pylist()]
    assert len({row["seed"] for row in train}) == len(train) == 32
    assert [row["generation"] for row in train] == [0] * 16 + [1] * 16
    assert trainer.resume_state()["num_generated_batches"] == 2
    first, second = (pq.read_table(path).to_pylist() for path in sorted(folder.glob("eval-*")))
    assert [row["seed"] for row in first] == [row["seed"] for row in second]
    assert [row["completion"] for row in first] == [row["completion"] for row in second]
    assert len({row["seed"] for row in first}) == len(first) == 16


def test_a_greedy_rollout_beside_is_not_recorded_and_changes_no_seed(build: Any) -> None:
    trainer = build(TinyZeroTrainer, task=TASK, rows=rows(), rollout_func=transformers_rollout, max_steps=1)
    trainer.model.train()
    before = trainer.next_row_seeds(4)
    trainer.rollout_temperature = 0.0
    greedy = [trainer._generate([rows()[0]["prompt"]] * 2)[1] for _ in range(2)]
    trainer.rollout_temperature = None
    assert greedy[0] == greedy[1]
    assert greedy[0][0] == greedy[0][1]
    assert trainer.next_row_seeds(4) == before
    assert trainer._rollouts == []


def test_tokens_per_second_are_those_of_the_batch_itself(build: Any, solved: Any) -> None:
    """Not over the seconds of the rounds, greedy rollouts and evaluation batches before it."""
    trainer = build(TinyZeroTrainer, task=TASK, rows=rows(), reward_funcs=rewards(), rollout_func=solved)
    trainer.model.train()
    trainer.clock.seconds["generation"] = 1e6
    trainer._generate_and_score_completions(list(trainer.train_dataset)[:8])
    assert trainer._metrics["train"]["tokens_per_second"][0] > 0.1
