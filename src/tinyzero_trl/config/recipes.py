"""Recipe files: where they are, which one a command line names, what the comment at the head of each says, which files one is made of."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tinyzero_trl.algorithms import ALGORITHMS
from tinyzero_trl.config.keys import MAPPINGS, OURS, SECTIONS, check_section, known_keys
from tinyzero_trl.config.sections import PretrainingConfig, RunConfig
from tinyzero_trl.failures import ConfigError, nearest
from tinyzero_trl.installation import ROOT
from tinyzero_trl.redaction import REDACTED

RECIPES = ROOT / "recipes"
"""The recipes that ship, in a source tree and in an installed package."""
ACCELERATE_CONFIGS = RECIPES / "accelerate_configs"
OWN = Path("recipes")
"""A person's own recipes, below the working directory, in the same layout: <task>/<name>.yaml."""
CONFIG_DIR = ("--config-dir", "--config_dir", "-cd")
"""Spellings of the option that names one more folder of recipes; the first is Hydra's."""
SUFFIXES = (".yaml", ".yml")
KEYS = frozenset(item.name for config in (RunConfig, PretrainingConfig) for item in fields(config))
"""Keys at the top level of a run."""
RECORD = "run.yaml"
"""Name of the file that holds the whole config of a run, in the run's folder."""
NOT_TASKS = ("accelerate_configs",)
HEAD = re.compile(r"\A(\s*#.*\n|\s*\n)*\s*#\s*@package\s+_global_\s*$", re.MULTILINE)
"""Without this line Hydra takes a recipe's keys for keys below the name of its folder. It is in the comment at the head."""


@dataclass(frozen=True)
class Recipe:
    """A recipe file and the facts in the comment at its head."""

    task: str
    name: str
    path: Path
    model: str
    """Model name or path."""
    method: str
    """First word of the file name: grpo, rloo, sft, ..."""
    command: str
    """The command that starts it."""
    hardware: str
    """The machine it was sized for."""
    expectation: str
    """The result that a run should reach, and who has seen it."""
    why_unreadable: str | None = None
    """The reason why the file is no recipe, or None."""

    @property
    def accelerate_config(self) -> str:
        """The accelerate config in its command; ddp where it names none."""
        found = re.search(r"accelerate_configs/([\w-]+)\.yaml", self.command)
        return found.group(1) if found else "ddp"

    @property
    def num_processes(self) -> int:
        """The number of processes in its command; 1 where it names none."""
        found = re.search(r"--num_processes[= ](\d+)", self.command)
        return int(found.group(1)) if found else 1


@dataclass(frozen=True)
class Layer:
    """One of the files that a recipe is made of."""

    path: Path
    group: str
    """Hydra's config group: the name of the task's folder."""
    text: str
    content: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class Choice:
    """The recipe that a command line names, and the rest of its words."""

    path: Path
    group: str
    folders: tuple[Path, ...]
    """Folders in which the recipes it stands on are looked for."""
    overrides: tuple[str, ...]


def recipe_folders(config_dir: str | None = None) -> tuple[Path, ...]:
    """Folders of recipes; where two have a recipe of the same name, the first counts. Raises: ConfigError for a folder that is not there."""
    folders = [OWN, RECIPES] if OWN.is_dir() and OWN.resolve() != RECIPES else [RECIPES]
    if config_dir is not None:
        if not Path(config_dir).expanduser().is_dir():
            raise ConfigError(f"{CONFIG_DIR[0]} {config_dir}: there is no such folder; it holds <task>/<name>.yaml")
        folders.insert(0, Path(config_dir).expanduser())
    return tuple(folders)


def list_recipes(*folders: Path) -> list[Recipe]:
    """Every recipe of these folders, or of the package and ./recipes, by task and name; a file that cannot be read is listed with its why_unreadable."""
    files = _files(folders or recipe_folders()).values()
    return [recipe_at(path) for path in sorted(files, key=lambda path: (path.parent.name, path.name))]


def _files(folders: Sequence[Path]) -> dict[tuple[str, str], Path]:
    """Recipe files by task and name; a folder called like a key of a run holds none."""
    return {
        (path.parent.name, path.stem): path
        for folder in reversed(folders)
        for path in folder.glob("*/*.yaml")
        if path.parent.name not in (*NOT_TASKS, *KEYS)
    }


def recipe_at(path: Path) -> Recipe:
    """The recipe in a file, or the reason why it cannot be read."""
    head, content, why_unreadable = {}, {}, None
    try:
        content, head = content_of(path, is_recipe=True), _header(path)
        bases_of(path, content)
        for key in MAPPINGS & content.keys():
            check_section(key, content[key], where=shown(path))
    except ConfigError as error:
        why_unreadable = str(error)
    section = content.get("model")
    # `???` is a model that the command line has to name.
    model = str(section.get("model_name_or_path") or "").replace("???", "") if isinstance(section, dict) else ""
    return Recipe(
        task=path.parent.name,
        name=path.stem,
        path=path,
        model=model,
        method=path.stem.split("-")[0],
        command=head.get("command", ""),
        hardware=head.get("hardware", ""),
        expectation=head.get("expect", ""),
        why_unreadable=why_unreadable,
    )


