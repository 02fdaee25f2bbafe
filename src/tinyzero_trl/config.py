"""One recipe and a command line -> one checked run; every mistake is a ConfigError of one line."""

from __future__ import annotations

import difflib
import os
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from tinyzero_trl.failures import ConfigError
from tinyzero_trl.schema import DATA_KEYS, OURS, REPLACED, fits, run_schema

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
"""The recipe folder of the source tree."""
REWARD = re.compile(r"\+{0,2}rewards\.")
NOT_TASKS = ("accelerate_configs",)


@dataclass(frozen=True)
class Recipe:
    """A recipe file and what the comment at its head says."""

    task: str
    name: str
    path: Path
    model: str
    """Model name or path."""
    method: str
    """First word of the file name: grpo, sft, ..."""
    hardware: str
    """The machine it was sized for."""
    expectation: str
    """What a run should reach, and who has seen it."""


def list_recipes(folder: Path = RECIPES) -> list[Recipe]:
    """Every recipe of the source tree, sorted by task and name."""
    recipes = []
    for path in sorted(folder.glob("*/*.yaml")):
        if path.parent.name in NOT_TASKS:
            continue
        head = _header(path)
        model = str(OmegaConf.select(OmegaConf.load(path), "model.model_name_or_path", default=""))
        recipes.append(
            Recipe(
                task=path.parent.name,
                name=path.stem,
                path=path,
                model=model,
                method=path.stem.split("-")[0],
                hardware=head.get("hardware", ""),
                expectation=head.get("expect", ""),
            )
        )
    return recipes


def model_path(name: str) -> str:
    """Where `name` loads from: the packaged folder for `tiny`, otherwise `name` itself."""
    return str(Path(__file__).resolve().parent / "tiny") if name == "tiny" else name


def compose(argv: Sequence[str], *, program: str = "grpo", recipes: Path = RECIPES) -> DictConfig:
    """The resolved run of a command line such as `+countdown=grpo-tiny trainer.max_steps=10`.

    program: `grpo` or `sft`; names the recipe all its runs share (`recipes/<program>.yaml`) and TRL's config class.
    Raises: ConfigError, on no or two recipes, an unknown recipe, key or type.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    keys = _known_keys(program)
    group, name, overrides = _split(argv, program=program, recipes=recipes)
    files = [recipes / f"{program}.yaml", *_chain(recipes / group, name)]
    for file in files:
        _check_keys(OmegaConf.to_container(OmegaConf.load(file)), keys, where=_shown(file))
    # A reward of one's own, `rewards.path/file.py:name=1`, is a key that Hydra's grammar has no words for.
    weights = [item.lstrip("+").removeprefix("rewards.").rpartition("=") for item in overrides if REWARD.match(item)]
    overrides = [_checked_override(item, keys) for item in overrides if not REWARD.match(item)]
    _register_schema(program)
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(config_dir=str(recipes.resolve()), version_base="1.3"):
            cfg = hydra.compose(
                config_name=program,
                overrides=[f"+{group}={name}", *overrides],
            )
        for reward, _, weight in weights:
            with open_dict(cfg):
                cfg.rewards[reward] = weight
        OmegaConf.resolve(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error, files)) from error
    missing = sorted(str(key) for key in OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{_shown(files[-1])}: no value for {', '.join(missing)}")
    if cfg.trainer.get("run_name") is None:
        cfg.trainer.run_name = name
    _check_untyped(cfg, program)
    OmegaConf.set_struct(cfg, True)
    return typing.cast(DictConfig, cfg)


def without_options(words: Sequence[str], *, program: str) -> tuple[list[str], bool]:
    """The words that make the run, and whether it is only to be shown (`--cfg job`); `--help` prints help and exits."""
    if "--help" in words or "-h" in words:
        names = [f"+{item.task}={item.name}" for item in list_recipes() if item.method == program]
        print(f"usage: accelerate launch src/tinyzero_trl/{program}.py +<task>=<recipe> [key=value ...] [--cfg job]")
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
    """Print the whole resolved run, once for all processes; returns exit code 0."""
    if os.environ.get("RANK", "0") == "0":
        print(OmegaConf.to_yaml(cfg, resolve=True), end="")
    return 0


def trainer_arguments(cfg: DictConfig, *, program: str, **fixed: Any) -> Any:
    """TRL's config object with every key the run sets, what `fixed` sets, and TRL's default for the rest.

    Making it starts the process group where there are several processes. Its `output_dir` is to be set by the caller.
    """
    from transformers.utils.logging import disable_progress_bar

    # The run has one progress display; loading and saving would each draw a bar into it.
    disable_progress_bar()
    config_class = _trainer_class(program)
    defaults = _defaults(program)["trainer"]
    given = typing.cast(dict[str, Any], OmegaConf.to_container(cfg.trainer))
    chosen = {key: value for key, value in given.items() if value != defaults[key]}
    chosen.pop("resume_from_checkpoint", None)
    try:
        return config_class(**{**chosen, **fixed, "output_dir": ".", "disable_tqdm": True})
    except (ValueError, TypeError) as error:
        raise ConfigError("trainer: " + " ".join(str(error).split())) from error


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean X?` when a known word is near, otherwise nothing."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {matches[0]}?" if matches else ""


def _trainer_class(program: str) -> type:
    import trl

    return {"grpo": trl.GRPOConfig, "sft": trl.SFTConfig}[program]


@cache
def _register_schema(program: str) -> None:
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=f"{program}_schema", node=run_schema(_trainer_class(program)))


@cache
def _defaults(program: str) -> dict[str, Any]:
    """Every key of a run with its default."""
    return typing.cast(dict[str, Any], OmegaConf.to_container(run_schema(_trainer_class(program))))


def _known_keys(program: str) -> dict[str, frozenset[str]]:
    """The keys of each section by its name; none for a section that is a value, or whose keys the task decides."""
    sections = _defaults(program)
    return {key: frozenset(value) if key in ("model", "trainer") else frozenset() for key, value in sections.items()}


def _header(path: Path) -> dict[str, str]:
    """`# Word: text` lines of the comment at a recipe's head, continued lines joined."""
    fields: dict[str, str] = {}
    key = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        match = re.match(r"#\s*(Source|Command|Hardware|Expect):\s*(.*)", line)
        if match:
            key = match.group(1).lower()
            fields[key] = match.group(2).strip()
        elif key and line.lstrip("# ").strip() and not line.startswith("# @"):
            fields[key] += " " + line.lstrip("# ").strip()
    return fields


