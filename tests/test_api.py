"""The package's door: what one import gives, and runs and evaluations started from Python."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tinyzero_trl
from tinyzero_trl import Evaluation, Failure, Run, api, evaluate, train

SMALL = [
    "trainer.max_steps=2",
    "trainer.per_device_train_batch_size=16",
    "trainer.gradient_accumulation_steps=2",
    "trainer.num_generations=8",
    "trainer.max_completion_length=32",
]


def test_every_name_of_the_door_is_there_and_is_the_one_that_type_checkers_see():
    for node in ast.parse(Path(tinyzero_trl.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If):
            shown = {alias.name: statement.module for statement in node.body for alias in statement.names}  # type: ignore[attr-defined]
    assert sorted(shown) == tinyzero_trl.__all__
    for name, module in shown.items():
        assert f"tinyzero_trl.{tinyzero_trl._ROOM[name]}" == module
        assert getattr(tinyzero_trl, name) is getattr(sys.modules[module], name)
        assert name in dir(tinyzero_trl)
    with pytest.raises(AttributeError, match="has no attribute 'tain'"):
        tinyzero_trl.tain  # noqa: B018


def test_what_a_task_needs_is_imported_without_a_library():
    code = "from tinyzero_trl import *; import sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "trl", "hydra", "transformers", "datasets", "numpy", "pandas"} & set(run.stdout.split())


@pytest.fixture
def printed(monkeypatch):
    """Words that a verb got, and in `lines` what it is to print, with `code` its exit code, in the place of a real one."""

    class Verb:
        words: list[str]
        lines = "run folder: outputs/countdown/a run, continuing checkpoint-3\nstep 1/2\n"
        code = 0

        def __call__(self, command, **kwargs):
            self.words = command[4:]
            program = f"import sys; sys.stderr.write({self.lines!r}); sys.exit({self.code})"
            return popen([sys.executable, "-c", program], **kwargs)

    popen, verb = subprocess.Popen, Verb()
    monkeypatch.setattr(api.subprocess, "Popen", verb)
    return verb


@pytest.mark.parametrize(
    ("recipe", "word"),
    [
        ("countdown/grpo-tiny", "+countdown=grpo-tiny"),
        ("+countdown=grpo-tiny", "+countdown=grpo-tiny"),
        ("mine/recipe.yaml", "mine/recipe.yaml"),
    ],
)
def test_train_says_what_the_command_line_would_and_prints_what_it_prints(recipe, word, printed, capsys):
    run = train(recipe, "trainer.seed=1", processes=2, accelerate_config="zero2")
    assert printed.words == ["train", word, "trainer.seed=1", "--processes", "2", "--accelerate_config", "zero2"]
    assert run == Run(Path("outputs/countdown/a run"))
    assert capsys.readouterr().out == printed.lines


def test_a_run_that_was_finished_is_handed_back(printed):
    printed.lines = (
        "runs/a is finished, so nothing was done; raise trainer.max_steps, or what else it ended with, to go on\n"
    )
    assert train("countdown/grpo-tiny").folder == Path("runs/a")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("note: x\nerror: trainer.lr is no key\ntraining ended\n", "trainer.lr is no key"),
        ("error (process 1): out of memory\n", "out of memory"),
        ("tinyzero train: no recipe given\n", "no recipe given"),
        ("Traceback (most recent call last):\nZeroDivisionError: a bug\n\n", "ZeroDivisionError: a bug"),
        ("", "train ended with exit code 5 and said nothing"),
    ],
)
def test_a_failure_is_one_exception_with_the_last_line_and_the_exit_code(lines, message, printed):
    printed.lines, printed.code = lines, 5
    with pytest.raises(Failure) as raised:
        train("countdown/grpo-tiny")
    assert (str(raised.value), raised.value.exit_code) == (message, 5)


def test_an_evaluation_that_cannot_be_is_refused_before_a_process_starts(printed, tmp_path):
    with pytest.raises(ValueError, match="comes from no run that names its task"):
        evaluate("tiny")
    with pytest.raises(ValueError, match="--n must be at least 1"):
        evaluate("tiny", "countdown", num_problems=0)
    assert not hasattr(printed, "words")


@pytest.mark.slow
def test_a_run_and_an_evaluation_from_python_come_back_as_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets.py").write_text("raise SystemExit('a file of the working directory')")
    run = train("countdown/grpo-tiny", *SMALL)
    assert run.folder.parent == Path("outputs/countdown")
    assert f"run folder: {run.folder}" in capsys.readouterr().out
    assert run.config["trainer"]["max_steps"] == 2
    assert list(run.metrics.dropna(subset=["accuracy"]).step) == [1, 2]
    assert len(run.rollouts) >= 2 * 32
    assert {"prompt", "completion", "reward", "outcome", "advantage"} <= set(run.rollouts.columns)
    assert run.model == run.folder / "model"
    assert run.report().read_text(encoding="utf-8").startswith("<!")
    assert repr(run).startswith(f"Run('{run.folder}': step 2, accuracy ")

    found = evaluate(run, num_problems=8, max_new_tokens=32, name="again")
    assert found == Evaluation(run.folder / "evaluation" / "again")
    assert (found.summary["task"], found.metrics.n["pass@1"], len(found.samples)) == ("countdown", 8, 8)
    assert found.metrics.low["pass@1"] <= found.metrics.value["pass@1"] <= found.metrics.high["pass@1"]
    assert repr(found).endswith(", 8 problems)")
    with pytest.raises(Failure, match="--processes must be at least 1, got 0") as raised:
        train("countdown/grpo-tiny", processes=0)
    assert raised.value.exit_code == 2
    assert os.listdir("outputs/countdown") == [run.folder.name]
