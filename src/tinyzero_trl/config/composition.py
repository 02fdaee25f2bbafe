"""One recipe and a command line -> one config, its names and types checked; a mistake is one ConfigError of one line."""

from __future__ import annotations

import copy
import os
import re
import tempfile
import typing
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from tinyzero_trl.config import batching, schema
from tinyzero_trl.config.environment import is_first_process, num_processes_here
from tinyzero_trl.config.generation import tell_trl
from tinyzero_trl.config.keys import (
    TEXTS,
    check_keys,
    checked_override,
    defaults,
    known_keys,
    parsed_override,
    recipe_override,
    value_of,
)
from tinyzero_trl.config.recipes import (
    RECIPES,
    Layer,
    choose,
    content_of,
    layers,
    list_recipes,
    program_of,
    recipe_folders,
    shown,
    without_config_dir,
)
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.redaction import redacted, secrets_in_environment
from tinyzero_trl.storage import trust

REWARD = re.compile(r"\+{0,2}(rewards|reward_parameters)\.")
VARIABLE = re.compile(r"\$\{oc\.env:\s*([^,}\s]+)\s*\}")
"""An interpolation of an environment variable without a default."""


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
"""Hydra's messages about a value, and ours that replace them."""
MAX_NAME_BYTES = 200
"""Length of a folder's name: most file systems take 255, and the time is appended to it."""


def compose(
    argv: Sequence[str], *, program: str = "grpo", recipes: Path | None = None, num_processes: int | None = None
) -> DictConfig:
    """The resolved run of a command line such as `+countdown=grpo-tiny trainer.max_steps=10`.

    program: `grpo` or `sft`; names the recipe all its runs share (`recipes/<program>.yaml`) and TRL's config class.
    recipes: a folder of recipes instead of the package's, ./recipes and --config-dir.
    num_processes: number of training processes, for the batch; None: as many as the launcher says.
    Raises: ConfigError, on no or two recipes, an unknown recipe, key or type.
    """
    cfg, in_recipe, in_words = _typed(argv, program=program, recipes=recipes)
    if program == "grpo":
        batching.settle(
            cfg, num_processes=num_processes or num_processes_here(), in_recipe=in_recipe, in_words=in_words
        )
        tell_trl(cfg)
    elif cfg.trainer.resume_from_checkpoint:
        raise ConfigError(
            f"trainer.resume_from_checkpoint={cfg.trainer.resume_from_checkpoint}: a supervised run is not continued, it takes "
            "minutes; start it anew without this key"
        )
    OmegaConf.set_struct(cfg, True)
    return cfg


def check_words(words: Sequence[str], *, program: str) -> None:
    """Raises: ConfigError, for what `compose` refuses of names and types, if that can be known without importing TRL."""
    if schema.is_cached():
        _typed(without_options(trust.without_option(words)[0], program=program)[0], program=program)


def _typed(argv: Sequence[str], *, program: str, recipes: Path | None = None) -> tuple[DictConfig, set[str], set[str]]:
    """The run of a command line, its names and types checked, and the keys that recipe files and the command line set."""
    from hydra.errors import HydraException

    # Before the schema is read: without a cached one TRL is imported, which takes seconds.
    choice = choose(argv, program=program, folders=None if recipes is None else (recipes,))
    files = layers(choice.path, choice.group, choice.folders)
    shared = (recipes or RECIPES) / f"{program}.yaml"
    keys = known_keys(program)
    for path, content in ((shared, content_of(shared)), *((layer.path, layer.content) for layer in files)):
        check_keys(content, keys, where=shown(path))
    # A reward of one's own, `rewards.path/file.py:name=1`, is a key that Hydra's grammar has no words for.
    of_rewards = [item.lstrip("+") for item in choice.overrides if REWARD.match(item)]
    overrides = [checked_override(item, keys) for item in choice.overrides if not REWARD.match(item)]
    try:
        texts = tuple((layer.group, layer.name, layer.text) for layer in files)
        cfg = copy.deepcopy(_composed(program, shared.read_text(encoding="utf-8"), texts))
        for item in overrides:
            key, value = parsed_override(item)
            OmegaConf.update(cfg, key, value, merge=True, force_add=True)  # as Hydra applies `++key=value`
        with open_dict(cfg):
            for item in of_rewards:
                _set_reward(cfg, item)
        _check_variables(cfg)
        OmegaConf.resolve(cfg)
        _go_home(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error, files)) from error
    content = typing.cast(dict[str, Any], OmegaConf.to_container(cfg))
    if missing := sorted(key for key, value in _leaves(content) if value == MISSING):
        raise ConfigError(f"{shown(choice.path)}: no value for {', '.join(missing)}")
    if cfg.trainer.get("run_name") is None:
        cfg.trainer.run_name = choice.path.stem
    if reason := why_not_a_folder_name(str(cfg.trainer.run_name)):
        raise ConfigError(
            f"trainer.run_name {str(cfg.trainer.run_name)!r:.80} {reason}; output_dir says where a run goes"
        )
    _check_untyped(content, program)
    in_recipe = {key for content in (content_of(shared), *(layer.content for layer in files)) for key in _keys(content)}
    return cfg, in_recipe, {item.lstrip("+").partition("=")[0] for item in overrides}


