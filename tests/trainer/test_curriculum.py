"""The problems that come are those the curriculum says: low to high, by weight, or by what the policy has solved."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from datasets import Dataset

from tinyzero_trl.config import CurriculumSettings, check_method, compose
from tinyzero_trl.config.checks import check_curriculum
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.rewards import for_trl
from tinyzero_trl.seeding import generator_of
from tinyzero_trl.tasks import TASKS
from tinyzero_trl.trainer import TinyZeroTrainer
from tinyzero_trl.trainer.problems import FLOOR, drawn, easy_first, middling

TASK = TASKS["countdown"]
NUM_ROWS, GROUP = 24, 4
KINDS = ("easy", "middling", "hard")


def kind_of(row: int) -> str:
    return KINDS[row % 3]


def rows() -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"{kind_of(n)}: ",
            "prefill": "<think>",
            "nums": [6, 3],
            "target": 9,
            "level": n % 3,
            "worth": float(n % 3),
        }
        for n in range(NUM_ROWS)
    ]


def answer_by_kind(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """Easy problems are always solved, middling ones every other time, hard ones never."""
    tokenizer = trainer.processing_class
    prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
    share = {"easy": 1, "middling": 2, "hard": 10**9}
    texts = [
        f"</think><answer>{'6 + 3' if (i + 1) % share[p.split(':')[0]] == 0 else '6 - 3'}</answer>"
        for i, p in enumerate(prompts)
    ]
    ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": [[0.0] * len(item) for item in ids]}


@pytest.fixture
def make(build: Any) -> Any:
    def made(by: str | None, kind: str, **settings: Any) -> Any:
        trainer = build(
            TinyZeroTrainer,
            task=TASK,
            rows=rows(),
            reward_funcs=[for_trl(TASK.rewards["equation"], name="equation")],
            rollout_func=answer_by_kind,
            curriculum=CurriculumSettings(by=by, kind=kind),
            max_completion_length=64,
            **settings,
        )
        trainer.model.train()
        trainer.seen = []
        whole = trainer._record

        def record(scored: dict[str, Any]) -> torch.Tensor:
            trainer.seen += [rollout.row_index for rollout in trainer._rollouts[::GROUP]]
            return whole(scored)

        trainer._record = record
        return trainer

    return made


def generate(trainer: Any, num_batches: int) -> list[int]:
    """Rows of the problems of the next batches of four groups, whatever the data loader brings."""
    start = len(trainer.seen)
    for _ in range(num_batches):
        trainer._generate_and_score_completions([trainer.train_dataset[0]] * (4 * GROUP))
    return list(trainer.seen[start:])


def test_by_a_column_easy_problems_come_first_in_every_epoch(make: Any) -> None:
    trainer = make("level", "order")
    first, second = generate(trainer, 6), generate(trainer, 6)
    for epoch in (first, second):
        assert [row % 3 for row in epoch] == [0] * 8 + [1] * 8 + [2] * 8
        assert sorted(epoch) == list(range(NUM_ROWS))
    assert first != second, "problems of the same difficulty are shuffled anew"
    assert trainer._metrics["train"]["curriculum/level"][:3] == [0, 0, 1]


def test_by_a_column_of_weights_rows_come_in_proportion(make: Any) -> None:
    trainer = make("worth", "weight")
    counts = Counter(row % 3 for row in generate(trainer, 30))
    assert counts[0] == 0
    assert 1.3 < counts[2] / counts[1] < 2.5


def test_by_success_problems_of_middling_success_come_more_often_once_known(make: Any) -> None:
    trainer = make("success", "weight")
    generate(trainer, 12)
    counts = Counter(kind_of(row) for row in generate(trainer, 12))
    assert counts["middling"] > 2 * max(counts["easy"], counts["hard"])
    assert min(counts["easy"], counts["hard"]) > 0, "no problem is given up for good"
    known = {
        kind: {float(trainer.problems.known_R[row]) for row in range(NUM_ROWS) if kind_of(row) == kind}
        for kind in KINDS
    }
    assert known["easy"] <= {1.0} | {s for s in known["easy"] if s != s}
    assert 0.5 in known["middling"]
    assert 0.0 in known["hard"]


def test_by_success_the_second_epoch_goes_from_easy_to_hard(make: Any) -> None:
    trainer = make("success", "order")
    first = generate(trainer, 6)
    assert sorted(first) == list(range(NUM_ROWS))
    assert [kind_of(row) for row in generate(trainer, 6)] == ["easy"] * 8 + ["middling"] * 8 + ["hard"] * 8
    assert trainer._metrics["train"]["curriculum/seen"][-1] == 1.0


@pytest.mark.parametrize(("by", "kind"), [("level", "order"), ("success", "weight"), ("success", "order")])
def test_a_curriculum_repeats_itself_and_goes_on_where_it_was(make: Any, by: str, kind: str) -> None:
    whole, again = make(by, kind), make(by, kind)
    generate(whole, 7)
    rest = generate(whole, 4)
    generate(again, 7)
    state = again.resume_state()
    resumed = make(by, kind)
    resumed.load_resume_state(state)
    generate(again, 1)  # what was saved is not touched by what comes after
    assert generate(resumed, 4) == rest


def test_dynamic_sampling_draws_from_the_curriculum(make: Any) -> None:
    trainer = make("level", "order", dynamic_sampling_rounds=1)
    seen = generate(trainer, 1)
    assert [row % 3 for row in seen] == [0] * 8, "easy groups have no signal, so that as many come after them"
    assert len(set(seen)) == 8


def test_without_a_curriculum_the_data_loaders_problems_come(make: Any) -> None:
    trainer = make(None, "order", dynamic_sampling_rounds=1)
    assert generate(trainer, 1)[:4] == [0] * 4


def test_evaluation_asks_what_it_was_given(make: Any) -> None:
    trainer = make("level", "order")
    trainer.model.eval()
    inputs = [trainer.train_dataset[5]] * 16
    trainer._generate_and_score_completions(inputs)
    assert trainer.seen == [5] * 4


def test_weights_are_highest_for_middling_success() -> None:
    nan = float("nan")
    weights = middling(torch.tensor([0.0, 0.5, 1.0, nan, 0.25]))
    assert torch.allclose(weights, torch.tensor([FLOOR, 0.25 + FLOOR, FLOOR, 0.25 + FLOOR, 0.1875 + FLOOR]))


def test_rows_are_drawn_in_proportion_without_repetition_and_never_with_weight_0() -> None:
    weights = torch.tensor([0.0, 1.0, 2.0, 5.0])
    first = Counter(drawn(weights, 1, generator=generator_of(n))[0] for n in range(4000))
    expected = 4000 * weights[1:] / 8
    counts = torch.tensor([float(first[row]) for row in (1, 2, 3)])
    assert ((counts - expected) ** 2 / expected).sum() < 13.8, "p < 0.001 with 2 degrees of freedom"
    assert sorted(drawn(weights, 9, generator=generator_of(0))) == [1, 2, 3]


def test_ties_are_shuffled_and_nothing_else() -> None:
    difficulty = torch.tensor([2.0, 1.0, 2.0, 0.5])
    orders = {tuple(easy_first(difficulty, generator=generator_of(n)).tolist()) for n in range(20)}
    assert orders == {(3, 1, 0, 2), (3, 1, 2, 0)}


@pytest.mark.parametrize(
    ("by", "kind", "message"),
    [
        ("levle", "order", "train rows have no such column; they have prompt, level"),
        ("prompt", "order", "needs numbers; row 0 has 'a'"),
        ("level", "weight", "needs numbers of 0 or more; row 1 has -1"),
        ("few", "weight", "fewer rows weigh more than 0 than the 2"),
    ],
)
def test_a_column_that_says_no_order_is_refused(by: str, kind: str, message: str) -> None:
    cfg = compose(["+countdown=grpo-tiny", f"curriculum.by={by}", f"curriculum.kind={kind}"])
    dataset = Dataset.from_list([{"prompt": "a", "level": 1, "few": 0}, {"prompt": "b", "level": -1, "few": 1}])
    with pytest.raises(ConfigError, match=message):
        check_curriculum(cfg, dataset, num_needed=2)


def test_a_kind_there_is_none_of_is_refused() -> None:
    with pytest.raises(ConfigError, match="no 'ordre'; there is order, weight; did you mean order"):
        check_method(compose(["+countdown=grpo-tiny", "curriculum.kind=ordre"]))
