"""The prepare scripts, run as a person runs them, and what they refuse."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tinyzero_trl.data import preparation
from tinyzero_trl.task import resolve
from tinyzero_trl.tasks import TASKS
from tinyzero_trl.tasks.countdown import format_countdown, key_of

SCRIPTS = Path(__file__).parents[2] / "scripts"


def countdown(*words: str) -> Path:
    argv = ["--source", "generated", "--num_train", "40", "--num_test", "20", *words]
    assert preparation.main(argv, task="countdown") == 0
    return Path(argv[argv.index("--output") + 1])


def test_format_countdown_is_importable_from_its_script():
    assert resolve(f"{SCRIPTS}/prepare_countdown_data.py:format_countdown", among={}, kind="format") is format_countdown


@pytest.mark.parametrize("task", ["countdown", "multiplication"])
def test_a_script_writes_a_folder_that_the_task_loads(tmp_path, task):
    folder = tmp_path / "data"
    command = [
        sys.executable,
        str(SCRIPTS / f"prepare_{task}_data.py"),
        "--output",
        str(folder),
        "--source",
        "generated",
    ]
    run = subprocess.run(
        [*command, "--num_train", "30", "--num_test", "10"], capture_output=True, text=True, check=True
    )
    assert run.stdout.count("Let me solve this step by step.") == 3
    assert "10 reference answers earn 1.0 and as many wrong ones 0.0" in run.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "test.parquet", "train.parquet"]
    assert len(TASKS[task].load(split="train", source=str(folder))) == 30
    assert len(TASKS[task].load(split="test", source=str(folder), num_rows=5)) == 5
    with pytest.raises(ValueError, match="has no split validation; it has test, train"):
        TASKS[task].load(split="validation", source=str(folder))
    with pytest.raises(ValueError, match="split"):
        TASKS[task].load(split="train", source=str(folder), split_rule="tinyzero")


@pytest.mark.parametrize("name", ["base", "instruct", "r1_prefix"])
def test_every_format_is_prepared_and_checked(tmp_path, name, capsys):
    countdown("--output", str(tmp_path / "data"), "--format", name)
    assert "every one of the numbers" in capsys.readouterr().out.replace("\n", " ").replace("│", "")
    card = json.loads((tmp_path / "data" / "card.json").read_text())
    assert card["format"] == name
    assert card["num_rows"] == {"train": 40, "test": 20}


def test_prompts_are_shown_as_a_tokenizer_renders_them(tmp_path, capsys):
    from small_models import make_llama

    folder = make_llama(tmp_path / "model")
    countdown("--output", str(tmp_path / "data"), "--format", "instruct", "--tokenizer", str(folder))
    assert capsys.readouterr().out.count("<|assistant|>") == preparation.NUM_SHOWN
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(SystemExit) as left:
        countdown("--output", str(tmp_path / "other"), "--format", "instruct", "--tokenizer", str(folder))
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert f"--tokenizer {folder} has no tokenizer that can be loaded" in error
    assert error.count("\n") == 1


def test_prepared_splits_share_no_problem(tmp_path):
    folder = countdown("--output", str(tmp_path / "data"))
    train, test = (TASKS["countdown"].load(split=split, source=str(folder)) for split in ("train", "test"))
    assert not set(map(key_of, train)) & set(map(key_of, test))


def test_the_same_command_writes_the_same_data(tmp_path):
    cards = [json.loads((countdown("--output", str(tmp_path / name)) / "card.json").read_text()) for name in "ab"]
    assert cards[0] == cards[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "bass"], "no format 'bass'; there is base, instruct, r1_prefix"),
        (["--source", "no/such/file.jsonl"], "no data file"),
        (["--split_rule", "tinyzero"], "split rule 'problem'"),
        (["--num_train", "0"], "num_rows must be at least 1, got 0"),
    ],
)
def test_a_mistake_ends_with_one_line_and_writes_nothing(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as exit_:
        countdown("--output", str(tmp_path / "data"), *words)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unsolvable_row_is_named(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"nums": [1, 1, 1], "target": target}) + "\n" for target in range(100, 400)))
    with pytest.raises(SystemExit):
        countdown("--source", str(path), "--num_test", "1", "--output", str(tmp_path / "data"))
    assert "test row 0 has no solution: {'nums': [1, 1, 1]" in capsys.readouterr().err


def test_another_folder_is_never_replaced_and_ones_own_only_when_asked(tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    with pytest.raises(SystemExit):
        countdown("--output", str(other), "--overwrite")
    assert "was not made by a prepare script" in capsys.readouterr().err
    assert (other / "thesis.txt").read_text() == "x"

    mine = countdown("--output", str(tmp_path / "mine"))
    with pytest.raises(SystemExit):
        countdown("--output", str(mine))
    assert "--overwrite" in capsys.readouterr().err
    countdown("--output", str(mine), "--overwrite", "--seed", "1")
    assert json.loads((mine / "card.json").read_text())["seed"] == 1


def test_a_write_that_fails_leaves_the_old_data(tmp_path, monkeypatch, capsys):
    mine = countdown("--output", str(tmp_path / "mine"))
    before = (mine / "card.json").read_text()

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    with pytest.raises(SystemExit):
        countdown("--output", str(mine), "--overwrite", "--seed", "1")
    assert "the disk is full" in capsys.readouterr().err
    assert (mine / "card.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_training_problems_that_are_in_an_evaluation_are_left_out_and_counted(tmp_path, capsys):
    from tinyzero_trl.tasks.math import load

    rng = random.Random(1)
    rows = [
        {"q": " ".join("".join(rng.choices("abcdefgh", k=6)) for _ in range(20)) + "?", "a": f"#### {n}"}
        for n in range(290)
    ]
    source, benchmark = tmp_path / "rows.jsonl", tmp_path / "benchmark.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    benchmark.write_text("\n".join(json.dumps({"problem": row["q"].upper(), "answer": "1"}) for row in rows[:40]))
    argv = ["--source", str(source), "--data", "problem_column=q", "answer_column=a", "--format", "qwen-math",
            "--evaluation", f"mine={benchmark}", "--output", str(tmp_path / "out")]  # fmt: skip
    assert preparation.main(argv, task="math") == 0
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    left_out = card["evaluation_problems_left_out"]["mine"]
    assert 35 <= left_out <= 40
    assert f"{left_out} of " in capsys.readouterr().out
    kept = load(split="train", source=str(tmp_path / "out"))
    assert not {row["q"] for row in rows[:40]} & set(kept["problem"])
    assert card["problem_column"] == "q"


def test_format_math_is_importable_from_its_script():
    from tinyzero_trl.tasks.math import format_math

    assert resolve(f"{SCRIPTS}/prepare_math_data.py:format_math", among={}, kind="format") is format_math


@pytest.mark.parametrize(
    ("word", "message"), [("min_levle=3", "write key=value; there is answer_column"), ("min_level", "write key=value")]
)
def test_a_data_word_that_means_nothing_is_refused(tmp_path, word, message, capsys):
    with pytest.raises(SystemExit):
        preparation.main(["--data", word, "--output", str(tmp_path / "out")], task="math")
    assert message in capsys.readouterr().err
