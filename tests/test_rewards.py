"""The lift to TRL's batch signature: what a reward gets, and what it cannot break."""

from __future__ import annotations

import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyzero_trl.rewards import columns_of, exact_format, for_trl
from tinyzero_trl.tasks.countdown import equation, graded

SOLVED = "1 + 2 = 3</think><answer>1 + 2</answer>"


def test_the_response_is_prefill_plus_completion():
    reward = for_trl(equation, name="equation")
    columns = {"nums": [[1, 2], [1, 2]], "target": [3, 4], "prefill": ["<think>", "<think>"]}
    assert reward(prompts=["p", "p"], completions=[SOLVED, SOLVED], **columns) == [1.0, 0.0]
    assert for_trl(exact_format, name="format")(["p"], [SOLVED], prefill=["<think>"]) == [1.0]
    assert for_trl(exact_format, name="format")(["p"], [SOLVED], prefill=[""]) == [0.0]
    assert for_trl(exact_format, name="format")(["p"], ["<think>" + SOLVED]) == [1.0]


def test_plain_and_conversational_completions_earn_the_same():
    reward = for_trl(graded, name="graded")
    text = "<think>" + SOLVED
    completions = [
        text,
        [{"role": "assistant", "content": text}],
        [{"role": "assistant", "content": [{"type": "text", "text": text}]}],
    ]
    assert reward([""] * 3, completions, nums=[[1, 2]] * 3, target=[3] * 3) == [1.0] * 3  # fmt: skip


@pytest.mark.parametrize(
    "completion", [None, [], {}, 7, [None], ["text"], [{}], [{"content": None}], [{"content": []}], [{"content": [1]}]]
)
def test_a_completion_of_another_shape_earns_nothing_and_says_so(completion, caplog):
    reward = for_trl(exact_format, name="format")
    with caplog.at_level(logging.WARNING):
        assert reward([""] * 3, [completion, "<think>" + SOLVED, completion]) == [0.0, 1.0, 0.0]
    assert len(caplog.records) == 1
    assert "neither text nor messages" in caplog.text


def test_a_reward_gets_only_the_columns_it_names():
    seen = {}

    def greedy(response: str, *, nums: list[int], bonus: float = 0.5, **rest: object) -> float:
        seen.update(nums=nums, bonus=bonus, rest=rest)
        return 0.0

    assert columns_of(greedy) == ("nums",)
    for_trl(greedy, name="greedy")(["p"], ["c"], nums=[[1]], target=[2], prefill=[""], trainer_state=object())
    assert seen == {"nums": [1], "bonus": 0.5, "rest": {}}
    for_trl(greedy, name="greedy")(["p"], ["c"], nums=[[1]], bonus=[0.75])
    assert seen["bonus"] == 0.75


def test_a_missing_column_names_what_there_is():
    with pytest.raises(ValueError, match=r"reward equation reads \['nums'\].*'target'"):
        for_trl(equation, name="equation")(["p"], ["c"], target=[3])


def test_a_reward_without_a_response_is_refused():
    with pytest.raises(ValueError, match="takes the response first"):
        for_trl(lambda *, nums: 0.0, name="odd")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38, -101, "1.0", [1.0], object()])
def test_a_reward_that_is_not_a_number_in_range_is_left_out_and_counted(value, caplog):
    metrics = {}
    reward = for_trl(lambda response: value if response == "bad" else 1.0, name="odd")
    with caplog.at_level(logging.WARNING):
        scores = reward([""] * 4, ["bad", "good", "bad", "good"], log_metric=metrics.__setitem__)
    assert scores == [None, 1.0, None, 1.0]
    assert metrics == {"rewards/odd/rejected": 0.5}
    assert len(caplog.records) == 1


def test_a_reward_that_raises_on_one_sample_does_not_end_the_batch(caplog):
    def fragile(response: str) -> float:
        return 1 / len(response)

    reward = for_trl(fragile, name="fragile")
    with caplog.at_level(logging.WARNING):
        assert reward([""] * 3, ["", "ab", ""]) == [None, 0.5, None]
        assert reward([""], [""]) == [None]
    assert len(caplog.records) == 1
    assert "ZeroDivisionError" in caplog.text


def test_none_means_not_applicable_and_is_not_counted():
    metrics = {}
    assert for_trl(lambda response: None, name="skip")(["p"], ["c"], log_metric=metrics.__setitem__) == [None]
    assert metrics == {"rewards/skip/rejected": 0.0}


@given(st.floats())
def test_any_float_comes_out_in_range_or_not_at_all(value):
    (score,) = for_trl(lambda response: value, name="any", low=-1, high=1)(["p"], ["c"])
    assert score is None or -1 <= score <= 1


def test_trl_calls_the_reward_by_its_name():
    assert for_trl(equation, name="graded").__name__ == "graded"
