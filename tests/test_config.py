"""Recipes and command lines: what composes, and what is refused with which line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trl import GRPOConfig, ModelConfig, SFTConfig

from tinyzero_trl import config
from tinyzero_trl.config import compose
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.schema import DATA_KEYS, OURS, REPLACED, fits, run_schema, schema_of

TINY = "+countdown=grpo-tiny"


@pytest.mark.parametrize("config_class", [GRPOConfig, SFTConfig, ModelConfig])
def test_the_schema_has_every_field_of_trl_with_its_default(config_class: type) -> None:
    import dataclasses

    theirs = {item.name for item in dataclasses.fields(config_class) if item.init}
    mine = {item.name: item for item in dataclasses.fields(schema_of(config_class))}
    assert set(mine) == theirs
    for item in dataclasses.fields(config_class):
        if item.init and item.default is not dataclasses.MISSING:
            assert mine[item.name].default_factory() == item.default  # type: ignore[misc]


def test_a_run_has_the_recipe_and_the_overrides() -> None:
    cfg = compose([TINY, "trainer.max_steps=7", "++trainer.seed=3", "data.min_number=2", "rewards.format=0.5"])
    assert (cfg.task, cfg.trainer.run_name, cfg.trainer.max_steps, cfg.trainer.seed) == ("countdown", "grpo-tiny", 7, 3)
    assert cfg.data.min_number == 2
    assert cfg.rewards.format == 0.5
    assert cfg.trainer.ddp_timeout == 1800


def test_a_reward_of_ones_own_is_a_key_of_the_command_line() -> None:
    cfg = compose([TINY, "rewards.path/to/mine.py:short=0.5", "+rewards.pkg.module:f=1"])
    assert dict(cfg.rewards) == {"equation": 1.0, "path/to/mine.py:short": 0.5, "pkg.module:f": 1.0}


def test_arguments_for_trl_are_what_the_recipe_says_and_trls_defaults() -> None:
    cfg = compose([TINY, "trainer.max_steps=7", "trainer.resume_from_checkpoint=true"])
    args = config.trainer_arguments(cfg, program="grpo", reward_weights=[1.0])
    assert (args.max_steps, args.learning_rate, args.loss_type) == (7, cfg.trainer.learning_rate, "dr_grpo")
    assert args.resume_from_checkpoint is None
    assert args.vllm_server_port == GRPOConfig.vllm_server_port


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"exactly one recipe, got none; recipes: .*\+countdown=grpo-tiny"),
        ([TINY, TINY], r"exactly one recipe, got \+countdown=grpo-tiny and \+countdown=grpo-tiny"),
        ([TINY, "+multiplication=grpo-tiny"], r"exactly one recipe, got .* and \+multiplication=grpo-tiny"),
        (["+countdown=grpo-tiy"], r"recipes/countdown has no recipe 'grpo-tiy'; it has .*did you mean grpo-tiny\?"),
        (["+countdwn=grpo-tiny"], r"no folder recipes/countdwn; .*did you mean countdown\?"),
        ([TINY, "trainer.lerning_rate=1"], r"command line: there is no key trainer.lerning_rate; did you mean trainer.learning_rate"),
        ([TINY, "+trainer.lerning_rate=1"], r"there is no key trainer.lerning_rate"),
        ([TINY, "++trainer.lerning_rate=1"], r"there is no key trainer.lerning_rate"),
        ([TINY, "learning_rate=1"], r"there is no key learning_rate; did you mean trainer.learning_rate"),
        ([TINY, "modle.dtype=float32"], r"there is no key modle.dtype; did you mean model.dtype"),
        ([TINY, "reward.equation=1"], r"there is no key reward.equation"),
        ([TINY, "trainer.num_generations=many"], r"trainer.num_generations: Value 'many' .* could not be converted to Integer"),
        ([TINY, "trainer.learning_rate=fast"], r"trainer.learning_rate: Value 'fast' .* could not be converted to Float"),
        ([TINY, "trainer.bf16=maybe"], r"trainer.bf16: Value 'maybe' is not a valid bool"),
        ([TINY, "rewards.equation=high"], r"rewards.equation: Value 'high' .* could not be converted to Float"),
        ([TINY, "trainer.generation_kwargs=5"], r"trainer.generation_kwargs must be dict \| str \| None, got 5"),
        ([TINY, "trainer.output_dir=x"], r"trainer.output_dir is not for a recipe: use output_dir"),
        ([TINY, "trainer.max_prompt_length=64"], r"trainer.max_prompt_length does not exist any more"),
        ([TINY, "~trainer.seed"], r"keys are set, not deleted; write trainer.seed=null"),
        ([TINY, "--multirun"], r"'--multirun' is not understood"),
        ([TINY, "nonsense"], r"'nonsense' is not understood"),
        ([TINY, "trainer.optim=[1"], r"optim"),
        ([TINY, "trainer.run_name=${nothing.there}"], r"Interpolation key 'nothing.there' not found"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_with_one_line_that_names_it(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        compose(words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key", ["max_prompt_length", "vllm_device", "use_liger_loss", "logging_dir", "overwrite_output_dir"]
)
def test_a_key_of_an_older_trl_is_answered_with_what_replaced_it(key: str) -> None:
    with pytest.raises(ConfigError, match="does not exist any more: ") as error:
        compose([TINY, f"trainer.{key}=1"])
    assert REPLACED[key] in str(error.value)


def test_the_tables_of_refused_keys_are_true() -> None:
    schema = run_schema(GRPOConfig)
    assert not [key for key in OURS if key not in set(schema.trainer)]
    gone = REPLACED.keys() - OURS.keys()
    assert not [key for key in gone if key in set(schema.trainer)]


def test_an_sft_recipe_is_not_run_by_grpo(tmp_path: Path) -> None:
    recipes = copied(tmp_path)
    (recipes / "countdown" / "sft-x.yaml").write_text("# @package _global_\ntask: countdown\n")
    with pytest.raises(ConfigError, match="countdown/sft-x is not for grpo.py"):
        compose(["+countdown=sft-x"], recipes=recipes)


def test_a_recipe_may_stand_on_another(tmp_path: Path) -> None:
    recipes = copied(tmp_path)
    text = (
        "# @package _global_\ndefaults:\n  - grpo-tiny\n  - _self_\ntrainer:\n  run_name: grpo-child\n  max_steps: 3\n"
    )
    (recipes / "countdown" / "grpo-child.yaml").write_text(text)
    cfg = compose(["+countdown=grpo-child"], recipes=recipes)
    assert (cfg.trainer.run_name, cfg.trainer.max_steps, cfg.model.model_name_or_path) == ("grpo-child", 3, "tiny")


def test_a_recipe_without_a_value_it_needs_is_refused_with_its_name(tmp_path: Path) -> None:
    recipes = copied(tmp_path)
    (recipes / "countdown" / "grpo-bare.yaml").write_text("# @package _global_\nformat: base\n")
    with pytest.raises(ConfigError, match=r"grpo-bare.yaml: no value for data.source, task"):
        compose(["+countdown=grpo-bare"], recipes=recipes)


def test_a_broken_yaml_file_is_named_with_the_place(tmp_path: Path) -> None:
    recipes = copied(tmp_path)
    (recipes / "countdown" / "grpo-broken.yaml").write_text("# @package _global_\ntask: [countdown\n")
    with pytest.raises(ConfigError, match=r"grpo-broken.yaml: .*line"):
        compose(["+countdown=grpo-broken"], recipes=recipes)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        ({}, dict[str, Any] | str | None, True),
        ("x", dict | str | None, True),
        (None, dict | str, False),
        (3, dict | str | None, False),
        (["a"], None | str | list[str], True),
        ([1], None | str | list[str], False),
        (True, float, False),
        (3, float, True),
    ],
)
def test_values_of_fields_that_omegaconf_cannot_type_are_checked_here(value: Any, hint: Any, expected: bool) -> None:
    assert fits(value, hint) is expected


def test_data_keys_have_no_value_that_a_task_could_miss() -> None:
    assert set(DATA_KEYS) == {"source", "split_rule", "num_train_rows", "num_eval_rows", "seed"}


def test_cfg_job_prints_the_resolved_run(capsys: pytest.CaptureFixture[str]) -> None:
    words, is_only_shown = config.without_options([TINY, "--cfg", "job"], program="grpo")
    assert (words, is_only_shown) == ([TINY], True)
    assert config.show(compose(words)) == 0
    text = capsys.readouterr().out
    assert "run_name: grpo-tiny" in text
    assert "importance_sampling_level: token" in text
    with pytest.raises(ConfigError, match="--cfg takes `job`"):
        config.without_options([TINY, "--cfg", "hydra"], program="grpo")


def copied(tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(config.RECIPES, tmp_path / "recipes"))
