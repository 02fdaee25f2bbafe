"""Names in recipes become functions, and rows become prompts."""

from __future__ import annotations

import pytest
from datasets import Dataset

from tinyzero_trl.task import prompts, resolve
from tinyzero_trl.tasks import TASKS, find_task
from tinyzero_trl.tasks.countdown import TASK, format_base

ROWS = Dataset.from_list([{"nums": [1, 2, 3], "target": 6}, {"nums": [4, 5, 6], "target": 15}])


def test_prompts_adds_two_columns_and_keeps_the_raw_ones():
    for format_fn in TASK.formats.values():
        worded = prompts(ROWS, format_fn)
        assert set(worded.column_names) == {"nums", "target", "prompt", "prefill"}
        assert worded["nums"][:] == ROWS["nums"][:]
        assert worded[1]["prompt"] == format_fn(ROWS[1])["prompt"]


def test_a_format_that_returns_no_prefill_is_refused():
    with pytest.raises(ValueError, match=r"left out.*prefill"):
        prompts(ROWS, lambda row: {"prompt": "x"})


def test_a_name_of_the_task_resolves_to_it():
    assert resolve("base", among=TASK.formats, kind="format") is format_base


def test_a_dotted_name_resolves_to_the_function_of_that_module():
    assert resolve("tinyzero_trl.tasks.countdown:format_base", among={}, kind="format") is format_base


def test_a_file_resolves_to_its_function_and_to_the_same_one_again(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def shout(row):\n    return {'prompt': str(row['nums']).upper(), 'prefill': ''}\n")
    shout = resolve(f"{path}:shout", among=TASK.formats, kind="format")
    assert shout({"nums": [1]}) == {"prompt": "[1]", "prefill": ""}
    assert resolve(f"{path}:shout", among={}, kind="format") is shout
    assert prompts(ROWS, shout)["prompt"][:] == ["[1, 2, 3]", "[4, 5, 6]"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bass", r"no format 'bass'; there is base, instruct, r1_prefix"),
        ("", r"no format ''"),
        (":x", r"no format ':x'"),
        ("no.such.module:x", r"no.such.module cannot be imported"),
        ("/no/such/file.py:x", r"no file /no/such/file.py"),
        ("tinyzero_trl.tasks.countdown:nope", r"has no nope; it has .*format_base"),
    ],
)
def test_a_name_that_stands_for_nothing_says_what_there_is(name, message):
    with pytest.raises(ValueError, match=message):
        resolve(name, among=TASK.formats, kind="format")


def test_a_file_that_does_not_parse_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(ValueError, match=r"broken\.py cannot be imported"):
        resolve(f"{tmp_path}/broken.py:f", among={}, kind="reward")


def test_find_task_knows_the_shipped_tasks_and_those_in_files(tmp_path):
    assert find_task("countdown") is TASKS["countdown"]
    (tmp_path / "mine.py").write_text("from tinyzero_trl.tasks.countdown import TASK\nNOT = 1\n")
    assert find_task(f"{tmp_path}/mine.py:TASK") is TASKS["countdown"]
    with pytest.raises(ValueError, match="is a int, not a"):
        find_task(f"{tmp_path}/mine.py:NOT")
    with pytest.raises(ValueError, match="no task 'contdown'; there is countdown, math, multiplication"):
        find_task("contdown")


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_is_whole(task):
    assert task.solved in task.rewards
    assert "base" in task.formats
    assert "format" in task.rewards
