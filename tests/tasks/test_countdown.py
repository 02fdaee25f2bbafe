"""Countdown: what counts as solved, where rows come from, how they are worded."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyzero_trl.task import prompts, resolve
from tinyzero_trl.tasks.countdown import (
    PREFILL,
    TASK,
    equation,
    format_base,
    format_countdown,
    format_instruct,
    format_r1_prefix,
    generate,
    graded,
    key_of,
    load,
    solve,
    split_of,
    verify,
)

HERE = Path(__file__).parent
DATA = HERE.parents[2] / "shared" / "data"
REAL = DATA / "countdown" / "Countdown-Tasks-3to4.parquet"
DEV = DATA / "countdown" / "countdown_dev_2k.jsonl"
needs_real = pytest.mark.skipif(not REAL.is_file(), reason=f"the real Countdown set is not at {REAL}")
needs_dev = pytest.mark.skipif(not DEV.is_file(), reason=f"the solved Countdown rows are not at {DEV}")
needs_tokenizers = pytest.mark.skipif(not (DATA / "tokenizers").is_dir(), reason=f"no tokenizers at {DATA}/tokenizers")

ROW = {"nums": [19, 36, 55], "target": 74}


def response_with(answer: str) -> str:
    return f"<think>a</think>\n<answer>{answer}</answer>"


# What is solved


@pytest.mark.parametrize(
    ("answer", "nums", "target", "outcome"),
    [
        ("(1 + 2) / 3", [1, 2, 3], 1, "correct"),
        ("\n(1 + 2)\n/ 3\n", [3, 1, 2], 1, "correct"),
        ("5*5+5/5", [5, 5, 5, 5], 26, "correct"),
        ("8/(3-8/3)", [3, 3, 8, 8], 24, "correct"),
        ("100000 / 3 * 3", [3, 3, 100000], 100000, "correct"),
        ("2 - 5 + 3", [2, 3, 5], 0, "correct"),
        ("1 + 2", [1, 2, 3], 3, "wrong_numbers"),
        ("1 + 2 + 3 + 3", [1, 2, 3], 9, "wrong_numbers"),
        ("12 + 3", [1, 2, 3], 15, "wrong_numbers"),
        ("74", [19, 36, 55], 74, "wrong_numbers"),
        ("1 + 2 + 3", [1, 2, 3], 7, "wrong_value"),
        ("99999 / 100000", [99999, 100000], 1, "wrong_value"),
        ("(1 + 2) / 3 = 1", [1, 2, 3], 1, "illegal_expression"),
        ("x = (1 + 2) / 3", [1, 2, 3], 1, "illegal_expression"),
        ("3.5*2", [3, 5, 2], 7, "illegal_expression"),
        ("7//2*3", [7, 2, 3], 9, "illegal_expression"),
        ("2**3+1", [2, 3, 1], 9, "illegal_expression"),
        ("-(2-5)*3", [2, 5, 3], 9, "correct"),
        ("(-27 + 96) - 17", [17, 27, 96], 52, "correct"),
        ("-19 + 36 + 55", [19, 36, 55], 72, "correct"),
        ("2 * -3 + 10", [2, 3, 10], 4, "correct"),
        ("-2 + 3", [2, 3, 5], 1, "wrong_numbers"),
        ("-3", [3, 5], -3, "wrong_numbers"),
        ("-3 + 5", [3, 5], 8, "wrong_value"),
        ("-3 - 5", [3, 5], 8, "wrong_value"),
        ("-3 - 5", [3, 5], -8, "illegal_expression"),
        ("-(3 * 5)", [3, 5], -15, "illegal_expression"),
        ("-5 + 3", [3, 5], -2, "correct"),
        ("-0 * 5", [0, 5], 0, "correct"),
        ("--3 + 5", [3, 5], 8, "illegal_expression"),
        ("5 - -3", [3, 5], 8, "illegal_expression"),
        ("+3 + 5", [3, 5], 8, "illegal_expression"),
        ("2 x 3", [2, 3], 6, "illegal_expression"),
        ("2*3e0", [2, 3], 6, "illegal_expression"),
        ("1 / (2 - 2)", [1, 2, 2], 1, "illegal_expression"),
        ("95**96**98", [95, 96, 98], 1, "illegal_expression"),
        ("1, 2, 3", [1, 2, 3], 6, "illegal_expression"),
        ("(1)(2)(3)", [1, 2, 3], 6, "illegal_expression"),
        ("١+٢", [1, 2], 3, "illegal_expression"),
        ("I give up", [1, 2, 3], 1, "illegal_expression"),
        ("", [1, 2, 3], 1, "illegal_expression"),
    ],
)
def test_an_answer_has_its_outcome_and_only_a_solution_earns_anything(answer, nums, target, outcome):
    response = response_with(answer)
    verdict = verify(response, nums=nums, target=target)
    assert verdict.outcome == outcome
    assert verdict.answer == answer.strip()
    assert equation(response, nums=nums, target=target) == (1.0 if outcome == "correct" else 0.0)
    assert graded(response, nums=nums, target=target) == (1.0 if outcome == "correct" else 0.1)


@pytest.mark.parametrize(
    ("response", "outcome", "outcome_if_truncated", "exact"),
    [
        ("<think>a</think>\n<answer> (1 + 2) / 3 </answer><eos>", "correct", "correct", 1.0),
        ("<think>a</think>\n<answer>(1 + 2) / 3</answer>\n", "correct", "correct", 1.0),
        ("<think>a</think><answer>(1 + 2) / 3</answer> Done.", "correct", "correct", 0.0),
        ("<think>a</think>\n\n<answer>(1 + 2) / 3</answer>", "correct", "correct", 1.0),
        ("<think>a<answer>(1 + 2) / 3</answer>", "bad_format", "truncated", 0.0),
        ("<think>a <answer>(1 + 2) / 3</answer></think>", "bad_format", "truncated", 0.0),
        ("<think>a</think><answer>1</answer><answer>(1 + 2) / 3</answer>", "bad_format", "truncated", 0.0),
        ("<think>a</think><answer>(1 + 2) / 3</answer></answer></answer>", "bad_format", "truncated", 0.0),
        ("<think>a</think></think><answer>(1 + 2) / 3</answer>", "bad_format", "truncated", 0.0),
        ("<think>a</think><answer>(1 + 2) / 3", "bad_format", "truncated", 0.0),
        ("<think>a</think> (1 + 2) / 3", "no_answer", "truncated", 0.0),
        ("<think>a", "no_answer", "truncated", 0.0),
        ("", "no_answer", "truncated", 0.0),
    ],
)
def test_a_response_has_its_outcome(response, outcome, outcome_if_truncated, exact):
    assert verify(response, nums=[1, 2, 3], target=1).outcome == outcome
    assert verify(response, nums=[1, 2, 3], target=1, is_truncated=True).outcome == outcome_if_truncated
    assert TASK.rewards["format"](response) == exact
    assert equation(response, nums=[1, 2, 3], target=1) == (1.0 if outcome == "correct" else 0.0)


@needs_dev
def test_every_checked_solution_of_the_real_rows_verifies_and_ours_too():
    for line in DEV.read_text().splitlines():
        row = json.loads(line)
        columns = {"nums": row["nums"], "target": row["target"]}
        ours = solve(**columns)
        assert ours is not None
        assert equation(response_with(row["solution"]), **columns) == 1.0
        assert equation(response_with(ours), **columns) == 1.0
        assert (
            verify(response_with(row["solution"]), nums=row["nums"], target=row["target"] + 1).outcome == "wrong_value"
        )


def every_value(nums: tuple[int, ...]) -> dict[Fraction, str]:
    """All values reachable from `nums`, each with one way to write it: splits into two parts, written apart from solve."""
    if len(nums) == 1:
        return {Fraction(nums[0]): str(nums[0])}
    found: dict[Fraction, str] = {}
    for size in range(1, len(nums)):
        for chosen in itertools.combinations(range(len(nums)), size):
            left = tuple(nums[i] for i in chosen)
            right = tuple(nums[i] for i in range(len(nums)) if i not in chosen)
            for (a, x), (b, y) in itertools.product(every_value(left).items(), every_value(right).items()):
                found.setdefault(a + b, f"({x})+({y})")
                found.setdefault(a - b, f"({x})-({y})")
                found.setdefault(a * b, f"({x})*({y})")
                if b != 0:
                    found.setdefault(a / b, f"({x})/({y})")
    return found


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=3))
def test_the_verifier_and_the_solver_agree_with_an_exhaustive_search(nums):
    values = every_value(tuple(nums))
    for value, text in values.items():
        verdict = verify(response_with(text), nums=nums, target=0)
        assert verdict.value == value
        assert verdict.outcome == ("correct" if value == 0 else "wrong_value")
    whole = {int(value) for value in values if value.denominator == 1}
    for target in range(-10, 40):
        assert (solve(nums, target) is not None) == (target in whole)


def signed(text: str) -> tuple[str, str]:
    return text, f"-{text}"


def every_expression(nums: tuple[int, ...]) -> list[str]:
    """All that is written with each of `nums` once, with a minus in front of any number and any parenthesis."""
    if len(nums) == 1:
        return [*signed(str(nums[0]))]
    found = []
    for size in range(1, len(nums)):
        for chosen in itertools.combinations(range(len(nums)), size):
            left = tuple(nums[i] for i in chosen)
            right = tuple(nums[i] for i in range(len(nums)) if i not in chosen)
            for x, operator, y in itertools.product(every_expression(left), "+-*/", every_expression(right)):
                found += signed(f"({x}{operator}({y}))")
    return found


@pytest.mark.parametrize("nums", [(0, 0), (3, 5), (7, 7), (0, 4), (1, 2, 3), (3, 5, 5), (0, 6, 2), (8, 3, 1)])
def test_a_minus_in_front_solves_no_problem_that_has_no_solution_without_it(nums):
    """Brute force, targets below zero too; and every problem that was solved without the minus still is."""
    solvable = {int(value) for value in every_value(nums) if value.denominator == 1}
    solved = set()
    for text in every_expression(nums):
        verdict = verify(response_with(text), nums=nums, target=10**6)
        if verdict.value is not None and verdict.value.denominator == 1:
            target = int(verdict.value)
            if verify(response_with(text), nums=nums, target=target).outcome == "correct":
                solved.add(target)
    assert solved == solvable


@pytest.mark.parametrize("left_out", range(3))
def test_a_minus_in_front_leaves_no_number_out(left_out):
    nums = [19, 36, 55]
    kept = tuple(number for place, number in enumerate(nums) if place != left_out)
    for text in every_expression(kept):
        value = verify(response_with(text), nums=nums, target=0).value
        if value is not None and value.denominator == 1:
            assert verify(response_with(text), nums=nums, target=int(value)).outcome == "wrong_numbers"


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(1, 99), min_size=4, max_size=4), st.integers(10, 100))
def test_the_solver_finds_four_numbers_exactly_when_there_is_a_way(nums, target):
    solution = solve(nums, target)
    assert (solution is not None) == (target in every_value(tuple(nums)))
    assert solution is None or equation(response_with(solution), nums=nums, target=target) == 1.0


def test_the_solver_finds_what_needs_fractions():
    assert equation(response_with(solve([3, 3, 8, 8], 24)), nums=[3, 3, 8, 8], target=24) == 1.0
    assert solve([1, 1, 1], 100) is None


@given(st.text(), st.lists(st.integers(0, 99), min_size=2, max_size=6), st.integers(0, 100), st.booleans())
def test_any_text_has_one_outcome(text, nums, target, is_truncated):
    for response in (text, response_with(text), f"<think>{text}</think><answer>{text}</answer>{text}"):
        assert verify(response, nums=nums, target=target, is_truncated=is_truncated).outcome in TASK.outcomes


@given(st.lists(st.integers(1, 99), min_size=3, max_size=4), st.lists(st.integers(1, 99), min_size=3, max_size=4))
def test_an_expression_is_correct_only_for_its_own_numbers(used, given_numbers):
    verdict = verify(response_with(" + ".join(map(str, used))), nums=given_numbers, target=sum(used))
    assert (verdict.outcome == "correct") == (sorted(used) == sorted(given_numbers))


@pytest.mark.parametrize(
    "num_responses", [50_000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.nightly])]
)
def test_the_fuzzer_finds_nothing_against_its_own_oracle(num_responses):
    fuzz = resolve(f"{HERE}/fuzz_countdown.py:fuzz", among={}, kind="fuzzer")
    result = fuzz(num_responses, seed=num_responses)
    assert result.disagreements == []
    assert set(result.num_by_outcome) == set(TASK.outcomes)
    assert result.at(0.5) < 2000, "microseconds; 20 on an idle machine"


@pytest.mark.parametrize(
    "answer", ["(" * 100_000, "9**9**9", "2**2**36", "9" * 1_000_000, "1" * 10_000_000, "1+" * 120 + "1", "\x00" * 99]
)
def test_no_answer_takes_long(answer):
    start = time.process_time()
    assert equation(response_with(answer), nums=[1, 2, 3], target=6) == 0.0
    assert time.process_time() - start < 1, "10 ms at most on an idle machine"


def test_judging_warns_of_nothing():
    code = (
        "from tinyzero_trl.tasks.countdown import equation\n"
        "for answer in ('(1+2)(3)', '2(3)', '01+2', '1if 1else 2', '9**9**9'):\n"
        "    assert equation(f'<think>a</think><answer>{answer}</answer>', nums=[1, 2, 3], target=9) == 0.0\n"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""


# Where rows come from


def test_generated_rows_are_the_same_for_a_seed_and_differ_between_seeds():
    first = load(split="train", source="generated", num_rows=50, seed=3)
    assert first[:] == load(split="train", source="generated", num_rows=50, seed=3)[:]
    assert first[:] != load(split="train", source="generated", num_rows=50, seed=4)[:]


def test_generated_rows_do_not_depend_on_the_hash_seed():
    code = (
        "from tinyzero_trl.tasks.countdown import generate; import random, itertools; "
        "g = generate(random.Random('x'), num_numbers=(3, 6), numbers=(1, 99), targets=(10, 100)); "
        "print(list(itertools.islice(g, 100)))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_generated_rows_are_solvable_and_in_range():
    draw = random.Random(0)
    rows = list(itertools.islice(generate(draw, num_numbers=(3, 4), numbers=(2, 30), targets=(20, 50)), 300))
    for row in rows:
        assert all(2 <= number <= 30 for number in row["nums"])
        assert 20 <= row["target"] <= 50
        assert solve(row["nums"], row["target"]) is not None
    assert {len(row["nums"]) for row in rows} == {3, 4}
    assert {len(row["nums"]) for row in load(split="test", source="generated", num_rows=60, max_numbers=6)} == {
        3,
        4,
        5,
        6,
    }


def test_generated_splits_share_no_problem_and_repeat_none():
    keys_by_split = {
        split: [key_of(row) for row in load(split=split, source="generated", num_rows=num_rows)]
        for split, num_rows in (("train", 5000), ("validation", 200), ("test", 300))
    }
    everything = list(itertools.chain(*keys_by_split.values()))
    assert len(everything) == len(set(everything)) == 5500


def test_twenty_thousand_rows_are_generated():
    assert len(load(split="train", source="generated", num_rows=20_000)) == 20_000


@given(st.permutations([7, 7, 19, 36]), st.integers(1, 100))
def test_the_order_of_the_numbers_does_not_change_the_split(nums, target):
    assert split_of({"nums": nums, "target": target}) == split_of({"nums": [7, 7, 19, 36], "target": target})


def test_the_split_rule_never_moves():
    rows = [{"nums": [a, b, 3], "target": 10} for a in range(1, 100) for b in range(1, 100)]
    num_by_split = {split: sum(split_of(row) == split for row in rows) for split in ("train", "validation", "test")}
    assert num_by_split == {"train": 9517, "validation": 115, "test": 169}
    assert split_of(ROW) == "train"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_local_file_gives_every_problem_once_in_one_split(tmp_path, suffix):
    rows = [{"nums": [a, b, 5], "target": 10 + a, "note": "x"} for a in range(1, 30) for b in range(1, 30)]
    path = write_rows(tmp_path / f"rows{suffix}", rows)
    loaded = [row for split in ("train", "validation", "test") for row in load(split=split, source=str(path))]
    assert all(set(row) == {"nums", "target"} for row in loaded)
    assert sorted(map(key_of, loaded)) == sorted({key_of(row) for row in rows})


def test_a_sample_of_a_file_is_fixed_by_its_seed(tmp_path):
    path = str(
        write_rows(tmp_path / "rows.jsonl", [{"nums": [a, b, 5], "target": a} for a in range(30) for b in range(30)])
    )
    sample = load(split="train", source=path, num_rows=20, seed=1)
    assert sample[:] == load(split="train", source=path, num_rows=20, seed=1)[:]
    assert sample[:] != load(split="train", source=path, num_rows=20, seed=2)[:]
    with pytest.raises(ValueError, match=r"5000 train rows were asked of .*rows.jsonl, which has \d+"):
        load(split="train", source=path, num_rows=5000)


GOOD = {"nums": [1, 2, 3], "target": 6}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"nums": [1, 2, 3]}, "row 1 .*no 'target'"),
        ({"target": 3}, "row 1 .*no 'nums'"),
        ({"nums": [1, "2", 3], "target": 6}, "row 1 .*'nums' must be integers"),
        ({"nums": [1, True, 3], "target": 6}, "row 1 .*'nums' must be integers"),
        ({"nums": [1, 2.0, 3], "target": 6}, "row 1 .*'nums' must be integers"),
        ({"nums": [1, None, 3], "target": 6}, "row 1 .*'nums' must be integers"),
        ({"nums": [1, -2, 3], "target": 6}, "row 1 .*'nums' must be integers"),
        ({"nums": "123", "target": 6}, "row 1 .*'nums' must be a list"),
        ({"nums": [], "target": 6}, "row 1 .*'nums' must be a list"),
        ({"nums": [5], "target": 5}, "row 1 .*'nums' must be a list of 2 to 6"),
        ({"nums": None, "target": 6}, "row 1 .*'nums' must be a list"),
        ({"nums": [1, 2, 3], "target": "6"}, "row 1 .*'target' must be an integer"),
        ({"nums": [1, 2, 3], "target": True}, "row 1 .*'target' must be an integer"),
        ({"nums": [1, 2, 3], "target": 6.0}, "row 1 .*'target' must be an integer"),
        ({"nums": [1, 2, 3], "target": None}, "row 1 .*'target' must be an integer"),
        ([1, 2, 3], "row 1 .*a row is an object"),
    ],
)
def test_a_row_that_is_not_a_problem_is_named(tmp_path, bad, message):
    path = write_rows(tmp_path / "rows.jsonl", [GOOD, bad, GOOD])
    with pytest.raises(ValueError, match=message):
        load(split="train", source=str(path))


def test_a_parquet_row_that_is_not_a_problem_is_named(tmp_path):
    path = write_rows(tmp_path / "rows.parquet", [GOOD, {"nums": [1.5, 2.0], "target": 6}])
    with pytest.raises(ValueError, match=r"row 0 .*'nums' must be integers"):
        load(split="train", source=str(path))


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("missing.parquet", None, FileNotFoundError, r"no data file .*missing.parquet"),
        ("missing.jsonl", None, FileNotFoundError, r"no data file .*missing.jsonl"),
        ("empty.jsonl", b"", ValueError, r"empty.jsonl has no rows"),
        ("empty.json", b"", ValueError, r"empty.json has no rows"),
        ("list.json", b"[]", ValueError, r"list.json has no rows"),
        ("object.json", b"{}", ValueError, r"must hold a list of rows, not a dict"),
        ("cut.json", b'[{"nums": [1', ValueError, r"cut.json is not JSON"),
        ("cut.jsonl", b'{"nums": [1, 2], "target": 3}\n{"nums": [1', ValueError, r"cut.jsonl, line 2 is not JSON"),
        ("latin.jsonl", b"\xff\xfe", ValueError, r"not UTF-8"),
        ("text.parquet", b"PAR1 not really", ValueError, r"cannot be read as parquet"),
        ("empty.parquet", b"", ValueError, r"cannot be read as parquet"),
        ("rows.csv", b"nums,target\n", ValueError, r"rows.csv has no rows"),
        ("rows.zip", b"PK", ValueError, r"not a .parquet, .json, .jsonl, .csv or .tsv"),
    ],
)
def test_a_file_that_cannot_be_read_says_so_in_one_line(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message) as raised:
        load(split="train", source=str(tmp_path / name))
    assert "\n" not in str(raised.value)


def test_a_parquet_file_without_a_column_lists_those_it_has(tmp_path):
    path = write_rows(tmp_path / "rows.parquet", [{"numbers": [1, 2, 3], "target": 6}])
    with pytest.raises(ValueError, match="has no column nums; it has numbers, target"):
        load(split="train", source=str(path))


def test_a_folder_that_no_prepare_script_made_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"was not made by a prepare script"):
        load(split="train", source=str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tset"}, "no split 'tset'; there is train, validation, test"),
        ({"split_rule": "random"}, "no split rule 'random'; there is problem, tinyzero"),
        ({"num_rows": 0}, "num_rows must be at least 1"),
        ({"num_rows": None}, "needs num_rows"),
        ({"split_rule": "tinyzero"}, "needs num_rows, and split rule 'problem'"),
        ({"min_numbers": 2}, "3 <= min_numbers"),
        ({"max_numbers": 7}, "max_numbers <= 6"),
        ({"min_number": 50, "max_number": 20}, "min_number <= max_number"),
        ({"min_target": 0}, "1 <= min_target"),
        ({"max_numbers": 3, "max_number": 5, "num_rows": 500}, "cannot generate 500 distinct train problems"),
    ],
)
def test_what_cannot_be_loaded_says_why(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(**{"split": "train", "source": "generated", "num_rows": 10, **arguments})


def test_ranges_in_which_nothing_can_be_generated_end_with_an_error():
    with pytest.raises(ValueError, match=r"no target in \(1000, 2000\) was found"):
        load(
            split="train",
            source="generated",
            num_rows=10,
            max_numbers=3,
            max_number=2,
            min_target=1000,
            max_target=2000,
        )


def test_an_unreachable_hub_is_one_clear_line(monkeypatch):
    import datasets

    def refuse(*arguments, **keywords):
        raise ConnectionError("Couldn't reach 'Jiayi-Pan/Countdown-Tasks-3to4' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        ValueError, match=r"nor readable from the hub \(ConnectionError: Couldn't reach.*Offline, give"
    ) as raised:
        load(split="train")
    assert "\n" not in str(raised.value)


def test_a_hub_dataset_is_checked_like_a_file(monkeypatch):
    import datasets

    rows = datasets.Dataset.from_list([{"nums": [a, 2, 3], "target": 6, "extra": 1} for a in range(1, 90)])
    monkeypatch.setattr(datasets, "load_dataset", lambda source, name=None, *, split: rows)
    assert load(split="train", source="someone/rows").column_names == ["nums", "target"]
    monkeypatch.setattr(datasets, "load_dataset", lambda source, name=None, *, split: rows.remove_columns("nums"))
    with pytest.raises(ValueError, match="someone/rows has no column nums; it has target, extra"):
        load(split="train", source="someone/rows")


@needs_real
@pytest.mark.nightly
def test_the_splits_of_the_whole_real_set_are_disjoint_and_without_duplicates():
    """By day: the splits of generated problems, and the leak of TinyZero's over the same rows."""
    keys_by_split = {
        split: [key_of(row) for row in load(split=split, source=str(REAL)).to_list()]
        for split in ("train", "validation", "test")
    }
    sets = {split: set(keys) for split, keys in keys_by_split.items()}
    for split, keys in keys_by_split.items():
        assert len(keys) == len(sets[split])
    assert sum(map(len, sets.values())) == len(set.union(*sets.values())) == 449_570
    assert {split: len(keys) for split, keys in sets.items()} == {"train": 435_946, "validation": 4_610, "test": 9_014}


