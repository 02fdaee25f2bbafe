"""Multiplication: what counts as solved, and where rows come from."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyzero_trl.tasks.multiplication import TASK, graded, key_of, load, product, split_of, verify


def response_with(answer: str) -> str:
    return f"<think>a</think>\n<answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("56088", "correct"),
        ("\n 56088 \n", "correct"),
        ("56089", "wrong_value"),
        ("0", "wrong_value"),
        *(
            (answer, "illegal_expression")
            for answer in ("056088", "+56088", "-56088", "56,088", "56 088", "56088.0", "5.6e4")
        ),
        *(
            (answer, "illegal_expression")
            for answer in ("123 * 456", "= 56088", "56088 or 1", "٥٦٠٨٨", "５６０８８", "", "x")
        ),
        ("9" * 1_000_000, "illegal_expression"),
    ],
)
def test_an_answer_has_its_outcome(answer, outcome):
    verdict = verify(response_with(answer), a=123, b=456)
    assert verdict.outcome == outcome
    assert product(response_with(answer), a=123, b=456) == (1.0 if outcome == "correct" else 0.0)
    assert graded(response_with(answer), a=123, b=456) == (1.0 if outcome == "correct" else 0.1)


@pytest.mark.parametrize(
    ("response", "outcome", "outcome_if_truncated"),
    [
        ("<think>a</think><answer>56088</answer></s>", "correct", "correct"),
        ("<think>56088</think>", "no_answer", "truncated"),
        ("<think>a</think><answer>1</answer><answer>56088</answer>", "bad_format", "truncated"),
        ("<think>a</think><answer>560", "bad_format", "truncated"),
    ],
)
def test_a_response_has_its_outcome(response, outcome, outcome_if_truncated):
    assert verify(response, a=123, b=456).outcome == outcome
    assert verify(response, a=123, b=456, is_truncated=True).outcome == outcome_if_truncated


@given(st.integers(0, 10**9 - 1), st.integers(0, 10**9 - 1), st.integers(0, 10**18))
def test_only_the_product_is_correct(a, b, other):
    assert product(response_with(str(a * b)), a=a, b=b) == 1.0
    assert product(response_with(str(other)), a=a, b=b) == float(other == a * b)


@given(st.text())
def test_any_text_earns_a_number(text):
    assert product(text, a=2, b=3) == 0.0
    assert graded(response_with(text), a=2, b=3) in (0.0, 0.1, 1.0)


def test_generated_splits_share_no_problem_and_repeat_none():
    keys = [
        key_of(row)
        for split, num_rows in (("train", 4000), ("validation", 100), ("test", 200))
        for row in load(split=split, num_rows=num_rows)
    ]
    assert len(keys) == len(set(keys)) == 4300
    assert load(split="train", num_rows=20, seed=1)[:] == load(split="train", num_rows=20, seed=1)[:]


@given(st.integers(0, 999), st.integers(0, 999))
def test_the_order_of_the_factors_does_not_change_the_split(a, b):
    assert split_of({"a": a, "b": b}) == split_of({"a": b, "b": a})


def test_more_problems_than_there_are_cannot_be_generated():
    with pytest.raises(ValueError, match="cannot generate 100 distinct train problems"):
        load(split="train", num_rows=100, min_factor=1, max_factor=9)


@pytest.mark.parametrize(
    "bad", [{"a": 1}, {"a": "1", "b": 2}, {"a": True, "b": 2}, {"a": 1.0, "b": 2}, {"a": -1, "b": 2}]
)
def test_a_row_that_is_not_a_problem_is_named(tmp_path, bad):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"a": 2, "b": 3}) + "\n" + json.dumps(bad) + "\n")
    with pytest.raises(ValueError, match="row 1 "):
        load(split="train", source=str(path))


def test_the_tinyzero_split_is_of_countdown_only():
    with pytest.raises(ValueError, match="split rule problem only"):
        load(split="train", num_rows=10, split_rule="tinyzero")


@pytest.mark.parametrize("name", TASK.formats)
def test_every_prompt_names_both_factors(name):
    assert "123 * 456" in str(TASK.formats[name]({"a": 123, "b": 456})["prompt"])
    assert TASK.difficulty({"a": 12, "b": 456}) == "3 by 2 digits"
