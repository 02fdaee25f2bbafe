"""One recipe and a command line -> one checked run; every mistake is a ConfigError of one line."""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from tinyzero_trl.algorithms import ALGORITHMS
from tinyzero_trl.config import batching
from tinyzero_trl.config.environment import is_first_process, num_processes_here
from tinyzero_trl.config.generation import tell_trl
from tinyzero_trl.config.keys import (
    TEXTS,
    check_keys,
    checked_override,
    defaults,
    known_keys,
    recipe_override,
    trainer_class,
    value_of,
)
from tinyzero_trl.config.recipes import (
    NOT_TASKS,
    RECIPES,
    chain,
    content_of,
    groups,
    list_recipes,
    program_of,
    shown,
)
from tinyzero_trl.config.schema import fits, run_schema
from tinyzero_trl.failures import ConfigError, nearest
from tinyzero_trl.redaction import redacted, secrets_in_environment
from tinyzero_trl.storage import trust

REWARD = re.compile(r"\+{0,2}(rewards|reward_parameters)\.")


WORDS = (
    (r"^field .* is not Optional", "is empty; give it a value, or leave it out"),
    (r"^Value (.*) of type '\w+' could not be converted to Integer", r"must be a whole number, got \1"),
    (r"^Value (.*) of type '\w+' could not be converted to Float", r"must be a number, got \1"),
    (r"^Value (.*) is not a valid bool \(type \w+\)", r"must be true or false, got \1"),
    (r"^Cannot convert '\w+' to string: '(.*)'$", r"must be text, got \1"),
    (
        r"^Invalid (?:value|type) assigned: (\w+) is not a ListConfig, list or tuple\.",
        r"must be a list, such as [a, b]; got a \1",
    ),
    (r"^Cannot assign (\w+) to ListConfig.*", r"must be a list, such as [a, b]; got a \1"),
)
"""Hydra's messages about a value, and ours in their place."""
MAX_NAME_BYTES = 200
"""Of a folder's name: most file systems take 255, and ours puts the time behind it."""


