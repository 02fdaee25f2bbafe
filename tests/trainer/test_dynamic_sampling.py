"""Groups without signal make room for fresh prompts, and what is trained on is one well-formed batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from tinyzero_trl.config import check_method, compose
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.generation.transformers_rollout import transformers_rollout
from tinyzero_trl.rollout import ROW_INDEX
from tinyzero_trl.tasks import TASKS
from tinyzero_trl.trainer import TinyZeroTrainer
from tinyzero_trl.trainer.batches import groups_with_signal, joined, rows_in, rows_of

GROUP = 4


def rows(num: int = 32) -> list[dict[str, Any]]:
    return [{"prompt": "+" * (1 + n % 5), "prefill": "", "nums": [n, 3], "target": 9} for n in range(num)]


def only_some_teach(teaches: Any) -> Any:
    """Rewards that differ within a group where `teaches` says so of the row's first number, and are all 0 elsewhere."""

    def reward(completions: list[Any], nums: list[list[int]], **columns: Any) -> list[float]:
        return [float(i % 2) if teaches(n[0]) else 0.0 for i, n in enumerate(nums)]

    return reward


def batch_of(trainer: Any, problems: range) -> list[dict[str, Any]]:
    trainer.model.train()
    return [trainer.train_dataset[problem] for problem in problems for _ in range(GROUP)]


@pytest.fixture
def make(build: Any) -> Any:
    def made(teaches: Any, *, num_rounds: int = 3, num_rows: int = 32, **settings: Any) -> Any:
        return build(
            TinyZeroTrainer,
            task=TASKS["countdown"],
            rows=rows(num_rows),
            reward_funcs=only_some_teach(teaches),
            rollout_func=transformers_rollout,
            dynamic_sampling_rounds=num_rounds,
            **settings,
        )

    return made


def test_groups_without_signal_are_replaced_by_fresh_problems_that_teach(make: Any) -> None:
    trainer = make(lambda n: n in (0, 2) or n > 3)
    scored = trainer._generate_and_score_completions(batch_of(trainer, range(4)))
    assert groups_with_signal(scored["advantages"], num_generations=GROUP).tolist() == [True] * 4
    shards = (pq.read_table(path).to_pylist() for path in (Path(trainer.args.output_dir) / "rollouts").iterdir())
    records = [row for shard in sorted(shards, key=lambda shard: shard[0]["generation"]) for row in shard]
    assert [row["generation"] for row in records] == [0] * 16 + [1] * 8
    tried = [json.loads(row["row"])["nums"][0] for row in records[::GROUP]]
    assert tried[:4] == [0, 1, 2, 3]
    assert len(set(tried)) == 6, "no problem comes twice"
    metrics = trainer._metrics["train"]
    assert metrics["sampling/rounds"] == [1]
    assert metrics["sampling/groups_generated"] == [6]
    assert metrics["sampling/groups_replaced"] == [2]
    assert metrics["num_tokens"] == [sum(row["num_prompt_tokens"] + row["num_completion_tokens"] for row in records)]
    assert metrics["reward"] == [0.25], "the first round alone is a fair sample of the problems"
    assert trainer.num_generated_batches == 2


def test_what_is_trained_on_is_padded_as_one_batch(make: Any) -> None:
    trainer = make(lambda n: n % 2 == 0)
    scored = trainer._generate_and_score_completions(batch_of(trainer, range(4)))
    num_rows = len(scored["completion_ids"])
    assert num_rows == 16
    assert scored["num_items_in_batch"] == scored["completion_mask"].sum()
    assert scored["prompt_mask"][:, -1].all()
    assert scored["completion_mask"][:, 0].all()
    for side in ("prompt", "completion"):
        ids, mask = scored[f"{side}_ids"], scored[f"{side}_mask"]
        assert ids.shape == mask.shape
        assert (ids[mask == 0] == trainer.processing_class.pad_token_id).all()
        assert (mask.diff(dim=1) * (1 if side == "prompt" else -1) >= 0).all()
    assert scored["sampling_per_token_logps"].shape == scored["completion_ids"].shape
    with torch.no_grad():
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([scored["prompt_ids"], scored["completion_ids"]], 1),
            torch.cat([scored["prompt_mask"], scored["completion_mask"]], 1),
            scored["completion_ids"].shape[1],
        )
    difference = (logps - scored["sampling_per_token_logps"]) * scored["completion_mask"]
    assert difference.abs().max() < 1e-4, "each row's log-probabilities stand with its tokens"


def test_rounds_are_limited_and_groups_left_without_signal_keep_their_place(make: Any) -> None:
    trainer = make(lambda n: n == 0, num_rounds=2)
    scored = trainer._generate_and_score_completions(batch_of(trainer, range(4)))
    assert sorted(groups_with_signal(scored["advantages"], num_generations=GROUP).tolist()) == [False] * 3 + [True]
    assert trainer._metrics["train"]["sampling/rounds"] == [2]
    assert trainer._metrics["train"]["sampling/groups_generated"] == [10]


def test_sampling_ends_where_every_problem_has_been_tried(make: Any) -> None:
    trainer = make(lambda n: False, num_rounds=50, num_rows=10)
    trainer._generate_and_score_completions(batch_of(trainer, range(4)))
    assert trainer._metrics["train"]["sampling/rounds"] == [2]
    assert trainer._metrics["train"]["sampling/groups_generated"] == [10]


def test_a_batch_that_teaches_as_it_is_costs_nothing_more(make: Any) -> None:
    trainer = make(lambda n: True)
    trainer._generate_and_score_completions(batch_of(trainer, range(4)))
    assert trainer._metrics["train"]["sampling/rounds"] == [0]
    assert trainer.num_generated_batches == 1


