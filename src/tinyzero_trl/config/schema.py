"""Keys, types and defaults of a whole recipe: ours from sections.py, the others derived from TRL's own dataclasses."""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from functools import partial
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinyzero_trl.config.sections import PretrainingConfig, RunConfig


def schema_of(config_class: type) -> type:
    """The dataclass with the same init fields and defaults, in types OmegaConf can check (`Any` where it has none)."""
    hints = typing.get_type_hints(config_class)
    fields: list[tuple[str, Any, Any]] = []
    for item in dataclasses.fields(config_class):
        if not item.init:
            continue
        default = _default(item)
        hint = hints[item.name]
        # `true` on the command line means "the newest checkpoint", which TRL's `str | None` would turn into "True".
        if item.name == "resume_from_checkpoint" or not _is_typable(item.name, hint, default):
            hint = Any
        fields.append((item.name, hint, dataclasses.field(default_factory=partial(copy.copy, default))))
    return dataclasses.make_dataclass(config_class.__name__, fields)


def run_schema(trainer_class: type) -> Any:
    """The typed node of a whole run whose trainer takes `trainer_class`."""
    from trl import ModelConfig, SFTConfig

    node = OmegaConf.structured(PretrainingConfig if trainer_class is SFTConfig else RunConfig)
    node.model = OmegaConf.structured(schema_of(ModelConfig))
    node.trainer = OmegaConf.structured(schema_of(trainer_class))
    return node


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain YAML value could be of type `hint`: the check for the fields OmegaConf leaves as Any."""
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
    return True


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