def compose(
    argv: Sequence[str], *, program: str = "grpo", recipes: Path = RECIPES, num_processes: int | None = None
) -> DictConfig:
    """The resolved run of a command line such as `+countdown=grpo-tiny trainer.max_steps=10`.

    program: `grpo` or `sft`; names the recipe all its runs share (`recipes/<program>.yaml`) and TRL's config class.
    num_processes: those that train, for the batch; None: as many as the launcher says.
    Raises: ConfigError, on no or two recipes, an unknown recipe, key or type.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    group, name, overrides = _split(argv, program=program, recipes=recipes)  # before TRL, whose import takes seconds
    keys = known_keys(program)
    shared = recipes / f"{program}.yaml"
    contents = {shared: content_of(shared), **chain(recipes / group, name)}
    for file, content in contents.items():
        check_keys(content, keys, where=shown(file))
    files = list(contents)
    # A reward of one's own, `rewards.path/file.py:name=1`, is a key that Hydra's grammar has no words for.
    of_rewards = [item.lstrip("+") for item in overrides if REWARD.match(item)]
    overrides = [checked_override(item, keys) for item in overrides if not REWARD.match(item)]
    _register_schema(program)
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(config_dir=str(recipes.resolve()), version_base="1.3"):
            cfg = hydra.compose(
                config_name=program,
                overrides=[recipe_override(group, name), *overrides],
            )
        with open_dict(cfg):
            for item in of_rewards:
                _set_reward(cfg, item)
        OmegaConf.resolve(cfg)
        _go_home(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error, files)) from error
    missing = sorted(str(key) for key in OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{shown(files[-1])}: no value for {', '.join(missing)}")
    if cfg.trainer.get("run_name") is None:
        cfg.trainer.run_name = name
    if fault := folder_name_fault(str(cfg.trainer.run_name)):
        raise ConfigError(
            f"trainer.run_name {str(cfg.trainer.run_name)!r:.80} {fault}; output_dir says where a run goes"
        )
    _check_untyped(cfg, program)
    if program == "grpo":
        batching.settle(
            cfg,
            num_processes=num_processes or num_processes_here(),
            in_recipe={key for content in contents.values() for key in _keys(content)},
            in_words={item.lstrip("+").partition("=")[0] for item in overrides},
        )
        tell_trl(cfg)
    OmegaConf.set_struct(cfg, True)
    return cfg


def without_options(words: Sequence[str], *, program: str) -> tuple[list[str], bool]:
    """The words that make the run, and whether it is only to be shown (`--cfg job`); `--help` prints help and exits."""
    if "--help" in words or "-h" in words:
        names = [f"+{item.task}={item.name}" for item in list_recipes() if program_of(item.name) == program]
        more = f" [{trust.OPTION}]" if program == "grpo" else ""
        print(
            f"usage: accelerate launch src/tinyzero_trl/{program}.py +<task>=<recipe> [key=value ...] [--cfg job]{more}"
        )
        print("recipes:", *names, sep="\n  ")
        raise SystemExit(0)
    rest = list(words)
    for option in ("--cfg", "-c"):
        if option in rest:
            at = rest.index(option)
            if rest[at + 1 : at + 2] != ["job"]:
                raise ConfigError(f"{option} takes `job`: it prints the whole resolved run")
            return rest[:at] + rest[at + 2 :], True
    return [word for word in rest if word != "--cfg=job"], "--cfg=job" in rest


def show(cfg: DictConfig) -> int:
    """Print the whole resolved run without its secrets, once for all processes; returns exit code 0."""
    if is_first_process():
        content = redacted(OmegaConf.to_container(cfg, resolve=True), also=secrets_in_environment())
        print(OmegaConf.to_yaml(OmegaConf.create(content)), end="")
    return 0


def trainer_arguments(cfg: DictConfig, *, program: str, **fixed: Any) -> Any:
    """TRL's config object with every key the run sets, what `fixed` sets, and TRL's default for the rest.

    Making it starts the process group where there are several processes. Its `output_dir` is to be set by the caller.
    """
    from transformers.utils.logging import disable_progress_bar

    # The run has one progress display; loading and saving would each draw a bar into it.
    disable_progress_bar()
    config_class = trainer_class(program)
    standing = defaults(program)["trainer"]
    given = typing.cast(dict[str, Any], OmegaConf.to_container(cfg.trainer))
    chosen = {key: value for key, value in given.items() if value != standing[key]}
    chosen.pop("resume_from_checkpoint", None)
    try:
        arguments = config_class(**{**chosen, **fixed, "output_dir": ".", "disable_tqdm": True})
    except (ValueError, TypeError, OSError) as error:  # some keys may name files
        raise ConfigError("trainer: " + " ".join(str(error).split())) from error
    if arguments.deepspeed_plugin is not None:
        sum_gradients_in_float32(arguments.deepspeed_plugin.deepspeed_config)
    # What TensorBoard, W&B and the like are told of the run.
    arguments.to_dict = partial(_shown_arguments, arguments)
    return arguments


def sum_gradients_in_float32(deepspeed_config: dict[str, Any]) -> None:
    """Have DeepSpeed add up the gradients of micro-batches in float32, where its config names no other type.

    Left to itself it takes the model's type: in bfloat16 a sum of 128 micro-batches loses whatever is below 1/256 of it.
    Stage 0 takes no other type than the model's.
    """
    if deepspeed_config.get("zero_optimization", {}).get("stage", 0) > 0:
        deepspeed_config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")


def _shown_arguments(arguments: Any) -> dict[str, Any]:
    return typing.cast(dict[str, Any], redacted(type(arguments).to_dict(arguments)))


def folder_name_fault(name: str) -> str | None:
    """Why `name` cannot be the name of one new folder; None where it can."""
    if not name.strip() or name in (".", ".."):
        return "is no name of a folder"
    if "/" in name or "\\" in name:
        return "is a path, and has to be the name of one folder"
    if not name.isprintable():
        return "has characters that cannot be printed; use letters, digits, - and _"
    if (length := len(name.encode("utf-8", errors="replace"))) > MAX_NAME_BYTES:
        return f"is {length} bytes long, and a folder's name may have {MAX_NAME_BYTES} here"
    return None


def _set_reward(cfg: DictConfig, item: str) -> None:
    """One word of the command line about a reward, whose name may be a path."""
    section, _, rest = item.partition(".")
    if section == "rewards":
        reward, equals, weight = rest.rpartition("=")
        if not equals or not reward:
            raise ConfigError(f"{item}: write rewards.<name>=<weight>")
        cfg.rewards[reward] = weight
        return
    key, _, text = rest.partition("=")
    reward, _, name = key.rpartition(".")
    if not reward or ":" in name or "/" in name:  # the dot was one of a file's name
        values = value_of(text)
        if not isinstance(values, dict):
            raise ConfigError(f"{item}: write reward_parameters.{key}.<parameter>=<value>")
        cfg.reward_parameters[key] = values
        return
    if reward not in cfg.reward_parameters:
        cfg.reward_parameters[reward] = {}
    cfg.reward_parameters[reward][name] = value_of(text)


def _go_home(cfg: DictConfig) -> None:
    """Put the home folder for `~` at the start of paths."""
    with open_dict(cfg):
        for key in TEXTS:
            value = OmegaConf.select(cfg, key)
            if isinstance(value, str) and value.startswith("~"):
                OmegaConf.update(cfg, key, os.path.expanduser(value))
        OmegaConf.update(cfg, "data", _at_home(OmegaConf.to_container(cfg.data)), merge=False)
        for section in ("rewards", "reward_parameters"):
            for name in [str(name) for name in cfg.get(section) or {} if str(name).startswith("~")]:
                cfg[section][os.path.expanduser(name)] = cfg[section].pop(name)
        if "reward_workers" in cfg:
            cfg.reward_workers.rewards = [os.path.expanduser(str(name)) for name in cfg.reward_workers.rewards]


def _at_home(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _at_home(item) for key, item in value.items()}
    return os.path.expanduser(value) if isinstance(value, str) and (value == "~" or value.startswith("~/")) else value


def _keys(content: Any) -> Iterator[str]:
    """The keys that a recipe file sets in the sections a batch is stated in: `trainer.x`, `batching.y`."""
    for section in ("trainer", "batching"):
        yield from (f"{section}.{key}" for key in content.get(section) or {})


@cache
def _register_schema(program: str) -> None:
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=f"{program}_schema", node=run_schema(trainer_class(program)))


def _split(argv: Sequence[str], *, program: str, recipes: Path) -> tuple[str, str, list[str]]:
    tasks = groups(recipes)
    chosen: list[tuple[str, str]] = []
    overrides: list[str] = []
    available = [
        f"+{path.parent.name}={path.stem}"
        for path in sorted(recipes.glob("*/*.yaml"))
        if path.parent.name not in NOT_TASKS and program_of(path.stem) == program
    ]
    for argument in argv:
        key, _, value = argument.partition("=")
        if argument.startswith("-") or ("=" not in argument and not argument.startswith("~")):
            raise ConfigError(f"{argument!r} is not understood; write key=value, +<task>=<recipe>, --cfg job or --help")
        bare = key.lstrip("+")
        if bare in tasks:
            chosen.append((bare, value))
        elif key.startswith("+") and "." not in bare and value.split("-")[0] in (*ALGORITHMS, "sft"):
            raise ConfigError(
                f"there is no folder recipes/{bare}; recipes: {', '.join(available)}{nearest(bare, tasks)}"
            )
        else:
            overrides.append(argument)
    if len(chosen) != 1:
        named = " and ".join(f"+{group}={name}" for group, name in chosen) or "none"
        raise ConfigError(f"a run takes exactly one recipe, got {named}; recipes: {', '.join(available)}")
    group, name = chosen[0]
    names = [path.stem for path in sorted((recipes / group).glob("*.yaml")) if program_of(path.stem) == program]
    if name not in names:
        if (recipes / group / f"{name}.yaml").is_file():
            raise ConfigError(
                f"recipe {group}/{name} is not for {program}.py; {program} recipes of {group}: {', '.join(names)}"
            )
        raise ConfigError(f"recipes/{group} has no recipe {name!r}; it has {', '.join(names)}{nearest(name, names)}")
    return group, name, overrides


def _check_untyped(cfg: Any, program: str) -> None:
    from trl import ModelConfig

    for section, config_class in (("model", ModelConfig), ("trainer", trainer_class(program))):
        hints = typing.get_type_hints(config_class)
        values = typing.cast(dict[str, Any], OmegaConf.to_container(cfg[section]))
        standing = defaults(program)[section]
        for key, value in values.items():
            if key == "resume_from_checkpoint":
                if value is not None and not isinstance(value, (bool, str)):
                    raise ConfigError(f"{section}.{key} must be true or the path of a checkpoint, got {value!r}")
            elif value != standing[key] and not fits(value, hints[key]):
                raise ConfigError(f"{section}.{key} must be {_spell(hints[key])}, got {value!r}")


def _spell(hint: Any) -> str:
    return (str(hint) if typing.get_args(hint) else getattr(hint, "__name__", str(hint))).replace("typing.", "")


def _one_line(error: Exception, files: Sequence[Path]) -> str:
    """Hydra's message of several lines as one that names file, key and fault."""
    chain, current = [], error
    while current is not None:
        chain.append(str(current))
        current = current.__cause__  # type: ignore[assignment]
    text = "\n".join(chain)
    key = re.search(r"full_key: (\S+)", text)
    fault = re.search(
        r"(Value .*|Cannot .*|Interpolation .*|mismatched .*|Object of unsupported .*|Error parsing .*|no viable .*|extraneous .*"
        r"|Incompatible value .*|field .* is not Optional|Invalid (?:value|type) assigned.*)",
        text,
    )
    if key and fault:
        said = re.sub(r"^Incompatible value 'None' for field of type '(\w+)'", r"must be \1, got null", fault.group(1))
        for hydras, ours in WORDS:
            said = re.sub(hydras, ours, said)
        where = next((shown(file) for file in files if f"In '{file.parent.name}/{file.stem}'" in text), "command line")
        return f"{where}: {key.group(1)}: {said}"
    override = getattr(error, "override", None) or getattr(error.__cause__, "override", None)
    return (f"{override.lstrip('+')}: " if override else "") + " ".join(text.split())[:400]