def _groups(recipes: Path) -> list[str]:
    return sorted(
        path.name
        for path in recipes.iterdir()
        if path.is_dir() and path.name not in NOT_TASKS and any(path.glob("*.yaml"))
    )


def _split(argv: Sequence[str], *, program: str, recipes: Path) -> tuple[str, str, list[str]]:
    groups = _groups(recipes)
    chosen: list[tuple[str, str]] = []
    overrides: list[str] = []
    available = [f"+{path.parent.name}={path.stem}" for path in sorted(recipes.glob("*/*.yaml"))]
    available = [item for item in available if f"={program}-" in item and not item.startswith(f"+{NOT_TASKS[0]}")]
    for argument in argv:
        key, _, value = argument.partition("=")
        if argument.startswith("-") or "=" not in argument:
            if not argument.startswith("~"):
                raise ConfigError(
                    f"{argument!r} is not understood; write key=value, +<task>=<recipe>, --cfg job or --help"
                )
        bare = key.lstrip("+")
        if bare in groups:
            chosen.append((bare, value))
        elif key.startswith("+") and "." not in bare and value.split("-")[0] in ("grpo", "sft"):
            raise ConfigError(
                f"there is no folder recipes/{bare}; recipes: {', '.join(available)}{nearest(bare, groups)}"
            )
        else:
            overrides.append(argument)
    if len(chosen) != 1:
        named = " and ".join(f"+{group}={name}" for group, name in chosen) or "none"
        raise ConfigError(f"a run takes exactly one recipe, got {named}; recipes: {', '.join(available)}")
    group, name = chosen[0]
    names = [path.stem for path in sorted((recipes / group).glob(f"{program}-*.yaml"))]
    if name not in names:
        if (recipes / group / f"{name}.yaml").is_file():
            raise ConfigError(
                f"recipe {group}/{name} is not for {program}.py; {program} recipes of {group}: {', '.join(names)}"
            )
        raise ConfigError(f"recipes/{group} has no recipe {name!r}; it has {', '.join(names)}{nearest(name, names)}")
    return group, name, overrides