def program_of(name: str) -> str:
    """The entry point that a recipe of this name is for: `sft` for supervised ones, `grpo` for every RL algorithm."""
    return "sft" if name.split("-")[0] == "sft" else "grpo"


def names_recipe(words: Sequence[str]) -> bool:
    """True if a command line names a recipe: `+<task>=<recipe>`, or the path of a YAML file."""
    return any(_is_path(word) or _is_choice(word) for word in words)


def program_of_words(words: Sequence[str]) -> str:
    """The entry point for the recipe that a command line names; `grpo` where it names none."""
    named = [Path(word).stem for word in words if _is_path(word)]
    named += [word.partition("=")[2] for word in words if _is_choice(word)]
    return "sft" if "sft" in map(program_of, named) else "grpo"


def recipe_of_words(words: Sequence[str]) -> Recipe | None:
    """The recipe that a command line names, with its head; None where it names none that is there."""
    try:
        return recipe_at(choose(words, program=program_of_words(words)).path)
    except ConfigError:
        return None


def choose(words: Sequence[str], *, program: str, folders: tuple[Path, ...] | None = None) -> Choice:
    """The recipe and the overrides of a command line.

    folders: places of recipes instead of the package, ./recipes and --config-dir.
    Raises: ConfigError, on no or two recipes, an unknown recipe, or one of another program.
    """
    words, config_dir = without_config_dir(words)
    places = recipe_folders(config_dir) if folders is None else folders
    names = _files(places)
    tasks = sorted({task for task, _ in names})
    available = ", ".join(f"+{task}={name}" for task, name in sorted(names) if program_of(name) == program)
    chosen: list[str] = []
    paths: list[tuple[Path, str]] = []
    overrides: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        bare = key.lstrip("+")
        if _is_path(word):
            chosen.append(word)
            paths.append(_at_path(word, tasks))
        elif word.startswith("-") or (not equals and not word.startswith("~")):
            raise ConfigError(
                f"{word!r} is not understood; write key=value, +<task>=<recipe>, a recipe's path, --config-dir, --cfg job or --help"
            )
        elif bare in tasks:
            chosen.append(f"+{bare}={value}")
            if (bare, value) in names:
                paths.append((names[bare, value], bare))
        elif key.startswith("+") and "." not in bare and value.split("-")[0] in (*ALGORITHMS, "sft"):
            raise ConfigError(f"there is no folder recipes/{bare}; recipes: {available}{nearest(bare, tasks)}")
        else:
            overrides.append(word)
    if len(chosen) != 1:
        raise ConfigError(f"a run takes exactly one recipe, got {' and '.join(chosen) or 'none'}; recipes: {available}")
    task, _, name = chosen[0].lstrip("+").partition("=")
    of_task = [known for group, known in sorted(names) if group == task and program_of(known) == program]
    if not paths:
        raise ConfigError(f"recipes/{task} has no recipe {name!r}; it has {', '.join(of_task)}{nearest(name, of_task)}")
    path, group = paths[0]
    if program_of(path.stem) != program:
        if name:
            raise ConfigError(
                f"recipe {task}/{name} is not for {program}.py; {program} recipes of {task}: {', '.join(of_task)}"
            )
        raise ConfigError(f"recipe {shown(path)} is not for {program}.py; {program_of(path.stem)}.py runs it")
    return Choice(path, group, places, tuple(overrides))


