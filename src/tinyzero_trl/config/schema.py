"""Keys, types and defaults of a whole recipe: ours from sections.py, the others from TRL's own dataclasses.

Importing TRL takes seconds, so the fields of its dataclasses are kept in a JSON file of the user's cache, for exactly the versions they were
read from. A file that is missing, damaged or of other versions is as none: the fields are read from TRL, and the file is written if it can be.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import hashlib
import importlib.metadata
import json
import os
import platform
import types
import typing
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial, reduce
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinyzero_trl import storage
from tinyzero_trl.config.sections import PretrainingConfig, RunConfig

TRAINERS = {"grpo": "GRPOConfig", "sft": "SFTConfig"}
"""TRL's class behind the section `trainer`, by program."""
MODEL = "ModelConfig"
"""TRL's class behind the section `model`."""
FORMAT = 1
"""Version of the cached file's own layout."""
PLAIN: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "dict": dict, "list": list}
"""Types that a YAML value can have, by name."""


@dataclass(frozen=True)
class Field:
    """A field of one of TRL's dataclasses, in terms that JSON can hold."""

    name: str
    type: Any
    """A name of PLAIN, "none", "any", or a pair: kind (union, list, dict, literal, enum, class) and its parts."""
    default: Any
    is_typed: bool
    """True if OmegaConf can check the type; values of the others are checked by `fits`."""

    @property
    def hint(self) -> Any:
        """The type as Python has it; a stand-in of the same name for an enumeration or a class of a library."""
        return _hint(self.type)


@cache
def trl_fields() -> dict[str, tuple[Field, ...]]:
    """Fields of TRL's config classes by class name, from the cache where it is of these versions, otherwise from TRL."""
    try:
        file, key = cache_file(), versions()
    except (importlib.metadata.PackageNotFoundError, RuntimeError):  # a source tree on the path; no home folder
        return _read_from_trl()
    if (fields := _cached(file, key)) is not None:
        return fields
    fields = _read_from_trl()
    content = {name: [dataclasses.asdict(field) for field in group] for name, group in fields.items()}
    with suppress(
        OSError, TypeError
    ):  # a cache that cannot be written is none; a default that JSON cannot hold is not cached
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.write_text(file, json.dumps({"key": key, "sha256": _digest(content), "fields": content}))
    return fields


def is_cached() -> bool:
    """True if a recipe can be checked without importing TRL."""
    try:
        return _cached(cache_file(), versions()) is not None
    except (importlib.metadata.PackageNotFoundError, RuntimeError):
        return False


def cache_file() -> Path:
    """The cached file, below $XDG_CACHE_HOME or ~/.cache. Raises: RuntimeError where there is no home folder."""
    folder = os.environ.get("XDG_CACHE_HOME")
    return (Path(folder) if folder else Path.home() / ".cache") / "tinyzero-trl" / "schema.json"


def versions() -> dict[str, str]:
    """The versions that the cached file holds for: with any other, TRL is read anew."""
    names = ("tinyzero-trl", "trl", "transformers", "accelerate", "omegaconf")
    return {
        **{name: importlib.metadata.version(name) for name in names},
        "python": platform.python_version(),
        "format": str(FORMAT),
    }


def _cached(file: Path, key: dict[str, str]) -> dict[str, tuple[Field, ...]] | None:
    try:
        content = json.loads(file.read_bytes())
        if content["key"] != key or content["sha256"] != _digest(content["fields"]):
            return None
        return {name: tuple(Field(**item) for item in group) for name, group in content["fields"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_from_trl() -> dict[str, tuple[Field, ...]]:
    import trl

    return {name: fields_of(getattr(trl, name)) for name in (*TRAINERS.values(), MODEL)}


def fields_of(config_class: type) -> tuple[Field, ...]:
    """The fields that a dataclass takes as arguments."""
    hints = typing.get_type_hints(config_class)
    fields = []
    for item in dataclasses.fields(config_class):
        if item.init:
            kind, default = _described(hints[item.name]), _default(item)
            # `true` on the command line means "the newest checkpoint", which TRL's `str | None` would turn into "True".
            is_typed = item.name != "resume_from_checkpoint" and _is_typable(item.name, _hint(kind), default)
            fields.append(Field(item.name, kind, default, is_typed))
    return tuple(fields)


def schema_of(name: str, fields: typing.Iterable[Field]) -> type:
    """A dataclass of these fields and defaults, in types OmegaConf can check (`Any` where it cannot)."""
    made = [
        (
            item.name,
            item.hint if item.is_typed else Any,
            dataclasses.field(default_factory=partial(copy.copy, item.default)),
        )
        for item in fields
    ]
    return dataclasses.make_dataclass(name, made)


@cache
def run_schema(program: str) -> Any:
    """The typed node of a whole run of `grpo` or `sft`, with every default; callers copy it before they change it."""
    fields = trl_fields()
    node = OmegaConf.structured(PretrainingConfig if program == "sft" else RunConfig)
    node.model = OmegaConf.structured(schema_of(MODEL, fields[MODEL]))
    node.trainer = OmegaConf.structured(schema_of(TRAINERS[program], fields[TRAINERS[program]]))
    return node


def fits(value: Any, hint: Any) -> bool:
    """True if a plain YAML value could be of type `hint`: the check for the fields OmegaConf leaves as Any."""
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint is None or hint is type(None):
        return value is None
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    if origin is list or hint is list:
        return isinstance(value, list) and (not arguments or all(fits(item, arguments[0]) for item in value))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(hint, type) and hint in (int, str, bool):
        return type(value) is hint
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return isinstance(value, str)
    return isinstance(value, dict)  # of the fields of a library's class


def _described(hint: Any) -> Any:
    """A type in terms that JSON can hold; see Field.type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return ["union", [_described(argument) for argument in arguments]]
    if origin is typing.Literal:
        return ["literal", list(arguments)]
    if origin is list or origin is dict:
        return ["list" if origin is list else "dict", [_described(argument) for argument in arguments]]
    if hint is None or hint is type(None):
        return "none"
    if plain := next((name for name, kind in PLAIN.items() if kind is hint), None):
        return plain
    if isinstance(hint, type):
        return ["enum" if issubclass(hint, enum.Enum) else "class", [hint.__module__, hint.__qualname__]]
    return "any"


def _hint(described: Any) -> Any:
    """The type behind `_described`."""
    if isinstance(described, str):
        return {"none": None, "any": Any, **PLAIN}[described]
    kind, parts = described
    if kind == "union":
        return reduce(lambda left, right: left | right, map(_hint, parts))
    if kind == "literal":
        return typing.Literal[tuple(parts)]
    if kind in ("list", "dict"):
        return types.GenericAlias(PLAIN[kind], tuple(map(_hint, parts)))
    return _stand_in(kind, *parts)


@cache
def _stand_in(kind: str, module: str, name: str) -> Any:
    if kind == "enum":
        # Without members: OmegaConf leaves the text of a value as it is, and TRL reads it.
        return enum.Enum(name, {}, module=module)
    return type(name, (), {"__module__": module})


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default is not dataclasses.MISSING:
        return item.default
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return None


def _is_typable(name: str, hint: Any, default: Any) -> bool:
    try:
        OmegaConf.structured(dataclasses.make_dataclass("_Probe", [(name, hint, dataclasses.field(default=default))]))
    except (OmegaConfBaseException, ValueError):
        return False
    return True
