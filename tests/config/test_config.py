"""Recipes and command lines: what composes, and what is refused with which line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import trl
from trl import GRPOConfig, ModelConfig, SFTConfig

from tinyzero_trl import config
from tinyzero_trl.config import compose, schema
from tinyzero_trl.config.keys import OURS, REPLACED
from tinyzero_trl.config.schema import fields_of, fits, run_schema, schema_of
from tinyzero_trl.config.sections import DATA_KEYS
from tinyzero_trl.failures import ConfigError

TINY = "+countdown=grpo-tiny"


@pytest.mark.parametrize("config_class", [GRPOConfig, SFTConfig, ModelConfig])
def test_the_schema_has_every_field_of_trl_with_its_default(config_class: type) -> None:
    import dataclasses

    theirs = {item.name for item in dataclasses.fields(config_class) if item.init}
    mine = {item.name: item for item in dataclasses.fields(schema_of("X", fields_of(config_class)))}
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
        ([TINY, "trainer.num_generations=many"], r"trainer.num_generations: must be a whole number, got 'many'"),
        ([TINY, "trainer.learning_rate=fast"], r"trainer.learning_rate: must be a number, got 'fast'"),
        ([TINY, "trainer.bf16=maybe"], r"trainer.bf16: must be true or false, got 'maybe'"),
        ([TINY, "rewards.equation=high"], r"rewards.equation: must be a number, got 'high'"),
        ([TINY, "soft_overlong_tokens=0.5"], r"soft_overlong_tokens: must be a whole number, got '0.5'"),
        ([TINY, "generation.stop=3"], r"generation.stop: must be a list, such as \[a, b\]; got a int"),
        ([TINY, "algorithm={a: 1}"], r"algorithm: must be text, got {'a': 1}"),
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
    schema = run_schema("grpo")
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


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("~/good.jsonl", str(Path.home() / "good.jsonl")),
        ("题目", "题目"),
        ("/tmp/my data (1).jsonl", "/tmp/my data (1).jsonl"),
        ("run's.jsonl", "run's.jsonl"),
        ('a "b" c', 'a "b" c'),
        ("a,b", "a,b"),
        ("a=b", "a=b"),
        ("a: b", "a: b"),
        ("a#b 50%", "a#b 50%"),
        ("$x 🙂", "$x 🙂"),
        ("C:\\x y\\", "C:\\x y\\"),
        ("[draft] x.jsonl", "[draft] x.jsonl"),
        ("range(1,3)", "range(1,3)"),
        ("'quoted ~ text'", "quoted ~ text"),
        ("${oc.env:HOME}/my run (1)", str(Path.home() / "my run (1)")),
        ("3", 3),
        ("[1,2]", [1, 2]),
        ("{a:1}", {"a": 1}),
    ],
)
def test_a_value_that_hydra_cannot_read_is_text_and_others_stay_what_they_are(
    value: str, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(Path.home()))
    assert compose([TINY, f"data.min_number={value}"]).data.min_number == expected


@pytest.mark.parametrize(("value", "expected"), [("123", "123"), ("1e3", "1e3"), ("~", str(Path.home())), ("a=b", "a=b")])  # fmt: skip
def test_a_path_is_the_text_that_was_typed(value: str, expected: str) -> None:
    assert compose([TINY, f"output_dir={value}"]).output_dir == expected


def test_the_path_of_a_reward_may_have_blanks_and_begin_at_home() -> None:
    cfg = compose(
        [TINY, "rewards.my file (1).py:f=1", "rewards.~/m.py:g=0.5", "reward_parameters.my file (1).py:f.low=3"]
    )
    assert dict(cfg.rewards) == {"equation": 1.0, "my file (1).py:f": 1.0, f"{Path.home()}/m.py:g": 0.5}
    assert cfg.reward_parameters == {"my file (1).py:f": {"low": 3}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer=null"], "trainer is empty; give it keys, or leave it out"),
        (["generation="], "generation is empty"),
        (["rewards=[1]"], r"rewards is a section with keys of its own, .*; got \[1\]"),
        (["model=3"], "model is a section with keys of its own"),
        (["trainer={lerning_rate: 1}"], "no key trainer.lerning_rate; did you mean trainer.learning_rate"),
        (["trainer={output_dir: x}"], "trainer.output_dir is not for a recipe"),
        (["trainer.report_to=wandb,tensorboard"], r"write trainer.report_to=\[wandb,tensorboard\]"),
        (["trainer.optim=[1"], r"trainer.optim=\[1: write a list as"),
        (["trainer.seed=3#"], "trainer.seed: must be a whole number, got '3#'"),
        (["output_dir=a${b"], "begins an interpolation"),
        (["题目=1"], "there is no key 题目"),
        (["rewards.x="], "rewards.x: must be a number, got ''"),
        (["trainer.run_name=../x"], "trainer.run_name '../x' is a path"),
        (["trainer.run_name=a/b"], "trainer.run_name 'a/b' is a path"),
        (["trainer.run_name=/abs"], "trainer.run_name '/abs' is a path"),
        (["trainer.run_name=a\\b"], "is a path"),
        (["trainer.run_name=.."], "trainer.run_name '..' is no name"),
        (["trainer.run_name="], "trainer.run_name '' is no name"),
        (["trainer.run_name=a\nb"], "has characters that cannot be printed"),
        (["trainer.run_name=" + "é" * 101], "is 202 bytes long"),
    ],
)
def test_a_section_a_list_and_a_name_of_the_command_line_are_what_they_should_be(
    words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        compose([TINY, *words])
    assert "\n" not in str(error.value)


BROKEN: dict[str, tuple[bytes, str]] = {
    "list": (b"# @package _global_\n- a\n", "holds a list; a recipe is a mapping"),
    "scalar": (b"hello\n", "first line has to be"),
    "number": (b"3\n", "a recipe is a mapping"),
    "empty": (b"", "is empty"),
    "binary": (bytes(range(256)), "is not UTF-8 text"),
    "latin": ("# é\n".encode("latin-1"), "is not UTF-8 text"),
    "utf16": ("# @package _global_\ntask: math\n".encode("utf-16"), "is not UTF-8 text"),
    "bom": (b"\xef\xbb\xbf# @package _global_\ntask: math\n", "byte order mark"),
    "twice": (b"# @package _global_\ntask: math\ntask: countdown\n", "found duplicate key task"),
    "tab": (b"# @package _global_\ntrainer:\n\tseed: 1\n", "cannot start any token"),
    "headless": (b"task: countdown\n", "first line has to be `# @package _global_`"),
    "null": (b"# @package _global_\ntrainer:\n", "trainer is empty; give it keys, or leave it out"),
    "rewards": (b"# @package _global_\nrewards:\n", "rewards is empty"),
    "value": (b"# @package _global_\nmodel: 3\n", "model is a section with keys of its own"),
    "defaults": (b"# @package _global_\ndefaults: grpo-tiny\n", "defaults is a list of recipes"),
    "code": (b"# @package _global_\ntask: !!python/name:os.system ''\n", "could not determine a constructor"),
}


def test_a_broken_recipe_is_refused_with_the_reason_and_breaks_no_list_of_recipes(tmp_path: Path) -> None:
    recipes = copied(tmp_path)
    (recipes / "countdown" / "grpo-folder.yaml").mkdir()
    (recipes / "countdown" / "grpo-link.yaml").symlink_to("/nowhere")
    for name, (content, _) in BROKEN.items():
        (recipes / "countdown" / f"grpo-{name}.yaml").write_bytes(content)
    listed = {
        recipe.name: recipe.why_unreadable for recipe in config.list_recipes(recipes) if recipe.task == "countdown"
    }
    assert "is a folder" in str(listed["grpo-folder"])
    assert "is a link to a file that does not exist" in str(listed["grpo-link"])
    assert listed["grpo-tiny"] is None
    for name, (_, message) in BROKEN.items():
        with pytest.raises(ConfigError, match=f"grpo-{name}.yaml") as error:
            compose([f"+countdown=grpo-{name}"], recipes=recipes)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        assert message in str(listed[f"grpo-{name}"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("defaults: [grpo-x, _self_]\n", "it stands on itself"),
        ("defaults: [grpo-nowhere]\n", "grpo-nowhere.yaml does not exist"),
        ("defaults: [grpo-tiny, _self_]\ntrainer:\n  seed:\n", "grpo-x.yaml: trainer.seed: must be int, got null"),
        ("defaults: [grpo-tiny, _self_]\nrewards:\n  equation:\n", "rewards.equation: must be float, got null"),
    ],
)
def test_a_recipe_that_stands_on_another_wrongly_is_refused(tmp_path: Path, body: str, message: str) -> None:
    recipes = copied(tmp_path)
    (recipes / "countdown" / "grpo-x.yaml").write_text(f"# @package _global_\n{body}")
    with pytest.raises(ConfigError) as error:
        compose(["+countdown=grpo-x"], recipes=recipes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_may_have_a_name_that_is_not_ascii(tmp_path: Path) -> None:
    recipes = copied(tmp_path)
    text = (recipes / "countdown" / "grpo-tiny.yaml").read_text()
    (recipes / "countdown" / "grpo-été (1).yaml").write_text(text)
    assert compose(["+countdown=grpo-été (1)"], recipes=recipes).task == "countdown"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("trainer.lerning_rate", "trainer.learning_rate"),
        ("trainer.learing_rate", "trainer.learning_rate"),
        ("trainer.max_step", "trainer.max_steps"),
        ("trainer.temprature", "trainer.temperature"),
        ("trainer.num_generation", "trainer.num_generations"),
        ("trainer.num_epochs", "trainer.num_train_epochs"),
        ("trainer.lr", "trainer.learning_rate"),
        ("lr", "trainer.learning_rate"),
        ("model.lr", "trainer.learning_rate"),
        ("actor.lr", "trainer.learning_rate"),
        ("critic.lr", "critic.learning_rate"),
        ("trainer.batch_size", "trainer.per_device_train_batch_size"),
        ("trainer.epochs", "trainer.num_train_epochs"),
        ("epochs", "trainer.num_train_epochs"),
        ("trainer.kl_coef", "trainer.beta"),
        ("trainer.max_new_tokens", "trainer.max_completion_length"),
        ("trainer.num_samples", "trainer.num_generations"),
        ("trainer.rollouts", "trainer.num_generations"),
        ("trainer.rollout_n", "trainer.num_generations"),
        ("model_path", "model.model_name_or_path"),
        ("trainer.num_workers", "trainer.dataloader_num_workers"),
        ("trainer.lora_alpha", "model.lora_alpha"),
        ("model.learning_rate", "trainer.learning_rate"),
        ("learning_rate", "trainer.learning_rate"),
        ("lerning_rate", "trainer.learning_rate"),
        ("modle.dtype", "model.dtype"),
        ("trianer.max_steps", "trainer.max_steps"),
        ("reward.equation", "rewards.equation"),
        ("generaton.engine", "generation.engine"),
        ("generation.engin", "generation.engine"),
        ("outputdir", "output_dir"),
        ("algoritm", "algorithm"),
        *((f"trainer.{key}", None) for key in ("early_stopping_patience", "critic_lr", "ppo_mini_batch_size")),
        *((f"trainer.{key}", None) for key in ("top_a", "adam_beta3", "fp8", "sampler", "patience", "n_gpus_per_node")),
        *((key, None) for key in ("wandb_project", "foo", "x", "env.name", "trainer.fooo.bar", "gpu")),
    ],
)  # fmt: skip
def test_a_hint_is_near_or_absent(key: str, hint: str | None) -> None:
    with pytest.raises(ConfigError, match=f"there is no key {key}") as error:
        compose([TINY, f"{key}=1"])
    said = str(error.value).partition("; did you mean ")[2].rstrip("?")
    assert said == (hint or "")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Writes recipes of a person's own in the working directory: `own("recipes/countdown/grpo-mine.yaml", body)`."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, body: str) -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# @package _global_\n{body}")
        return tmp_path / name

    return write


ON_TINY = "defaults: [grpo-tiny, _self_]\n"


def test_recipes_of_ones_own_are_in_the_working_directory_and_in_config_dir(own: Callable[[str, str], Path]) -> None:
    own("recipes/countdown/grpo-mine.yaml", f"{ON_TINY}trainer: {{max_steps: 3}}\n")
    own("elsewhere/countdown/grpo-ours.yaml", "defaults: [grpo-mine, _self_]\ntrainer: {seed: 5}\n")
    assert compose(["+countdown=grpo-mine"]).trainer.max_steps == 3
    for option in (["--config-dir", "elsewhere"], ["--config-dir=elsewhere"]):
        cfg = compose(["+countdown=grpo-ours", *option])
        assert (cfg.trainer.seed, cfg.trainer.max_steps, cfg.model.model_name_or_path) == (5, 3, "tiny")
    with pytest.raises(ConfigError, match="recipes/countdown has no recipe 'grpo-ours'; it has .*grpo-mine"):
        compose(["+countdown=grpo-ours"])
    listed = {recipe.name for recipe in config.list_recipes(*config.recipe_folders("elsewhere"))}
    assert {"grpo-mine", "grpo-ours", "grpo-tiny", "sft-tiny"} <= listed


def test_a_recipe_of_ones_own_goes_before_one_of_the_package(own: Callable[[str, str], Path]) -> None:
    own("recipes/countdown/rloo-tiny.yaml", f"{ON_TINY}trainer: {{seed: 77}}\n")
    assert compose(["+countdown=rloo-tiny"]).trainer.seed == 77


def test_a_recipe_may_be_named_by_its_path(own: Callable[[str, str], Path]) -> None:
    own("my stuff/été (1).yaml", "defaults: [/countdown/grpo-tiny, _self_]\ntrainer: {seed: 6, run_name: null}\n")
    own("my stuff/next.yaml", "defaults: ['été (1)', _self_]\ntrainer: {max_steps: 2}\n")
    own("of-task.yaml", f"task: countdown\n{ON_TINY}")
    own("there/countdown/x.yaml", ON_TINY)
    assert compose(["my stuff/été (1).yaml", "trainer.max_steps=7"]).trainer.run_name == "été (1)"
    assert compose(["my stuff/next.yaml"]).trainer.seed == 6
    assert compose(["of-task.yaml"]).model.model_name_or_path == "tiny"
    assert compose(["there/countdown/x.yaml"]).model.model_name_or_path == "tiny"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml: there is no such file"),
        (["bare.yaml"], "bare.yaml: defaults: grpo-tiny.yaml does not exist; write /countdown/grpo-tiny or /math/grpo-tiny"),
        (["typo.yaml"], "typo.yaml: there is no key trainer.lr; did you mean trainer.learning_rate"),
        (["value.yaml"], "value.yaml: trainer.seed: must be a whole number, got 'x'"),
        (["sft-x.yaml"], "recipe sft-x.yaml is not for grpo.py"),
        (["bare.yaml", TINY], r"exactly one recipe, got bare.yaml and \+countdown=grpo-tiny"),
        ([TINY, "--config-dir", "nowhere"], "--config-dir nowhere: there is no such folder"),
        ([TINY, "--config-dir"], "--config-dir takes a folder"),
        ([TINY, "-m"], "'-m' is not understood"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_recipe_of_ones_own_is_one_line(
    own: Callable[[str, str], Path], words: list[str], message: str
) -> None:
    own("bare.yaml", ON_TINY)
    own("typo.yaml", "defaults: [/countdown/grpo-tiny, _self_]\ntrainer: {lr: 1}\n")
    own("value.yaml", "defaults: [/countdown/grpo-tiny, _self_]\ntrainer: {seed: x}\n")
    own("sft-x.yaml", "defaults: [/countdown/sft-tiny, _self_]\n")
    with pytest.raises(ConfigError, match=message) as error:
        compose(words)
    assert "\n" not in str(error.value)


def test_a_recipe_may_refer_to_its_own_keys_and_to_the_environment(
    own: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own(
        "mine.yaml",
        "defaults: [/countdown/grpo-tiny, _self_]\noutput_dir: out/${trainer.run_name}-${trainer.seed}\n"
        "trainer: {run_name: '${oc.env:WHO}', project: '${oc.env:NOT_THERE,plain}', hub_token: '${oc.env:MY_VALUE}'}\n",
    )
    monkeypatch.setenv("WHO", "ada")
    monkeypatch.setenv("MY_VALUE", "very-secret")
    cfg = compose(["mine.yaml", "trainer.seed=3"])
    assert (cfg.output_dir, cfg.trainer.project, cfg.trainer.hub_token) == ("out/ada-3", "plain", "very-secret")
    assert config.show(cfg) == 0
    assert "very-secret" not in capsys.readouterr().out
    monkeypatch.delenv("WHO")
    with pytest.raises(
        ConfigError, match="trainer.run_name: the environment variable WHO is not set; set it, or write"
    ):
        compose(["mine.yaml"])


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file in which the fields of TRL's classes are kept, written anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    schema.trl_fields.cache_clear()
    schema.trl_fields()
    yield schema.cache_file()
    schema.trl_fields.cache_clear()


def test_the_kept_schema_is_what_trl_says(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {name: fields_of(getattr(trl, name)) for name in ("GRPOConfig", "SFTConfig", "ModelConfig")}
    monkeypatch.setattr(schema, "_read_from_trl", lambda: pytest.fail("TRL was read"))
    schema.trl_fields.cache_clear()
    assert schema.is_cached()
    assert schema.trl_fields() == fields
    for name, group in fields.items():
        hints = get_type_hints(getattr(trl, name))
        assert not [field.name for field in group if str(field.hint) != str(hints[field.name])]


@pytest.mark.parametrize("fault", ["gone", "cut", "changed", "list", "versions", "python", "folder"])
def test_a_kept_schema_that_is_gone_damaged_or_of_other_versions_is_read_anew(
    cached: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = cached.read_text()
    if fault in ("versions", "python"):
        key = {**schema.versions(), **({"trl": "9.9.9"} if fault == "versions" else {"python": "3.99.0"})}
        monkeypatch.setattr(schema, "versions", lambda: key)
    elif fault in ("gone", "folder"):
        cached.unlink()
    if fault == "folder":
        cached.mkdir()
    damaged = {"cut": text[:-9], "changed": text.replace("learning_rate", "learning_rats"), "list": "[]"}
    if fault in damaged:
        cached.write_text(damaged[fault])
    assert not schema.is_cached()
    schema.trl_fields.cache_clear()
    fields = schema.trl_fields()
    assert "learning_rate" in {field.name for field in fields["GRPOConfig"]}
    assert schema.is_cached() == (fault != "folder")


def copied(tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(config.RECIPES, tmp_path / "recipes"))
