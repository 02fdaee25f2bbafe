"""The recipe files: which there are, what the comment at the head of each says, which files one is made of."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tinyzero_trl.failures import ConfigError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
"""The recipe folder of the source tree."""
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
    """First word of the file name: grpo, rloo, sft, ..."""
    command: str
    """What starts it."""
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
                command=head.get("command", ""),
                hardware=head.get("hardware", ""),
                expectation=head.get("expect", ""),
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


def chain(folder: Path, name: str) -> dict[Path, Any]:
    """The files a recipe is made of and what each says, bases first."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"{shown(path)} does not exist")
    try:
        content = OmegaConf.load(path)
    except Exception as error:  # the YAML parser has exception classes of its own
        raise ConfigError(f"{shown(path)}: {' '.join(str(error).split())}") from error
    bases = [str(item) for item in (OmegaConf.select(content, "defaults") or []) if str(item) != "_self_"]
    below = [chain(folder, base.lstrip("/").split("/")[-1]) for base in bases]
    return {file: content for files in [*below, {path: content}] for file, content in files.items()}


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
