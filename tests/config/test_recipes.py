"""Every recipe that ships composes, says what it should, and refuses every misspelling of its keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tinyzero_trl.config import RECIPES, check_method, checks, compose, list_recipes, program_of
from tinyzero_trl.failures import ConfigError

REPO = Path(__file__).resolve().parents[2]
ALL = [item for item in list_recipes() if program_of(item.name) == "grpo"]
METHOD = (
    "loss_type", "scale_rewards", "importance_sampling_level", "beta", "epsilon", "epsilon_high", "temperature", "top_p",
    "top_k", "num_generations", "num_iterations", "max_completion_length", "learning_rate", "lr_scheduler_type",
    "max_grad_norm", "mask_truncated_completions", "per_device_train_batch_size", "max_steps", "bf16",
    "gradient_checkpointing",
)  # fmt: skip
WANTED = {
    "countdown": {
        "grpo-tiny", "grpo-qwen-2.5-0.5b-base", "grpo-qwen-2.5-1.5b-base", "grpo-qwen-2.5-3b-base",
        "grpo-qwen-2.5-3b-instruct", "grpo-qwen-2.5-7b-base", "grpo-qwen-2.5-3b-instruct-qlora-24gb",
    },
    "math": {
        "grpo-tiny", "grpo-deepseek-distill-1.5b-inst", "grpo-gsm8k-qwen-2.5-0.5b-lora", "grpo-qwen-2.5-0.5b-base",
        "grpo-qwen-2.5-1.5b-base", "grpo-qwen-2.5-7b-base", "grpo-qwen-2.5-math-1.5b",
    },
    "multiplication": {"grpo-tiny", "grpo-qwen-2.5-1.5b-base"},
}  # fmt: skip


def named(recipe: Any) -> str:
    return f"{recipe.task}/{recipe.name}"


def test_the_recipes_of_the_readme_are_there() -> None:
    for task, names in WANTED.items():
        assert names <= {item.name for item in ALL if item.task == task}


@pytest.mark.parametrize("recipe", ALL, ids=named)
def test_a_recipe_composes_and_its_names_exist(recipe: Any) -> None:
    cfg = compose([f"+{recipe.task}={recipe.name}"])
    chosen = checks.parts(cfg)
    check_method(cfg)
    assert cfg.trainer.run_name == recipe.name
    assert chosen.task.name == recipe.task
    assert chosen.task.solved in chosen.rewards


@pytest.mark.parametrize("recipe", ALL, ids=named)
def test_a_recipe_says_source_command_hardware_and_expectation_and_states_its_method(recipe: Any) -> None:
    head = recipe.path.read_text()
    for word in ("# Source: ", "# Command: accelerate launch", "# Hardware: ", "# Expect: "):
        assert word in head
    assert f"+{recipe.task}={recipe.name}" in head
    assert recipe.hardware
    assert recipe.expectation
    content = yaml.safe_load(head)
    assert not [key for key in METHOD if key not in content["trainer"]]
    states_batch = "completions_per_step" in content.get("batching", {})
    assert states_batch != ("gradient_accumulation_steps" in content["trainer"])
    assert states_batch or "-tiny" in recipe.name


def keys_of(content: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in content.items():
        keys.append(prefix + key)
        if isinstance(value, dict):
            keys += keys_of(value, f"{prefix}{key}.")
    return keys


def renamed(content: dict[str, Any], key: str, name: str) -> dict[str, Any]:
    section, dot, rest = key.partition(".")
    if dot:
        return {**content, section: renamed(content[section], rest, name)}
    return {(name if item == key else item): value for item, value in content.items()}


@pytest.mark.parametrize("recipe", ALL, ids=named)
def test_a_recipe_with_any_key_wrong_by_one_letter_is_refused(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / recipe.task).mkdir()
    (tmp_path / "grpo.yaml").write_text((RECIPES / "grpo.yaml").read_text())
    content = yaml.safe_load(recipe.path.read_text())
    for index, key in enumerate(keys_of(content)):
        last = key.split(".")[-1]
        wrong = (last[:-1], last + "s", "x" + last[1:])[index % 3]
        if wrong in ("min_number", "max_number", "min_target"):
            continue  # a key of its own
        text = "# @package _global_\n" + yaml.safe_dump(renamed(content, key, wrong))
        (tmp_path / recipe.task / f"{recipe.name}.yaml").write_text(text)
        with pytest.raises(ConfigError) as error:
            checks.parts(compose([f"+{recipe.task}={recipe.name}"], recipes=tmp_path))
        assert any(word in str(error.value) for word in (wrong, last, "no value for")), (key, str(error.value))


@pytest.mark.parametrize("path", sorted((RECIPES / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_accelerate_config_says_processes_and_sharding_only(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(path))
    assert str(loaded.mixed_precision) == "no"
    content = yaml.safe_load(path.read_text())
    if "deepspeed_config" in content:
        assert content["deepspeed_config"]["zero_stage"] == int(path.stem.removesuffix("-offload")[-1])
        device = "cpu" if path.stem.endswith("-offload") else "none"
        assert content["deepspeed_config"]["offload_optimizer_device"] == device
        assert content["deepspeed_config"]["offload_param_device"] == (device if "zero3" in path.stem else "none")
        assert content["deepspeed_config"]["gradient_accumulation_steps"] == "auto"
        assert content["deepspeed_config"]["gradient_clipping"] == "auto"


def test_there_is_a_config_for_each_way_to_spread_a_run() -> None:
    names = {path.stem for path in (RECIPES / "accelerate_configs").glob("*.yaml")}
    shared = {"zero1", "zero2", "zero3", "fsdp2"}
    assert names == {"cpu", "ddp"} | shared | {f"{name}-offload" for name in shared}
