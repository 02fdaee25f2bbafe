"""The batch of an optimizer step is the recipe's, whatever number of processes trains on it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tinyzero_trl.config import RECIPES, Sharding, batching, check_method, compose, list_recipes, trainer_arguments
from tinyzero_trl.estimate import main, shape_of, workload_of
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.runs import resuming
from tinyzero_trl.runs.record import write_record

FOR_GPUS = [item for item in list_recipes() if item.name.startswith("grpo-") and "-tiny" not in item.name]
MATH = "+math=grpo-qwen-2.5-1.5b-base"
TINY = "+countdown=grpo-tiny"


@pytest.mark.parametrize("recipe", FOR_GPUS, ids=lambda recipe: f"{recipe.task}/{recipe.name}")
def test_a_recipe_for_gpus_trains_the_same_batch_on_1_2_4_and_8_processes(recipe: Any) -> None:
    word, at_head = f"+{recipe.task}={recipe.name}", recipe.num_processes
    composed = compose([word], num_processes=1)
    for number in (1, 2, 4, 8, at_head):
        cfg = copy.deepcopy(composed)
        batching.settle(cfg, num_processes=number)
        check_method(cfg, num_processes=number)
        trainer, stated = cfg.trainer, cfg.batching.completions_per_step
        rows = trainer.per_device_train_batch_size
        assert rows * number * trainer.gradient_accumulation_steps == stated
        rollout = cfg.batching.completions_per_rollout or stated
        assert batching.generated_at_once(cfg, num_processes=number) == rollout
        assert rollout % (rows * number) == rollout % trainer.num_generations == 0
        run = workload_of(cfg, shape_of(str(cfg.model.model_name_or_path)), Sharding(number))
        assert (run.trained_rows * number, run.generated_rows * number) == (stated, rollout)


def test_the_trainer_is_given_the_accumulation_that_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [MATH, "trainer.use_cpu=true", "trainer.bf16=false", "generation.engine=transformers"]
    args = trainer_arguments(compose(words, num_processes=1), program="grpo")
    assert (args.gradient_accumulation_steps, args.steps_per_generation, args.generation_batch_size) == (
        256,
        1024,
        8192,
    )


def test_the_number_of_processes_is_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert compose([MATH]).trainer.gradient_accumulation_steps == 32


def test_the_arithmetic_is_one_line() -> None:
    lines = {number: batching.shown(compose([MATH], num_processes=number), num_processes=number) for number in (1, 8)}
    assert lines == {
        1: "2,048 completions a step = 1 process x 8 a device x 256 accumulated; 256 prompts x 8; 8,192 generated at once",
        8: "2,048 completions a step = 8 processes x 8 a device x 32 accumulated; 256 prompts x 8; 8,192 generated at once",
    }
    tiny = batching.shown(compose([TINY]), num_processes=2)
    assert tiny == "1,024 completions a step = 2 processes x 128 a device x 4 accumulated; 128 prompts x 8"


@pytest.mark.parametrize(
    ("words", "number", "said"),
    [
        # Three processes share no batch of 2,048; the nearest that they do hold whole groups too.
        ([], 3, ["completions_per_step 2048", "24 completions computed at once", "3 processes", "1, 2, 4, 8, 16, 32, 64 processes", "2040 or 2064"]),
        (["trainer.per_device_train_batch_size=24"], 8, ["trainer.per_device_train_batch_size=16", "1920 or 2112"]),
        (["batching.completions_per_step=16"], 8, ["completions_per_step 16", "64 completions", "trainer.per_device_train_batch_size=2", "=64"]),
        (["batching.completions_per_rollout=8200"], 8, ["batching.completions_per_rollout 8200", "8192 or 8256"]),
        (["batching.completions_per_step=0"], 1, ["batching.completions_per_step must be at least 1 or null, got 0"]),
        (
            ["trainer.gradient_accumulation_steps=16", "batching.completions_per_step=2048"], 8,
            ["trainer.gradient_accumulation_steps=16 makes 1024 completions with 8 processes", "batching.completions_per_step is 2048", "(32 follows)"],
        ),
        # One is TRL's default, and said nevertheless.
        (["trainer.gradient_accumulation_steps=1", "batching.completions_per_step=2048"], 8, ["trainer.gradient_accumulation_steps=1 makes 64", "(32 follows)"]),
        (["trainer.steps_per_generation=32", "batching.completions_per_rollout=8192"], 8, ["trainer.steps_per_generation=32 makes 2048", "completions_per_rollout is 8192", "(128 follows)"]),
        (["trainer.generation_batch_size=2048", "batching.completions_per_rollout=8192"], 8, ["trainer.generation_batch_size=2048 and batching.completions_per_rollout=8192"]),
    ],
)  # fmt: skip
def test_a_batch_that_does_not_add_up_is_one_line_with_what_would(
    words: list[str], number: int, said: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        compose([MATH, *words], num_processes=number)
    assert "\n" not in str(error.value)
    assert not [part for part in said if part not in str(error.value)], str(error.value)


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["trainer.gradient_accumulation_steps=32", "batching.completions_per_step=2048"], (32, 128)),
        (["batching.completions_per_step=null", "batching.completions_per_rollout=null"], (1, None)),
        (["trainer.steps_per_generation=128", "batching.completions_per_rollout=8192"], (32, 128)),
        (["trainer.per_device_train_batch_size=2"], (128, 512)),
        (["trainer.generation_batch_size=8192", "batching.completions_per_rollout=8192"], (32, 128)),
    ],
)
def test_the_same_said_twice_and_a_batch_taken_back_are_no_conflict(words: list[str], steps: tuple[int, int]) -> None:
    trainer = compose([MATH, *words], num_processes=8).trainer
    assert (trainer.gradient_accumulation_steps, trainer.steps_per_generation) == steps


@pytest.mark.parametrize(
    ("words", "steps", "batching"),
    [
        (["trainer.gradient_accumulation_steps=4"], (4, 128, None), (None, 8192)),
        (["trainer.gradient_accumulation_steps=1"], (1, 128, None), (None, 8192)),
        (["trainer.steps_per_generation=4"], (32, 4, None), (2048, None)),
        (["trainer.generation_batch_size=4096"], (32, None, 4096), (2048, None)),
    ],
)
def test_trls_own_key_on_the_command_line_takes_the_place_of_the_recipes_batch(
    words: list[str], steps: tuple[int, int, int], batching: tuple[int, int]
) -> None:
    cfg = compose([MATH, *words], num_processes=8)
    trainer, ours = cfg.trainer, cfg.batching
    assert (trainer.gradient_accumulation_steps, trainer.steps_per_generation, trainer.generation_batch_size) == steps
    assert (ours.completions_per_step, ours.completions_per_rollout) == batching


def test_a_batch_on_the_command_line_takes_the_place_of_a_recipes_accumulation() -> None:
    assert (
        compose([TINY, "batching.completions_per_step=256"], num_processes=2).trainer.gradient_accumulation_steps == 1
    )


def test_a_recipe_file_that_states_two_batches_is_refused(tmp_path: Path) -> None:
    (tmp_path / "math").mkdir()
    (tmp_path / "grpo.yaml").write_text((RECIPES / "grpo.yaml").read_text())
    text = (RECIPES / "math" / "grpo-qwen-2.5-1.5b-base.yaml").read_text()
    text = text.replace("trainer:\n", "trainer:\n  gradient_accumulation_steps: 4\n")
    (tmp_path / "math" / "grpo-qwen-2.5-1.5b-base.yaml").write_text(text)
    with pytest.raises(
        ConfigError, match=r"trainer.gradient_accumulation_steps=4 makes 256 completions with 8 processes"
    ):
        compose([MATH], recipes=tmp_path, num_processes=8)


def test_a_tiny_recipe_counts_as_trl_does() -> None:
    for number in (1, 2):
        cfg = compose([TINY, "trainer.gradient_accumulation_steps=2"], num_processes=number)
        assert batching.accumulated(cfg, num_processes=number) == cfg.trainer.gradient_accumulation_steps == 2
        assert batching.generated_at_once(cfg, num_processes=number) == 128 * number * 2


@pytest.mark.parametrize("number", [1, 2, 4, 8])
def test_estimate_counts_the_batch_of_the_recipe_for_any_number_of_processes(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    main([MATH, f"--processes={number}", "--gpu=H200"])
    assert f"2,048 completions a step = {number} process" in " ".join(capsys.readouterr().out.split())


def test_a_run_is_the_same_run_where_only_what_follows_from_the_processes_differs(tmp_path: Path) -> None:
    write_record(tmp_path, compose([MATH], num_processes=8), data={}, seeds={})
    resuming.check_same_run(tmp_path, compose([MATH], num_processes=4))
    for word in ("batching.completions_per_step=1024", "trainer.per_device_train_batch_size=4"):
        with pytest.raises(ConfigError, match=word.partition("=")[0]):
            resuming.check_same_run(tmp_path, compose([MATH, word], num_processes=8))