def without_config_dir(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The words without `--config-dir DIR`, and DIR or None. Raises: ConfigError where it is left out."""
    rest, found = [], None
    waiting = iter(words)
    for word in waiting:
        option, equals, value = word.partition("=")
        if option not in CONFIG_DIR:
            rest.append(word)
            continue
        found = value if equals else next(waiting, "")
        if not found:
            raise ConfigError(f"{option} takes a folder of recipes, which holds <task>/<name>.yaml")
    return rest, found


def _is_path(word: str) -> bool:
    return word.endswith(SUFFIXES) and "=" not in word and not word.startswith(("-", "+"))


def _is_choice(word: str) -> bool:
    """True for `+<task>=<recipe>`, False for a key that is set, `+give_up_after=3`."""
    key = word.partition("=")[0].lstrip("+")
    return word.startswith("+") and "." not in key and key not in KEYS


def _at_path(word: str, tasks: Sequence[str]) -> tuple[Path, str]:
    """The recipe file at a path, and its task as far as its folder or its key `task` say one that has recipes."""
    path = Path(word).expanduser()
    if not path.exists() and not path.is_symlink():
        raise ConfigError(f"{word}: there is no such file; a recipe is +<task>=<recipe>, or the path of a YAML file")
    task = str(read(path)[1].get("task"))
    return path, path.parent.name if path.parent.name in tasks else task if task in tasks else "recipe"


def layers(path: Path, group: str, folders: Sequence[Path], *, above: tuple[Path, ...] = ()) -> list[Layer]:
    """The files that a recipe is made of, bases first. Raises: ConfigError for one that cannot be read.

    above: the recipes that stand on this one.
    """
    if path in above:
        raise ConfigError(
            f"{shown(path)}: defaults: it stands on itself ({' on '.join(item.stem for item in (*above, path))})"
        )
    text, content = read(path)
    found = []
    for base in bases_of(path, content):
        *elsewhere, name = base.strip("/").split("/")
        task = elsewhere[-1] if elsewhere else group
        beside = [] if elsewhere else [path.parent / f"{name}.yaml"]
        places = [*beside, *(folder / task / f"{name}.yaml" for folder in folders)]
        at = next((place for place in places if place.is_file()), None)
        if at is None:
            known = sorted(
                {f"/{item.parent.name}/{name}" for folder in folders for item in folder.glob(f"*/{name}.yaml")}
            )
            hint = f"; write {' or '.join(known)}" if known else ""
            raise ConfigError(f"{shown(path)}: defaults: {shown(places[0])} does not exist{hint}")
        found += layers(at, task, folders, above=(*above, path))
    found.append(Layer(path, group, text, content))
    by_name = {(layer.group, layer.name): layer for layer in found}
    for layer in found:
        if (other := by_name[layer.group, layer.name]).path != layer.path:
            raise ConfigError(f"{shown(other.path)} stands on {shown(layer.path)}, which has the same name; rename it")
    return list(by_name.values())


def read(path: Path) -> tuple[str, dict[str, Any]]:
    """Text and content of a recipe, or of the record of a run as the recipe that repeats it. Raises: ConfigError for neither."""
    if path.name != RECORD:
        content = content_of(path, is_recipe=True)
        return path.read_text(encoding="utf-8"), content
    record = content_of(path)
    if "provenance" not in record or "algorithm" not in record:
        raise ConfigError(f"{shown(path)} is not the record of a run of grpo.py")
    known, content = known_keys("grpo"), {}
    for section, value in record.items():
        if section in SECTIONS and section in known and isinstance(value, dict):
            refused = ("resume_from_checkpoint", *(OURS if section == "trainer" else ()))
            content[section] = {
                key: item
                for key, item in value.items()
                if key in known[section] and key not in refused and item != REDACTED
            }
        elif section in known and section != "output_dir":
            content[section] = value
    return f"# @package _global_\n{OmegaConf.to_yaml(OmegaConf.create(content))}", content


def bases_of(path: Path, content: dict[str, Any]) -> list[str]:
    """The recipes that a recipe stands on: names in its own folder, or /<task>/<name>. Raises: ConfigError where `defaults` is no list of names."""
    named = content.get("defaults", [])
    if not isinstance(named, list) or not all(isinstance(item, str) for item in named):
        raise ConfigError(
            f"{shown(path)}: defaults is a list of recipes that this one stands on, `- grpo-tiny` and `- _self_`; got {named!r:.80}"
        )
    return [item for item in named if item != "_self_"]


def content_of(path: Path, *, is_recipe: bool = False) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises: ConfigError, where it holds none, or lacks the head that a recipe needs."""
    if path.is_dir():
        raise ConfigError(f"{shown(path)} is a folder; a recipe is a YAML file")
    try:
        text = path.read_text(encoding="utf-8")
        plain = _parsed(text)
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
    if not isinstance(plain, dict):
        raise ConfigError(
            f"{shown(path)} holds a list; a recipe is a mapping, `trainer:` with keys and values below it"
        )
    if not plain:
        raise ConfigError(f"{shown(path)} is empty; `defaults: [grpo-tiny, _self_]` is the shortest recipe there is")
    if is_recipe and text.startswith("\ufeff"):
        raise ConfigError(f"{shown(path)} begins with a byte order mark; save it as UTF-8 without one")
    if is_recipe and not HEAD.match(text):
        raise ConfigError(f"{shown(path)}: its first line has to be `# @package _global_`")
    return {str(key): value for key, value in plain.items()}


@cache
def _parsed(text: str) -> Any:
    """The plain content of a YAML text; callers change nothing in it."""
    loaded = OmegaConf.load(io.StringIO(text))
    return OmegaConf.to_container(loaded) if isinstance(loaded, DictConfig) else []


def shown(path: Path) -> str:
    """The path as a person sees it: relative below the working directory."""
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
