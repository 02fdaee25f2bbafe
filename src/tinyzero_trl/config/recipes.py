"""The recipe files: which there are, what the comment at the head of each says, which files one is made of."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tinyzero_trl.config.keys import MAPPINGS, check_section
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.installation import ROOT

RECIPES = ROOT / "recipes"
ACCELERATE_CONFIGS = RECIPES / "accelerate_configs"
NOT_TASKS = ("accelerate_configs",)
HEAD = re.compile(r"\A(\s*#.*\n|\s*\n)*\s*#\s*@package\s+_global_\s*$", re.MULTILINE)
"""Without it Hydra takes a recipe's keys for keys below the name of its folder. It stands in the comment at the head."""


@dataclass(frozen=True)
class Recipe:
    """A recipe file and what the comment at its head says."""

    task: str
    name: str
    path: Path
    model: str
    """Model name or path."""
    method: str
    """First word of the file name: grpo, rloo, sft, ..."""
    command: str
    """What starts it."""
    hardware: str
    """The machine it was sized for."""
    expectation: str
    """What a run should reach, and who has seen it."""
    fault: str | None = None
    """Why the file is no recipe, or None."""


def list_recipes(folder: Path = RECIPES) -> list[Recipe]:
    """Every recipe of the source tree, sorted by task and name; a file that cannot be read is listed with its fault."""
    recipes = []
    for path in sorted(folder.glob("*/*.yaml")):
        if path.parent.name in NOT_TASKS:
            continue
        head, content, fault = {}, {}, None
        try:
            content, head = content_of(path, is_recipe=True), _header(path)
            bases_of(path, content)
            for key in MAPPINGS & content.keys():
                check_section(key, content[key], where=shown(path))
        except ConfigError as error:
            fault = str(error)
        section = content.get("model")
        # `???` is a model that the command line has to name.
        model = str(section.get("model_name_or_path") or "").replace("???", "") if isinstance(section, dict) else ""
        recipes.append(
            Recipe(
                task=path.parent.name,
                name=path.stem,
                path=path,
                model=model,
                method=path.stem.split("-")[0],
                command=head.get("command", ""),
                hardware=head.get("hardware", ""),
                expectation=head.get("expect", ""),
                fault=fault,
            )
        )
    return recipes


def program_of(name: str) -> str:
    """The entry point that a recipe of this name is for: `sft` for supervised ones, `grpo` for every RL algorithm."""
    return "sft" if name.split("-")[0] == "sft" else "grpo"


def groups(recipes: Path) -> list[str]:
    return sorted(
        path.name
        for path in recipes.iterdir()
        if path.is_dir() and path.name not in NOT_TASKS and any(path.glob("*.yaml"))
    )


def chain(folder: Path, name: str, *, above: tuple[str, ...] = ()) -> dict[Path, dict[str, Any]]:
    """The files a recipe is made of and what each says, bases first. Raises: ConfigError for one that cannot be read.

    above: the recipes that stand on this one.
    """
    path = folder / f"{name}.yaml"
    if name in above:
        raise ConfigError(f"{shown(path)}: defaults: it stands on itself ({' on '.join([*above, name])})")
    if not path.is_file():
        where = f"{shown(folder / f'{above[-1]}.yaml')}: defaults: " if above else ""
        raise ConfigError(f"{where}{shown(path)} does not exist")
    content = content_of(path, is_recipe=True)
    below = [chain(folder, base, above=(*above, name)) for base in bases_of(path, content)]
    return {file: content for files in [*below, {path: content}] for file, content in files.items()}


def bases_of(path: Path, content: dict[str, Any]) -> list[str]:
    """Names of the recipes that a recipe stands on. Raises: ConfigError where its `defaults` is no list of names."""
    named = content.get("defaults", [])
    if not isinstance(named, list) or not all(isinstance(item, str) for item in named):
        raise ConfigError(
            f"{shown(path)}: defaults is a list of recipes that this one stands on, `- grpo-tiny` and `- _self_`; got {named!r:.80}"
        )
    return [item.lstrip("/").split("/")[-1] for item in named if item != "_self_"]


def content_of(path: Path, *, is_recipe: bool = False) -> dict[str, Any]:
    """What a YAML file of keys says. Raises: ConfigError that says why it is none, or lacks the head that a recipe needs."""
    if path.is_dir():
        raise ConfigError(f"{shown(path)} is a folder; a recipe is a YAML file")
    try:
        text = path.read_text(encoding="utf-8")
        content = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{shown(path)} is a link to a file that does not exist") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown(path)} is not UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:  # OmegaConf's word for YAML that is one number
        raise ConfigError(
            f"{shown(path)}: {error}; a recipe is a mapping, `trainer:` with keys and values below it"
        ) from error
    except Exception as error:  # the YAML parser and OmegaConf have exception classes of their own
        raise ConfigError(f"{shown(path)}: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(content, DictConfig):
        raise ConfigError(
            f"{shown(path)} holds a list; a recipe is a mapping, `trainer:` with keys and values below it"
        )
    plain: Any = OmegaConf.to_container(content)
    if not plain:
        raise ConfigError(f"{shown(path)} is empty; `defaults: [grpo-tiny, _self_]` is the shortest recipe there is")
    if is_recipe and text.startswith("\ufeff"):
        raise ConfigError(f"{shown(path)} begins with a byte order mark; save it as UTF-8 without one")
    if is_recipe and not HEAD.match(text):
        raise ConfigError(f"{shown(path)}: its first line has to be `# @package _global_`")
    return {str(key): value for key, value in plain.items()}


def shown(path: Path) -> str:
    return os.path.relpath(path) if not os.path.relpath(path).startswith("..") else str(path)


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