@needs_real
@pytest.mark.slow
def test_the_tinyzero_split_is_theirs_without_the_training_rows_that_its_test_repeats():
    test = load(split="test", source=str(REAL), split_rule="tinyzero").to_list()
    train = load(split="train", source=str(REAL), split_rule="tinyzero").to_list()
    theirs = datasets.load_dataset("parquet", data_files=str(REAL), split="train").to_list()
    assert test == theirs[327_680:328_704]
    tested = set(map(key_of, test))
    assert train == [row for row in theirs[:327_680] if key_of(row) not in tested]
    # What their own split leaks: 107 of the test problems, some of them more than once.
    assert len(tested & set(map(key_of, theirs[:327_680]))) == 107
    validation = load(split="validation", source=str(REAL), split_rule="tinyzero", num_rows=500)
    assert not set(map(key_of, validation)) & (tested | set(map(key_of, train)))


def test_the_tinyzero_split_needs_enough_rows(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [GOOD])
    with pytest.raises(ValueError, match=r"needs 328704 rows; .* has 1"):
        load(split="test", source=str(path), split_rule="tinyzero")


def write_rows(path: Path, rows: list) -> Path:
    import datasets

    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# How they are worded


def test_the_base_prompt_is_the_one_the_shipped_model_was_trained_on():
    assert format_base(ROW) == {
        "prompt": (
            "A conversation between User and Assistant. The User asks a question and the Assistant solves it. The "
            "Assistant first thinks about the reasoning process and then gives the answer. The reasoning is enclosed "
            "in <think> </think> and the answer in <answer> </answer>.\nUser: Using every one of the numbers [19, 36, "
            "55] exactly once, write an expression that equals 74. Only +, -, *, / and parentheses are allowed. Give "
            "the expression in <answer> </answer>, for example <answer>(1 + 2) / 3</answer>.\nAssistant: Let me solve "
            "this step by step.\n<think>"
        ),
        "prefill": "<think>",
    }