def test_evaluation_keeps_the_problems_it_was_asked_about(make: Any) -> None:
    trainer = make(lambda n: False)
    inputs = batch_of(trainer, range(4))
    trainer.model.eval()
    trainer._generate_and_score_completions(inputs)
    assert trainer._num_eval_batches == 1
    assert "sampling/rounds" not in trainer._metrics["eval"]


def test_a_run_with_dynamic_sampling_repeats_itself(make: Any) -> None:
    digests = []
    for _ in range(2):
        trainer = make(lambda n: n % 3 == 0, max_steps=2)
        trainer.train()
        digests.append(torch.cat([value.flatten() for value in trainer.model.state_dict().values()]))
        assert all(entry["sampling/rounds"] > 0 for entry in trainer.state.log_history if "reward" in entry)
    assert torch.equal(*digests)


def test_fresh_problems_are_others_and_the_same_at_the_same_place(make: Any) -> None:
    trainer = make(lambda n: True)
    fresh = trainer.problems.fresh
    drawn = fresh(8, exclude={1, 2, 3}, num_batches=0)
    assert len(set(drawn)) == 8
    assert not {1, 2, 3} & set(drawn)
    assert fresh(8, exclude={1, 2, 3}, num_batches=0) == drawn
    assert fresh(8, exclude={1, 2, 3}, num_batches=1) != drawn
    assert len(fresh(99, exclude=range(30), num_batches=0)) == 2
    assert trainer.train_dataset[drawn[0]][ROW_INDEX] == drawn[0]


def test_rows_of_batches_of_other_widths_are_joined_with_their_padding() -> None:
    def batch(first: int, prompt: int, completion: int) -> dict[str, Any]:
        return {
            "prompt_ids": torch.full((2, prompt), first),
            "prompt_mask": torch.ones(2, prompt),
            "completion_ids": torch.full((2, completion), first),
            "completion_mask": torch.ones(2, completion),
            "importance_sampling_ratio": torch.full((2, 1), float(first)),
            "advantages": torch.tensor([0.0, first]),
            "num_items_in_batch": torch.tensor(4.0),
        }

    both = joined([rows_of(part, torch.tensor([1])) for part in (batch(7, 3, 1), batch(8, 1, 2))], pad_token_id=9)
    assert both["prompt_ids"].tolist() == [[7, 7, 7], [9, 9, 8]]
    assert both["prompt_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert both["completion_ids"].tolist() == [[7, 9], [8, 8]]
    assert both["importance_sampling_ratio"].tolist() == [[7], [8]]
    assert both["advantages"].tolist() == [7, 8]
    assert "num_items_in_batch" not in both
    assert rows_in(torch.tensor([2, 0]), num_generations=2).tolist() == [4, 5, 0, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["replay.num_groups=-1"], "replay.num_groups must be 0 or more, got -1"),
        (["replay.max_age=0"], "replay.max_age must be 1 or more"),
        (["replay.num_groups=4", "trainer.sync_ref_model=true", "trainer.beta=0.1"], "trainer.sync_ref_model changes"),
        (["dynamic_sampling_rounds=-1"], "dynamic_sampling_rounds must be 0 or more"),
        (
            ["trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2", "trainer.save_steps=8"],
            r"whole groups are replaced within a process, and the 4 completions of each of 2 are no whole groups",
        ),
        (["trainer.scale_rewards=batch"], r"trainer.scale_rewards=batch measures advantages by the batch"),
        (["advantage_whitening=batch"], r"advantage_whitening=batch measures advantages by the batch"),
    ],
)
def test_what_dynamic_sampling_and_replay_cannot_go_with_is_refused(words: list[str], message: str) -> None:
    cfg = compose(["+countdown=grpo-tiny", "trainer.num_generations=8", "dynamic_sampling_rounds=2", *words])
    cfg.trainer.loss_type = "grpo"
    with pytest.raises(ConfigError, match=message):
        check_method(cfg, num_processes=2)


@pytest.mark.parametrize(("num_rounds", "expected"), [(3, ["awake", "asleep"]), (0, [])])
def test_vllm_keeps_its_weights_from_round_to_round_and_sleeps_before_the_loss(
    make: Any, num_rounds: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sleep in between would push all weights again. A batch of one rollout sleeps by itself, as early as it can."""
    events: list[str] = []

    @contextmanager
    def awake() -> Iterator[None]:
        events.append("awake")
        yield
        events.append("asleep")

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        events.append("rollout")
        return transformers_rollout(prompts, trainer)

    trainer = make(lambda n: n % 4 == 0, num_rounds=num_rounds)
    trainer.rollout_func = rollout
    trainer._engine = SimpleNamespace(awake=awake)
    trainer.model.train()
    trainer._prepare_inputs(batch_of(trainer, range(4)))
    num_rollouts = events.count("rollout")
    assert num_rollouts == 1 if num_rounds == 0 else num_rollouts > 1
    assert events == [*expected[:1], *["rollout"] * num_rollouts, *expected[1:]]


def test_vllm_keeps_its_weights_over_all_batches_of_an_evaluation(make: Any) -> None:
    events: list[str] = []

    @contextmanager
    def awake() -> Iterator[None]:
        events.append("awake")
        yield
        events.append("asleep")

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        events.append("rollout")
        return transformers_rollout(prompts, trainer)

    trainer = make(lambda n: True, num_rounds=0, per_device_eval_batch_size=GROUP)
    trainer.rollout_func = rollout
    trainer._engine = SimpleNamespace(awake=awake)
    trainer.evaluate(trainer.train_dataset.select(range(3)))
    assert events == ["awake", *["rollout"] * 3, "asleep"]
