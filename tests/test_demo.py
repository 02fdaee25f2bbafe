"""The demo, shortened: every phase runs for real, and what it leaves behind is whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyzero_trl import cli
from tinyzero_trl import demo as story
from tinyzero_trl.models import load_path

SMALL = [
    "trainer.per_device_train_batch_size=16",
    "trainer.gradient_accumulation_steps=2",
    "trainer.num_generations=8",
    "trainer.max_completion_length=48",
    "trainer.save_steps=1",
]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(not Path(load_path("tiny")).is_dir(), reason="the tiny model is not in this package")
def test_the_demo_evaluates_trains_evaluates_and_ends_with_the_place_of_its_report(tmp_path, monkeypatch, capfd):
    words = ["--steps", "2", "--problems", "32", "--output_dir", "run", *SMALL]
    ended = subprocess.run(
        [sys.executable, "-m", "tinyzero_trl.cli", "demo", *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ended.returncode == 0, ended.stderr
    page = Path(ended.stdout.strip().splitlines()[-1].removeprefix("The report: "))
    assert page == tmp_path / "run" / "report.html"
    assert page.is_file()
    prompts = set()
    for name in ("base", "final"):
        summary = json.loads((tmp_path / "run" / "evaluation" / name / "summary.json").read_text())
        assert (summary["name"], summary["num_problems"]) == (name, 32)
        prompts.add(summary["prompts_sha256"])
    assert len(prompts) == 1, "base and trained model must answer the same problems"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) >= 2
    assert not list(tmp_path.glob(".demo-*")), "nothing is left lying beside the run folder"

    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--output_dir", "run"]) == 2
    error = capfd.readouterr().err
    assert "--output_dir run is not empty" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--problems", "0"], "--problems must be at least 1, got 0"),
        (["trainer.learning_rat=1"], "did you mean trainer.learning_rate?"),
        (["output_dir=d1"], "output_dir=d1: the demo's folder is --output_dir d1"),
    ],
)
def test_a_mistake_is_answered_before_anything_is_made(tmp_path, monkeypatch, capfd, words, said):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", *words]) == 2
    error = capfd.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "name"), [([], "cpu.yaml"), (["trainer.use_cpu=false"], "ddp.yaml")])
def test_the_demo_is_launched_on_the_device_that_its_recipe_names(words: list[str], name: str) -> None:
    from tinyzero_trl import demo
    from tinyzero_trl.config import compose

    config = demo._accelerate_config(compose([demo.RECIPE, *words]))
    assert config.name == name
    assert config.is_file()


def test_no_held_out_problem_of_the_demo_is_trained_on(tmp_path: Path) -> None:
    """Neither by reinforcement (the recipe's own rows) nor in pre-training: both draw from the training split alone."""
    from tinyzero_trl import demo
    from tinyzero_trl.config import checks, compose
    from tinyzero_trl.tasks import countdown

    cfg = compose([demo.RECIPE])
    held_out = demo._held_out(cfg, num_problems=demo.NUM_PROBLEMS, folder=tmp_path)
    keys = {countdown.key_of(json.loads(line)) for line in held_out.read_text().splitlines()}
    assert len(keys) == demo.NUM_PROBLEMS
    train_rows, eval_rows = checks.rows(cfg, checks.parts(cfg))
    assert eval_rows is not None
    for rows, split in ((train_rows, "train"), (eval_rows, "validation")):
        used = [{"nums": row["nums"], "target": row["target"]} for row in rows.to_list()]
        assert {countdown.split_of(row) for row in used} == {split}
        assert keys.isdisjoint(map(countdown.key_of, used))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "-1"], "--steps must be at least 1, got -1"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be at least 0 and at most 4294967295, got -1"),
        (["--seed", "4294967296"], "--seed must be at least 0"),
        (["trainer.temperature=nan"], "trainer.temperature must be more than 0"),
    ],
)
def test_a_number_out_of_range_is_refused_before_the_demo_begins(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        story.main(words)
    assert not list(tmp_path.iterdir())