def test_the_chat_formats_open_the_thought_or_leave_it_to_the_model():
    instruct, r1_prefix = format_instruct(ROW), format_r1_prefix(ROW)
    assert [message["role"] for message in instruct["prompt"]] == ["system", "user"]
    assert instruct["prefill"] == ""
    assert r1_prefix["prompt"][:-1] == instruct["prompt"]
    assert r1_prefix["prompt"][-1] == {"role": "assistant", "content": "Let me solve this step by step.\n<think>"}
    assert r1_prefix["prefill"] == PREFILL


@pytest.mark.parametrize("name", TASK.formats)
def test_every_prompt_says_what_the_verifier_checks(name):
    text = str(TASK.formats[name](ROW)["prompt"])
    for words in (
        "every one of the numbers [19, 36, 55] exactly once",
        "equals 74",
        "+, -, *, / and parentheses",
        "<answer>",
    ):
        assert words in text


# Real tokenizers; what they render is read off here, so that a change of template or format shows.

QWEN_VARIANTS = {
    "qwen2.5-base": "tokenizer_config.qwen2.5-base.json",
    "qwen2.5-instruct": "tokenizer_config.qwen2.5-instruct.json",
    "r1-distill": "tokenizer_config.r1-distill.composed.json",
}


@pytest.fixture(params=[*QWEN_VARIANTS, "tinyllama"])
def tokenizer(request, tmp_path):
    """A real tokenizer, put together in a folder of its own."""
    from transformers import AutoTokenizer

    source = DATA / "tokenizers"
    if request.param == "tinyllama":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / "llama_spm" / name, tmp_path / name)
    else:
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(source / "qwen2" / name, tmp_path / name)
        shutil.copy(source / "qwen2" / QWEN_VARIANTS[request.param], tmp_path / "tokenizer_config.json")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    if request.param == "tinyllama":
        tokenizer.chat_template = (source / "templates" / "tinyllama-1.1b-chat.jinja").read_text()
    tokenizer.label = request.param
    return tokenizer