@cache
def _composed(program: str, shared_text: str, files: tuple[tuple[str, str, str], ...]) -> DictConfig:
    """The recipe of these files (group, name and text of each, the recipe last) on top of the one that all runs share; callers copy it.

    Hydra reads a folder with these files alone: they may come from several folders of a person's and from the package.
    """
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra

    ConfigStore.instance().store(name=f"{program}_schema", node=schema.run_schema(program))
    with tempfile.TemporaryDirectory() as folder:
        for path, text in (
            (f"{program}.yaml", shared_text),
            *((f"{group}/{name}.yaml", text) for group, name, text in files),
        ):
            (Path(folder) / path).parent.mkdir(exist_ok=True)
            (Path(folder) / path).write_text(text, encoding="utf-8")
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(config_dir=folder, version_base="1.3"):
            return hydra.compose(config_name=program, overrides=[recipe_override(*files[-1][:2])])


def without_options(words: Sequence[str], *, program: str) -> tuple[list[str], bool]:
    """The words that make the run, and True if it is only to be shown (`--cfg job`); `--help` prints help and exits."""
    if "--help" in words or "-h" in words:
        _, config_dir = without_config_dir(words)
        listed = list_recipes(*recipe_folders(config_dir))
        names = [f"+{item.task}={item.name}" for item in listed if program_of(item.name) == program]
        more = f" [{trust.OPTION}]" if program == "grpo" else ""
        print(
            f"usage: accelerate launch src/tinyzero_trl/{program}.py +<task>=<recipe> [key=value ...] [--config-dir DIR] [--cfg job]{more}"
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
    import trl
    from transformers.utils.logging import disable_progress_bar

    # The run has one progress display; loading and saving would each draw a bar into it.
    disable_progress_bar()
    config_class = getattr(trl, schema.TRAINERS[program])
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
    # Trackers such as TensorBoard and W&B record this dict.
    arguments.to_dict = partial(_shown_arguments, arguments)
    return arguments


def sum_gradients_in_float32(deepspeed_config: dict[str, Any]) -> None:
    """Have DeepSpeed add up the gradients of micro-batches in float32, where its config names no other type.

    By default it takes the model's type: in bfloat16 a sum of 128 micro-batches loses whatever is below 1/256 of it.
    Stage 0 takes no other type than the model's.
    """
    if deepspeed_config.get("zero_optimization", {}).get("stage", 0) > 0:
        deepspeed_config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")


def _shown_arguments(arguments: Any) -> dict[str, Any]:
    return typing.cast(dict[str, Any], redacted(type(arguments).to_dict(arguments)))


def why_not_a_folder_name(name: str) -> str | None:
    """The reason why `name` cannot be the name of one new folder; None where it can."""
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
    """Set the weight or a parameter of a reward, whose name may be a path, by one word of the command line."""
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


def _check_variables(cfg: DictConfig) -> None:
    """Raises: ConfigError, where `${oc.env:NAME}` names an environment variable that is not set, and gives no default."""
    for key, value in _leaves(typing.cast(dict[str, Any], OmegaConf.to_container(cfg))):
        for name in VARIABLE.findall(value) if isinstance(value, str) else ():
            if name not in os.environ:
                raise ConfigError(
                    f"{key}: the environment variable {name} is not set; set it, or write ${{oc.env:{name},<default>}}"
                )


def _go_home(cfg: DictConfig) -> None:
    """Replace `~` at the start of paths by the home folder."""
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


def _leaves(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each key of a config, with the sections it is in, and its value; items of a list have the key of the list."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield from ((f"{prefix}{key}", item) for item in (value if isinstance(value, list) else [value]))


def _check_untyped(content: dict[str, Any], program: str) -> None:
    """Raises: ConfigError, for a value of `model` or `trainer` of a type that OmegaConf cannot check."""
    for section, name in (("model", schema.MODEL), ("trainer", schema.TRAINERS[program])):
        for field in schema.trl_fields()[name]:
            value = content[section][field.name]
            if field.is_typed or value == field.default:
                continue
            if field.name == "resume_from_checkpoint":
                if value is not None and not isinstance(value, (bool, str)):
                    raise ConfigError(f"{section}.{field.name} must be true or the path of a checkpoint, got {value!r}")
            elif not schema.fits(value, field.hint):
                raise ConfigError(f"{section}.{field.name} must be {_spell(field.hint)}, got {value!r}")


def _spell(hint: Any) -> str:
    return (str(hint) if typing.get_args(hint) else getattr(hint, "__name__", str(hint))).replace("typing.", "")


def _one_line(error: Exception, files: Sequence[Layer]) -> str:
    """Hydra's message of several lines as one that names file, key and mistake."""
    chain, current = [], error
    while current is not None:
        chain.append(str(current))
        current = current.__cause__  # type: ignore[assignment]
    text = "\n".join(chain)
    key = re.search(r"full_key: (\S+)", text)
    mistake = re.search(
        r"(Value .*|Cannot .*|Interpolation .*|mismatched .*|Object of unsupported .*|Error parsing .*|no viable .*|extraneous .*"
        r"|Incompatible value .*|field .* is not Optional|Invalid (?:value|type) assigned.*)",
        text,
    )
    if key and mistake:
        said = re.sub(
            r"^Incompatible value 'None' for field of type '(\w+)'", r"must be \1, got null", mistake.group(1)
        )
        for hydras, ours in WORDS:
            said = re.sub(hydras, ours, said)
        where = next((shown(file.path) for file in files if f"In '{file.group}/{file.name}'" in text), "command line")
        return f"{where}: {key.group(1)}: {said}"
    return " ".join(text.split())[:400]
