"""The demo before it trains: its arguments, its problems and its device. tests/test_installation.py runs it."""

import json
from pathlib import Path

import pytest

from tinyzero_trl import cli
from tinyzero_trl import demo as story


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output_dir", "used"], "--output_dir used is not empty"),
        (["--problems", "0"], "--problems must be at least 1, got 0"),
        (["trainer.learning_rat=1"], "did you mean trainer.learning_rate?"),
        (["output_dir=d1"], "output_dir=d1: the demo's folder is --output_dir d1"),
        (["--source", "rows.parquet"], "--source rows.parquet is for --real"),
        (["--real", "--problems", "1025"], "--problems must be at most 1024 with --real, got 1025"),
    ],
)
def test_a_mistake_is_answered_before_anything_is_made(tmp_path, monkeypatch, capfd, words, said):
    (tmp_path / "used" / "file").parent.mkdir()
    (tmp_path / "used" / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", *words]) == 2
    error = capfd.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "used", tmp_path / "used" / "file"]


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
    keys = {countdown.key_of(json.loads(line)) for line in Path(held_out["source"]).read_text().splitlines()}
    assert len(keys) == demo.NUM_PROBLEMS
    train_rows, eval_rows = checks.rows(cfg, checks.parts(cfg))
    assert eval_rows is not None
    for rows, split in ((train_rows, "train"), (eval_rows, "validation")):
        used = [{"nums": row["nums"], "target": row["target"]} for row in rows.to_list()]
        assert {countdown.split_of(row) for row in used} == {split}
        assert keys.isdisjoint(map(countdown.key_of, used))


def test_the_real_demo_takes_its_own_recipe_and_all_of_tinyzeros_test_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(story, "run", lambda words, **others: asked.append((words, others)) or 0)
    assert story.main(["--real", "--source", "rows.parquet", "--seed", "3", "--steps", "7", "model.dtype=float32"]) == 0
    ((words, others),) = asked
    assert words[0] == "+countdown=grpo-tiny-search"
    assert {"data.source=rows.parquet", "trainer.seed=3", "data.seed=3", "trainer.max_steps=7"} <= set(words)
    assert words[-1] == "model.dtype=float32"
    assert others["num_problems"] == 1024
    assert others["run_folder"].name.startswith("grpo-tiny-search-")


def test_the_real_demo_is_measured_on_the_test_rows_of_the_file_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinyzero_trl.config import compose
    from tinyzero_trl.data import rows
    from tinyzero_trl.evaluation import Settings, evaluating, plan

    monkeypatch.setattr(rows, "TINYZERO_TRAIN", 6)
    monkeypatch.setattr(rows, "TINYZERO_TEST", 3)
    problems = [{"nums": [number, 2, 3], "target": number + 5} for number in range(10, 20)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    cfg = compose([story.REAL_RECIPE, f"data.source={file}"])
    named = story._held_out(cfg, num_problems=3, folder=tmp_path)
    assert named == {"source": str(file), "split_rule": "tinyzero"}
    settings = Settings("tiny", task="countdown", n=3, output=tmp_path, **named)
    answered = evaluating.rows_of(plan.make_plan(settings), settings)
    assert sorted(row["nums"][0] for row in answered) == [16, 17, 18]


def test_a_source_that_cannot_be_reached_is_answered_by_one_line_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    from tinyzero_trl import hub

    hub.reached.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    try:
        assert cli.main(["demo", "--real"]) == 2
    finally:
        hub.reached.cache_clear()
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith("tinyzero demo: dataset 'Jiayi-Pan/Countdown-Tasks-3to4' is neither a file or folder here")
    assert line.endswith("(here: --source FILE)")
    assert not list((tmp_path / "outputs" / "countdown").iterdir())


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