@needs_tokenizers
def test_format_countdown_ends_in_an_open_thought_with_every_real_tokenizer(tokenizer):
    row = format_countdown(ROW, tokenizer)
    assert set(row) == {"prompt", "target", "nums"}
    assert (row["nums"], row["target"]) == ([19, 36, 55], 74)
    assert row["prompt"].endswith("Let me solve this step by step.\n<think>")
    assert "[19, 36, 55]" in row["prompt"]
    assert row["prompt"].count("Let me solve") == 1
    assert "</s>" not in row["prompt"].rsplit("step by step", 1)[1]


@needs_tokenizers
def test_a_rendered_prompt_has_at_most_one_bos(tokenizer):
    ids = tokenizer(format_countdown(ROW, tokenizer)["prompt"])["input_ids"]
    if tokenizer.bos_token_id is not None:
        assert ids.count(tokenizer.bos_token_id) <= 1
    assert len(ids) < 300


@needs_tokenizers
def test_a_rendered_prompt_is_what_the_trainer_tokenizes_for_r1_prefix(tokenizer):
    rendered = tokenizer(format_countdown(ROW, tokenizer)["prompt"])["input_ids"]
    messages = format_r1_prefix(ROW)["prompt"]
    templated = tokenizer.apply_chat_template(messages, continue_final_message=True, tokenize=True)
    ids = templated if isinstance(templated, list) else templated["input_ids"]
    bos = [tokenizer.bos_token_id] if rendered[:1] == [tokenizer.bos_token_id] != ids[:1] else []
    assert rendered == bos + ids


