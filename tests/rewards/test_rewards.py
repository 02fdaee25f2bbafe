"""The lift to TRL's batch signature: what a reward gets, and what it cannot break."""

from __future__ import annotations

import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyzero_trl.rewards import columns_of, exact_format, for_trl, why_not_a_reward
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


TEXTS = ["a", "bb", "ccc"]
MESSAGES = [[{"role": "assistant", "content": text}] for text in TEXTS]


async def _awaited_length(response, *, bonus=0.0):
    import asyncio

    await asyncio.sleep(0)
    if response == "bb":
        raise RuntimeError("no")
    return len(response) + bonus


class _Judge:
    async def __call__(self, response):
        return 0.5


def test_an_async_reward_is_awaited_for_each_response_and_one_that_raises_costs_its_sample(caplog):
    from functools import partial

    for reward in (_awaited_length, partial(_awaited_length, bonus=0.0), lambda response: _awaited_length(response)):
        assert for_trl(reward, name="r")(["p"] * 3, TEXTS) == [1.0, None, 3.0]
    assert "RuntimeError" in caplog.text
    assert for_trl(_Judge(), name="r")(["p"] * 3, TEXTS) == [0.5] * 3


def test_calls_of_an_async_reward_wait_side_by_side():
    import asyncio

    waiting = []

    async def slow(response):
        waiting.append(response)
        while len(waiting) < 32:  # one after another, the first would wait for ever
            await asyncio.sleep(0)
        return 1.0

    assert for_trl(slow, name="slow")(["p"] * 32, ["c"] * 32) == [1.0] * 32


def test_a_reward_that_calls_exit_costs_its_sample_and_not_the_run():
    def leaving(response):
        raise SystemExit(0)

    assert for_trl(leaving, name="leaving")(["p"], ["c"]) == [None]


def _prompts_and_kwargs(prompts, completions, **kwargs):
    assert len(prompts) == len(completions) == len(kwargs["completion_ids"]) == len(kwargs["target"])
    return [float(len(c if isinstance(c, str) else c[0]["content"])) for c in completions]


def _completions_and_kwargs(completions, **kwargs):
    return _prompts_and_kwargs(kwargs.pop("prompts"), completions, **kwargs)


def _completions_and_column(completions, target):
    return [float(value) for value in target]


def _all_in_kwargs(**kwargs):
    return _prompts_and_kwargs(kwargs.pop("prompts"), kwargs.pop("completions"), **kwargs)


async def _async_for_trl(prompts, completions, **kwargs):
    return _prompts_and_kwargs(prompts, completions, **kwargs)


def _with_state(completions, trainer_state, log_metric, log_extra, **kwargs):
    log_metric("seen", 1.0)
    log_extra("step", [trainer_state] * len(completions))
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (_prompts_and_kwargs, [1, 2, 3]),
        (_completions_and_kwargs, [1, 2, 3]),
        (_completions_and_column, [7, 8, 9]),
        (_all_in_kwargs, [1, 2, 3]),
        (_async_for_trl, [1, 2, 3]),
        (_with_state, [1, 1, 1]),
    ],
)
@pytest.mark.parametrize("completions", [TEXTS, MESSAGES], ids=["text", "messages"])
def test_a_reward_written_for_trl_gets_the_batch_as_trl_passes_it(reward, expected, completions):
    assert why_not_a_reward(reward) is None
    seen = {}
    extra = {
        "completion_ids": [[1]] * 3,
        "target": [7, 8, 9],
        "prefill": ["<think>"] * 3,
        "trainer_state": object(),
        "log_extra": lambda name, values: seen.update({name: values}),
    }
    found = for_trl(reward, name="r")(["p"] * 3, completions, log_metric=lambda name, value: None, **extra)
    assert found == expected


def test_the_columns_of_a_reward_written_for_trl_are_those_that_trl_does_not_pass():
    assert columns_of(_completions_and_column) == ("target",)
    assert columns_of(_prompts_and_kwargs) == columns_of(_with_state) == ()


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ([1.0, None, 0.5], [1.0, None, 0.5]),
        ((1, True, 0), [1.0, 1.0, 0.0]),
        ([1.0, math.nan, math.inf], [1.0, None, None]),
        ([1.0, "1", 1000.0], [1.0, None, None]),
        ([1.0, [2.0], {}], [1.0, None, None]),
        ([1.0], [None] * 3),
        ([1.0] * 4, [None] * 3),
        ([], [None] * 3),
        (None, [None] * 3),
        (1.0, [None] * 3),
        ("abc", [None] * 3),
        ({0: 1.0, 1: 1.0, 2: 1.0}, [None] * 3),
        (ValueError("no"), [None] * 3),
        (SystemExit(0), [None] * 3),
    ],
)
def test_what_a_reward_written_for_trl_gives_wrongly_is_left_out(returned, expected):
    def reward(completions, **kwargs):
        if isinstance(returned, BaseException):
            raise returned
        return returned

    logged = {}
    found = for_trl(reward, name="r")(["p"] * 3, TEXTS, log_metric=logged.__setitem__, completion_ids=[[1]] * 3)
    assert found == expected
    is_trouble = expected != [1.0, None, 0.5] and None in expected
    assert (logged["rewards/r/rejected"] > 0) is is_trouble


def test_a_reward_written_for_trl_may_give_an_array():
    import numpy as np

    assert for_trl(lambda completions, **kwargs: np.array([1, 2, 3]) / 2, name="r")(["p"] * 3, TEXTS) == [0.5, 1.0, 1.5]


def _yielding(response):
    yield 1.0


async def _yielding_async(response):
    yield 1.0


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (3, "is a int, and a reward is a function"),
        ("text", "is a str"),
        (_Judge, "is a class; name a function, or an instance of it: _judge = _Judge()"),
        (_yielding, "yields"),
        (_yielding_async, "yields"),
        (lambda response, trainer_state: 1.0, "reads trainer_state, which TRL passes for a whole batch"),
        (lambda response, *, log_extra=None: 1.0, "reads log_extra"),
        (lambda response, log_metric, environments: 1.0, "reads log_metric, environments"),
        (lambda response, *, completion_ids: 1.0, "write completion_ids=None"),
        (lambda: 1.0, "takes the response first"),
        (lambda response, answer, /: 1.0, "by place alone"),
    ],
)
def test_what_is_no_reward_is_refused_in_one_line(reward, message):
    assert message in str(why_not_a_reward(reward))
    assert "\n" not in str(why_not_a_reward(reward))
