"""The synthetic thoughts: what they calculate is true, what they answer is what they say, and their habits have the stated rates."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from tinyzero_trl.expression import parse
from tinyzero_trl.pretraining import countdown_traces, multiplication_traces
from tinyzero_trl.task import Outcome, Row
from tinyzero_trl.tasks import countdown, multiplication

LINE = re.compile(r"(.+) = (.+) = (\d+), (yes|no)")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return countdown.load(split="train", source="generated", num_rows=1500, max_numbers=3, seed=4).to_list()


def habits(**changes: object) -> dict[str, object]:
    none = {"skips_checking": 0, "knows": 0, "repeats": 0, "believes_wrong": 0, "doubts_right": 0, "gives_up": [0.0]}
    return {**none, **changes}


def test_every_written_step_is_true_and_every_attempt_uses_the_numbers(rows: list[Row]) -> None:
    for row, thought in zip(rows, countdown_traces.traces(rows, seed=0), strict=True):
        for line in thought.split("\n</think>")[0].split("\n")[1:]:
            if line.endswith(", maybe"):
                continue
            match = LINE.fullmatch(line)
            assert match, line
            attempt, steps = parse(match[1]), parse(match[2])
            assert attempt is not None
            assert steps is not None
            assert attempt.value == steps.value == int(match[3])
            assert sorted(attempt.numbers) == sorted(row["nums"])


def test_a_thought_in_the_base_format_is_a_response_the_verifier_reads(rows: list[Row]) -> None:
    outcomes = Counter(
        countdown.verify("<think>" + thought, **row).outcome
        for row, thought in zip(rows, countdown_traces.traces(rows, seed=0), strict=True)
    )
    assert set(outcomes) == {Outcome.correct, Outcome.wrong_value}
    assert all(countdown.exact_format("<think>" + t) == 1.0 for t in countdown_traces.traces(rows[:50], seed=0))


def test_the_habits_of_the_base_model_solve_less_than_a_third(rows: list[Row]) -> None:
    solved = sum(
        countdown.equation("<think>" + thought, **row)
        for row, thought in zip(rows, countdown_traces.traces(rows, seed=1), strict=True)
    )
    assert 0.2 < solved / len(rows) < 0.33


def test_without_bad_habits_a_yes_is_always_right_and_ends_the_thought(rows: list[Row]) -> None:
    for row, thought in zip(rows, countdown_traces.traces(rows, seed=2, **habits()), strict=True):
        judgements = re.findall(r"= (\d+), (yes|no)", thought)
        assert all((int(value) == row["target"]) == (word == "yes") for value, word in judgements)
        assert [word for _, word in judgements[:-1]] == ["no"] * (len(judgements) - 1)


def test_without_repeats_no_attempt_is_made_twice(rows: list[Row]) -> None:
    for thought in countdown_traces.traces(rows[:300], seed=3, **habits(max_attempts=5)):
        attempts = re.findall(r"^(.+?) =", thought, flags=re.M)
        assert len(attempts) == len(set(attempts))


def test_attempts_are_every_legal_expression_of_three_numbers() -> None:
    """Counted by hand for 2, 3, 7: values of `(a op b) op c` and `c op (a op b)` inside 0..300, sums and products once."""
    values = {a.expression: a.value for a in countdown_traces.attempts((2, 3, 7))}
    assert values["(3 * 2) + 7"] == 13
    assert values["7 - (3 - 2)"] == 6
    assert values["(7 - 3) / 2"] == 2
    assert "(2 + 3) + 7" not in values, "the sum is written with its larger number first"
    assert "(2 - 3) + 7" not in values, "negative"
    assert "7 / (3 - 2)" in values
    assert all(parse(text).value == value for text, value in values.items())  # type: ignore[union-attr]


def test_a_number_that_occurs_twice_is_used_twice() -> None:
    assert all(sorted(parse(a.expression).numbers) == [5, 5, 9] for a in countdown_traces.attempts((5, 5, 9)))  # type: ignore[union-attr]


def test_traces_are_a_function_of_rows_and_seed(rows: list[Row]) -> None:
    first, again, other = (list(countdown_traces.traces(rows[:50], seed=seed)) for seed in (5, 5, 6))
    assert first == again != other


def test_a_product_is_split_right_or_guessed_near() -> None:
    rows = [{"a": a, "b": b} for a in range(10, 60, 7) for b in range(11, 99, 8)]
    for row, thought in zip(rows, multiplication_traces.traces(rows, seed=0, guesses=0.0), strict=True):
        assert multiplication.verify("<think>" + thought, **row).outcome is Outcome.correct
        line = thought.split("\n")[1]
        assert {parse(part).value for part in line.split(" = ")} == {row["a"] * row["b"]}  # type: ignore[union-attr]
    guessed = list(multiplication_traces.traces(rows, seed=0, guesses=1.0))
    assert all("maybe" in thought for thought in guessed)
    right = sum(
        multiplication.verify("<think>" + t, **r).outcome is Outcome.correct for r, t in zip(rows, guessed, strict=True)
    )
    assert right < 0.1 * len(rows)


def test_few_products_are_drawn_often_and_in_either_order() -> None:
    drawn = multiplication_traces.draw([{"a": 12, "b": 34}], num_rows=40, rng=random.Random(0))
    assert {(row["a"], row["b"]) for row in drawn} == {(12, 34), (34, 12)}