@needs_tokenizers
def test_a_tokenizer_without_a_template_gets_the_base_transcript(tokenizer):
    tokenizer.chat_template = None
    assert format_countdown(ROW, tokenizer)["prompt"] == format_base(ROW)["prompt"]


@needs_tokenizers
def test_responses_of_real_tokenizers_score_the_same_after_a_round_trip(tokenizer):
    completion = "\n19 + 55 = 74, no\n</think>\n<answer>36 + 55 - 19</answer>"
    ids = tokenizer(completion, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    for is_skipped in (True, False):
        text = tokenizer.decode(ids, skip_special_tokens=is_skipped)
        assert equation("<think>" + text, nums=[19, 36, 55], target=72) == 1.0
        assert TASK.rewards["format"]("<think>" + text) == 1.0


def test_prompts_of_a_split_keep_their_rows():
    worded = prompts(load(split="test", source="generated", num_rows=5), format_base)
    assert all(str(row["nums"]) in row["prompt"] for row in worded)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("40 + 5", "leaves out 3"),
        ("40 + 5 - 5", "uses 5 twice, leaves out 3"),
        ("40 + 5 + 3", "48 is not 42"),
        ("40 + five - 3", "'40 + five - 3' is no expression of + - * / and whole numbers"),
        ("40 / (5 - 5)", "'40 / (5 - 5)' is no expression of + - * / and whole numbers, or divides by zero"),
    ],
)
def test_a_verdict_says_why_an_answer_is_not_correct(answer, why):
    response = f"<think>a</think><answer>{answer}</answer>"
    assert verify(response, nums=[3, 5, 40], target=42).explanation == why
