"""The synthetic search trees: their steps are true, their answers are what they calculated, and the writer chooses blindly."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tinyzero_trl.expression import parse
from tinyzero_trl.pretraining import countdown_trees
from tinyzero_trl.task import Outcome, Row
from tinyzero_trl.tasks import countdown

BEHAVIOURS = countdown.TASK.behaviours
PATIENT = {
    "skips_checking": 0.0,
    "repeats": 0.0,
    "abandons": 0.0,
    "believes_wrong": 0.0,
    "doubts_right": 0.0,
    "gives_up": [0.0],
}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return countdown.load(split="train", source="generated", num_rows=600, seed=4).to_list()


def test_every_step_is_true_and_uses_a_number_that_is_left(rows: list[Row]) -> None:
    """Reads the tree by itself: the parent of a line is the nearest line above with one level less."""
    for row, thought in zip(rows, countdown_trees.traces(rows, seed=0), strict=True):
        path: list[tuple[int, list[int]]] = []
        for line in thought.split("\n</think>")[0].split("\n")[1:]:
            *left, operator, number, value = re.fullmatch(r" *(?:(\d+) )?(\S+) (\d+) = (\d+)", line).groups()  # type: ignore[union-attr]
            level = (len(line) - len(line.lstrip())) // 2
            a, b = (path[level - 1][0] if level else int(left[0])), int(number)
            rest = list(path[level - 1][1] if level else row["nums"])
            for used in [b] if level else [a, b]:
                rest.remove(used)
            if operator in ("from", "into"):
                a, b, operator = b, a, "-" if operator == "from" else "/"
            assert parse(f"{a} {operator} {b}").value == int(value) > 0  # type: ignore[union-attr]
            path[level:] = [(int(value), rest)]


def test_the_answer_is_the_last_attempt(rows: list[Row]) -> None:
    outcomes: Counter[Outcome] = Counter()
    for row, thought in zip(rows, countdown_trees.traces(rows, seed=1, **PATIENT), strict=True):
        verdict = countdown.verify("<think>" + thought, **row)
        last = re.findall(r"= (\d+)\n</think>", thought)
        assert verdict.value == int(last[0])
        outcomes[verdict.outcome] += 1
    assert set(outcomes) == {Outcome.correct, Outcome.wrong_value}


def test_without_bad_habits_the_target_ends_the_thought(rows: list[Row]) -> None:
    for row, thought in zip(rows, countdown_trees.traces(rows, seed=2, **PATIENT), strict=True):
        is_solved = countdown.equation("<think>" + thought, **row) == 1.0
        assert is_solved or BEHAVIOURS["attempts/mean"]("<think>" + thought) == countdown_trees.Habits.max_attempts


def _chance(values: list[int], target: int) -> float:
    """The probability that uniform draws from the legal steps, each from the last value, end at the target; by brute force."""
    if len(values) == 1:
        return float(values[0] == target)
    last, *rest = values
    outcomes = []
    for at, number in enumerate(rest):
        left = rest[:at] + rest[at + 1 :]
        results = [last + number, last - number, number - last, last * number]
        results += [a // b for a, b in ((last, number), (number, last)) if a % b == 0]
        outcomes += [[value, *left] for value in results if 0 < value <= countdown_trees.MAX_VALUE]
    return sum(_chance(outcome, target) for outcome in outcomes) / len(outcomes)


def _chance_of_three(nums: list[int], target: int) -> float:
    firsts = []
    for a, b, c in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
        x, y = max(nums[a], nums[b]), min(nums[a], nums[b])
        results = [x + y, x - y, x * y, x // y if x % y == 0 else 0]
        firsts += [[value, nums[c]] for value in results if 0 < value <= countdown_trees.MAX_VALUE]
    return sum(_chance(first, target) for first in firsts) / len(firsts)


def test_the_writer_chooses_blindly_an_attempt_is_right_as_often_as_a_uniform_draw(rows: list[Row]) -> None:
    three = [row for row in rows if len(row["nums"]) == 3]
    expected = sum(_chance_of_three(row["nums"], row["target"]) for row in three) / len(three)
    hasty = {**PATIENT, "gives_up": [1.0]}
    tries = three * 10
    right = sum(
        countdown.equation("<think>" + thought, **row)
        for row, thought in zip(tries, countdown_trees.traces(tries, seed=3, **hasty), strict=True)
    )
    assert right / len(tries) == pytest.approx(expected, abs=4 * (expected / len(tries)) ** 0.5)


def test_traces_are_a_function_of_rows_and_seed(rows: list[Row]) -> None:
    first, again, other = (list(countdown_trees.traces(rows[:50], seed=seed)) for seed in (5, 5, 6))
    assert first == again != other


TREE = "<think>\n48 + 17 = 65\n  - 55 = 10\n    + 3 = 13\n    from 3 = 7\n  from 90 = 25\n</think>\n<answer>{}</answer>"


@pytest.mark.parametrize(
    ("answer", "target", "is_verified"),
    [
        ("((48 + 17) - 55) + 3", 13, 1.0),
        ("3 - ((48 + 17) - 55)", 7, 1.0),
        ("90 - (48 + 17)", 25, 1.0),
        ("((48 + 17) - 55) - 3", 7, 0.0),
        ("((48 + 17) - 55) + 3", 14, 0.0),
    ],
)
def test_an_answer_is_verified_by_the_branch_that_works_it_out(answer: str, target: int, is_verified: float) -> None:
    assert BEHAVIOURS["verified/share"](TREE.format(answer), target=target) == is_verified


def test_branches_are_attempts_and_their_steps_are_judged_one_by_one() -> None:
    response = TREE.format("1")
    assert BEHAVIOURS["attempts/mean"](response) == 3
    assert BEHAVIOURS["repeated/share"](response) == 0
    again = response.replace("  from 90", "48 + 17 = 65\n  - 55 = 10\n    + 3 = 13\n  from 90")
    assert BEHAVIOURS["repeated/share"](again) == 1 / 4
    assert BEHAVIOURS["true_values/share"](response) == 4 / 5, "3 - 10 is not 7"


def test_every_answer_of_a_patient_writer_is_verified(rows: list[Row]) -> None:
    for row, thought in zip(rows[:200], countdown_trees.traces(rows[:200], seed=6, **PATIENT), strict=True):
        response = "<think>" + thought
        assert BEHAVIOURS["true_values/share"](response) == 1.0
        if countdown.equation(response, **row):
            assert BEHAVIOURS["verified/share"](response, **row) == 1.0


def test_a_writer_that_never_repeats_itself_goes_up_where_everything_was_tried(rows: list[Row]) -> None:
    stays = {**PATIENT, "max_attempts": 12, "goes_up": 0.0}
    for row, thought in zip(rows, countdown_trees.traces(rows, seed=7, **stays), strict=True):
        assert BEHAVIOURS["repeated/share"]("<think>" + thought) == 0, row


def test_a_writer_that_checks_subtracts_the_target_behind_whole_attempts_that_are_near_it(rows: list[Row]) -> None:
    for row, thought in zip(rows, countdown_trees.traces(rows, seed=8, **PATIENT, checks_within=12), strict=True):
        target, numbers = row["target"], len(row["nums"])
        for line in thought.split("\n</think>")[0].split("\n")[1:]:
            is_whole = (len(line) - len(line.lstrip())) // 2 == numbers - 2
            value, sign, difference = re.search(r"= (\d+)(?:, (from|-) \d+ = (\d+))?$", line).groups()  # type: ignore[union-attr]
            is_near = is_whole and abs(int(value) - target) <= 12
            assert difference == (str(abs(int(value) - target)) if is_near else None)
            assert sign == (("from" if int(value) < target else "-") if is_near else None)
        response = "<think>" + thought
        assert BEHAVIOURS["true_values/share"](response) == 1.0
        assert BEHAVIOURS["verified/share"](response, **row) == countdown.equation(response, **row)


@pytest.mark.parametrize(
    ("thought", "counted"),
    [
        ("48 + 17 = 65\n  - 55 = 10\n  from 90 = 25", 0),
        ("48 + 17 = 65\n  - 55 = 10\n    + 3 = 13\n    from 3 = 7", 1),
        ("48 + 17 = 65\n  - 55 = 10\n    + 3 = 13\n    - 3 = 7\n    + 3 = 13", 2),
        ("48 + 17 = 66\n  - 55 = 11\n    + 3 = 14", 0),
        ("1 + 1 = 2\n48 + 17 - 55 + 3 = 13, no", 1),
    ],
)
def test_exploration_counts_what_uses_the_numbers_is_calculated_right_and_is_new(thought: str, counted: int) -> None:
    given = {"nums": [3, 48, 17, 55], "target": 90}
    response = f"<think>\n{thought}\n</think>\n<answer>1</answer>"
    assert countdown.exploration(response, **given) == pytest.approx(counted / 60)
    assert countdown.exploration(response, attempts=1, **given) == min(counted, 1)
    assert (
        countdown.exploration("<think></think><answer>48 + 17 - 55 - 3</answer>", nums=[3, 48, 17, 55], target=7) == 1
    )