def _chain(folder: Path, name: str) -> list[Path]:
    """The files a recipe is made of, bases first."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"{_shown(path)} does not exist")
    try:
        content = OmegaConf.load(path)
    except Exception as error:  # the YAML parser has exception classes of its own
        raise ConfigError(f"{_shown(path)}: {' '.join(str(error).split())}") from error
    bases = [str(item) for item in (content.get("defaults") or []) if str(item) != "_self_"]
    return [file for base in bases for file in _chain(folder, base.lstrip("/").split("/")[-1])] + [path]


def _check_keys(content: Any, keys: dict[str, frozenset[str]], *, where: str, prefix: str = "") -> None:
    for key, value in (content or {}).items():
        if not prefix and key in ("defaults", "hydra") and key != "hydra":
            continue
        _check_key(f"{prefix}{key}", keys, where=where)
        if isinstance(value, dict) and not prefix and key in ("model", "trainer"):
            _check_keys(value, keys, where=where, prefix=f"{key}.")


def _check_key(key: str, keys: dict[str, frozenset[str]], *, where: str) -> None:
    section, _, name = key.partition(".")
    last = (name or section).split(".")[0]
    if section in ("rewards", "data") and name:
        return
    if section == "trainer" and last in OURS:
        raise ConfigError(f"{where}: {key} is not for a recipe: {OURS[last]}")
    if section in keys and (not name or last in keys[section]):
        return
    if last in REPLACED:
        raise ConfigError(f"{where}: {key} does not exist any more: {REPLACED[last]}")
    everything = [*keys, *(f"{part}.{item}" for part in ("model", "trainer") for item in sorted(keys[part]))]
    everything += [f"data.{item}" for item in DATA_KEYS]
    hint = nearest(key, everything)
    if not hint:
        by_name = {item.split(".")[-1]: item for item in everything}
        close = difflib.get_close_matches(last, list(by_name), n=1, cutoff=0.6)
        hint = f"; did you mean {by_name[close[0]]}?" if close else ""
    raise ConfigError(f"{where}: there is no key {key}{hint}")


def _checked_override(argument: str, keys: dict[str, frozenset[str]]) -> str:
    """The override in Hydra's add-or-change form, once its key is known to exist."""
    if argument.startswith("~"):
        raise ConfigError(f"{argument}: keys are set, not deleted; write {argument[1:].partition('=')[0]}=null")
    key, _, value = argument.lstrip("+").partition("=")
    _check_key(key, keys, where="command line")
    return f"++{key}={value}"


def _check_untyped(cfg: Any, program: str) -> None:
    from trl import ModelConfig

    for section, config_class in (("model", ModelConfig), ("trainer", _trainer_class(program))):
        hints = typing.get_type_hints(config_class)
        values = typing.cast(dict[str, Any], OmegaConf.to_container(cfg[section]))
        defaults = _defaults(program)[section]
        for key, value in values.items():
            if key == "resume_from_checkpoint":
                if value is not None and not isinstance(value, (bool, str)):
                    raise ConfigError(f"{section}.{key} must be true or the path of a checkpoint, got {value!r}")
            elif value != defaults[key] and not fits(value, hints[key]):
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
        r"(Value .*|Cannot .*|Interpolation .*|mismatched .*|Object of unsupported .*|Error parsing .*|no viable .*|extraneous .*)",
        text,
    )
    if key and fault:
        where = next((_shown(file) for file in files if f"In '{file.parent.name}/{file.stem}'" in text), "command line")
        return f"{where}: {key.group(1)}: {fault.group(1)}"
    override = getattr(error, "override", None) or getattr(error.__cause__, "override", None)
    return (f"{override.lstrip('+')}: " if override else "") + " ".join(text.split())[:400]


def _shown(path: Path) -> str:
    return os.path.relpath(path) if not os.path.relpath(path).startswith("..") else str(path)
