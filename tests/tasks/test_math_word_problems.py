"""Word problems made here: exact answers, disjoint splits, and working that leads to the answer."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from tinyzero_trl.expression import parse
from tinyzero_trl.pretraining.math_traces import draw, traces
from tinyzero_trl.tasks.math import load, verify
from tinyzero_trl.tasks.math.word_problems import MAX_VALUE, STORIES, generate, steps_of

ROWS = list(islice(generate(random.Random(1)), 3000))


def test_the_steps_of_a_problem_are_true_and_end_in_its_answer():
    for row in ROWS:
        steps = [line.split(" = ") for line in steps_of(row["problem"])]
        assert len(steps) == int(row["level"])
        assert all(parse(left).value == int(right) for left, right in steps)
        assert all(0 < int(right) <= MAX_VALUE for _, right in steps)
        assert steps[-1][1] == row["answer"]


def test_an_answer_is_right_by_an_argument_of_its_own():
    more = [row for row in ROWS if "together" in row["problem"]]
    numbers = [[int(word) for word in row["problem"].split() if word.isdigit()] for row in more]
    assert more
    assert [int(row["answer"]) for row in more] == [2 * a + b for a, b in numbers]


def test_all_stories_come_up_and_the_same_numbers_always_have_the_same_names():
    assert {row["level"] for row in ROWS} == {"1", "2"}
    by_numbers = {}
    for row in ROWS:
        story = tuple(word for word in row["problem"].split() if not word[0].isupper())
        by_numbers.setdefault((row["level"], story), set()).add(row["problem"])
    assert all(len(texts) == 1 for texts in by_numbers.values())
    assert len(STORIES) == 9


def test_generated_splits_share_no_problem_and_follow_the_seed():
    splits = [load(split=split, source="generated", num_rows=100, seed=5)["problem"][:] for split in ("train", "validation", "test")]  # fmt: skip
    assert len(set().union(*splits)) == 300
    assert splits[0] == load(split="train", source="generated", num_rows=100, seed=5)["problem"][:]
    assert splits[0] != load(split="train", source="generated", num_rows=100, seed=6)["problem"][:]


def test_working_leads_to_the_answer_and_a_guess_shows_none():
    rows = draw(ROWS, num_rows=400, rng=random.Random(2))
    for row, text in zip(rows, traces(rows, seed=3, guesses=0.0), strict=True):
        assert verify(text, answer=row["answer"]).outcome == "correct"
        assert text.splitlines()[:-1] == steps_of(row["problem"])
    guesses = list(traces(rows, seed=3, guesses=1.0))
    assert all("=" not in text for text in guesses)
    right = [verify(text, answer=row["answer"]).outcome == "correct" for row, text in zip(rows, guesses, strict=True)]
    assert sum(right) < 100


def test_other_texts_have_no_steps():
    with pytest.raises(ValueError, match="no problem of source 'generated'"):
        steps_of("Ann has 3 apples. Why?")
