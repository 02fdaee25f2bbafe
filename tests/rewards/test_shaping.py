"""Shaping rewards against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from tinyzero_trl.rewards import GroupReward, for_trl
from tinyzero_trl.rewards.shaping import (
    Attempt,
    boxed,
    coin,
    cosine_scaled,
    reasoning_steps,
    relative_length,
    repetition,
    tag_count,
)
from tinyzero_trl.tasks.math.rewards import cosine, length

HUGE = "a b " * 500_000


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("</answer><answer></think><think>", 1.0),
        ("<think>a</think>", 0.5),
        ("<think><think></think><answer>1</answer>", 0.75),
        ("", 0.0),
        (HUGE, 0.0),
    ],
)
def test_tag_count_is_a_quarter_for_each_tag_that_stands_once(response, reward):
    assert tag_count(response) == reward


@pytest.mark.parametrize(
    ("response", "reward"),
    [(r"\boxed{7}", 1.0), (r"\boxed{}", 0.0), (r"\boxed{ }", 0.0), (r"\boxed{7", 0.0), ("7", 0.0), (r"\boxed{" * 99, 0.0)],
)  # fmt: skip
def test_boxed_wants_something_in_a_box(response, reward):
    assert boxed(response) == reward


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("First, a. Then, b. Finally, c.", 1.0),
        ("Step 1: a\nStep 2: b", 2 / 3),
        ("1. a\n2. b\n3. c\n4. d", 1.0),
        ("- a", 1 / 3),
        ("It is 1. a", 0.0),
        ("5 - 3 = 2\n", 0.0),
        ("", 0.0),
        (HUGE, 0.0),
    ],
)
def test_reasoning_steps_counts_up_to_three_marks(response, reward):
    assert reasoning_steps(response) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("a b c d", 0.0),
        ("a b", 0.0),
        ("a b c a b c", -(1 - 3 / 4)),  # abc bca cab abc
        ("a a a a a", -(1 - 1 / 3)),
        ("A a A", 0.0),
    ],
)
def test_repetition_is_the_share_of_trigrams_said_before(response, reward):
    assert repetition(response) == pytest.approx(reward)


def test_repetition_takes_its_parameters_and_huge_text():
    assert repetition("a a a", ngram_words=1, max_penalty=3.0) == pytest.approx(-2.0)
    assert -1 <= repetition(HUGE) <= 0


@pytest.mark.parametrize(
    ("is_correct", "num_tokens", "reward"),
    [
        (True, 0, 1.0),
        (True, 25, 0.5 + 0.25 * (1 + math.cos(math.pi / 4))),
        (True, 50, 0.75),
        (True, 100, 0.5),
        (True, 200, 0.5),  # the ancestors' cosine comes back to 1.0 here
        (False, 0, -0.5),
        (False, 50, -0.25),
        (False, 100, 0.0),
        (False, 250, 0.0),
    ],
)
def test_cosine_pays_short_right_answers_most_and_blames_long_wrong_ones_least(is_correct, num_tokens, reward):
    scaled = cosine_scaled(
        is_correct=is_correct, num_tokens=num_tokens, max_tokens=100, correct=(1.0, 0.5), wrong=(-0.5, 0.0)
    )
    assert scaled == pytest.approx(reward)


def test_cosine_of_a_response_counts_the_tokens_of_its_completion():
    assert cosine(r"\boxed{7}", answer="7", completion_ids=[1] * 50, max_tokens=100) == pytest.approx(0.75)
    assert cosine(r"\boxed{8}", answer="7", completion_ids=[1] * 50, max_tokens=100) == pytest.approx(-0.25)
    assert cosine(r"\boxed{7}", answer="7") is None


def test_a_coin_falls_evenly_over_problems_and_responses_whether_right_or_wrong():
    thrown = {
        "right": [coin(r"\boxed{7}", problem=f"{i} + 7 - {i}") for i in range(2000)],
        "wrong": [coin(r"\boxed{8}", problem=f"{i} + 7 - {i}") for i in range(2000)],
        "in other words": [coin(rf"{i}: \boxed{{7}}", problem="0 + 7") for i in range(2000)],
    }
    assert all(set(each) == {0.0, 1.0} for each in thrown.values())
    # Five standard deviations of a fair coin thrown 2,000 times.
    assert all(abs(sum(each) / 2000 - 0.5) < 5 * 0.5 / 2000**0.5 for each in thrown.values())
    assert coin("\ud800 \x00", problem="p") == coin("\ud800 \x00", problem="p")


def test_relative_length_compares_a_group():
    group = [Attempt(True, 10), Attempt(True, 20), Attempt(True, 30), Attempt(False, 10), Attempt(False, 30)]
    assert relative_length(group) == [0.5, 0.0, -0.5, 0.0, -0.5]
    assert relative_length([Attempt(True, 10), Attempt(False, 10)]) == [0.0, 0.0]
    assert relative_length([]) == []


def test_length_is_paid_within_the_completions_of_a_prompt():
    reward = for_trl(length, name="length")
    right, wrong = r"\boxed{7}", r"\boxed{8}"
    earned = reward(
        prompts=["p", "p", "p", "q", "q"],
        completions=[right, right, wrong, right, None],
        completion_ids=[[0] * n for n in (10, 30, 20, 99, 5)],
        answer=["7"] * 5,
    )
    assert earned == [0.5, -0.5, 0.0, 0.0, 0.0]
    assert reward(prompts=["p"], completions=[right], answer=["7"]) == [None]


def test_one_response_that_cannot_be_measured_costs_itself_only():
    def measure(response: str) -> float:
        return float(response)

    reward = for_trl(GroupReward(measure, lambda numbers: [n - max(numbers) for n in numbers]), name="over")
    assert reward(["p"] * 4, ["1", "x", "3", "-1000"]) == [-2.0, None, 0.0, None]


@pytest.mark.parametrize("compare", [lambda numbers: 1 / 0, lambda numbers: [], lambda numbers: ["x"] * len(numbers)])
def test_a_comparison_that_fails_costs_its_groups_and_not_the_run(compare):
    reward = for_trl(GroupReward(lambda response: float(response), compare), name="over")
    assert reward(["p", "p", "q"], ["1", "2", "3"]) == [None] * 3


def test_a_group_without_a_measure_is_not_compared():
    reward = for_trl(GroupReward(lambda response: None, lambda numbers: [max(numbers)]), name="over")
    assert reward(["p", "p"], ["1", "2"]) == [None, None]


def test_parameters_of_a_recipe_reach_every_call():
    reward = for_trl(repetition, name="repetition", parameters={"ngram_words": 1, "max_penalty": 3.0})
    assert reward(["p"], ["a a a"]) == [pytest.approx(-2.0)]
