"""Which keys a run has: every other one is refused, with the nearest, or with what took its place."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Sequence
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from tinyzero_trl.failures import ConfigError
from tinyzero_trl.schema import DATA_KEYS, OURS, REPLACED, SECTIONS, run_schema


def check_keys(content: Any, keys: dict[str, frozenset[str]], *, where: str, prefix: str = "") -> None:
    for key, value in (content or {}).items():
        if not prefix and key in ("defaults", "hydra") and key != "hydra":
            continue
        _check_key(f"{prefix}{key}", keys, where=where)
        if isinstance(value, dict) and not prefix and key in SECTIONS:
            check_keys(value, keys, where=where, prefix=f"{key}.")


def checked_override(argument: str, keys: dict[str, frozenset[str]]) -> str:
    """The override in Hydra's add-or-change form, once its key is known to exist."""
    if argument.startswith("~"):
        raise ConfigError(f"{argument}: keys are set, not deleted; write {argument[1:].partition('=')[0]}=null")
    key, _, value = argument.lstrip("+").partition("=")
    _check_key(key, keys, where="command line")
    return f"++{key}={value}"


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean X?` when a known word is near, otherwise nothing."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {matches[0]}?" if matches else ""


@cache
def defaults(program: str) -> dict[str, Any]:
    """Every key of a run with its default."""
    return typing.cast(dict[str, Any], OmegaConf.to_container(run_schema(trainer_class(program))))


def known_keys(program: str) -> dict[str, frozenset[str]]:
    """The keys of each section by its name; none for a section that is a value, or whose keys the task decides."""
    sections = defaults(program)
    return {key: frozenset(value) if key in SECTIONS else frozenset() for key, value in sections.items()}


def trainer_class(program: str) -> type:
    import trl

    return {"grpo": trl.GRPOConfig, "sft": trl.SFTConfig}[program]


def _check_key(key: str, keys: dict[str, frozenset[str]], *, where: str) -> None:
    section, _, name = key.partition(".")
    last = (name or section).split(".")[0]
    if section in ("rewards", "reward_parameters", "data") and name:
        return
    if section == "trainer" and last in OURS:
        raise ConfigError(f"{where}: {key} is not for a recipe: {OURS[last]}")
    if section in keys and (not name or last in keys[section]):
        return
    if last in REPLACED:
        raise ConfigError(f"{where}: {key} does not exist any more: {REPLACED[last]}")
    everything = [*keys, *(f"{part}.{item}" for part in SECTIONS if part in keys for item in sorted(keys[part]))]
    everything += [f"data.{item}" for item in DATA_KEYS]
    by_name = {item.split(".")[-1]: item for item in reversed(everything)}
    hint = f"; did you mean {by_name[last]}?" if last in by_name else nearest(key, everything)
    if not hint:
        close = difflib.get_close_matches(last, list(by_name), n=1, cutoff=0.6)
        hint = f"; did you mean {by_name[close[0]]}?" if close else ""
    raise ConfigError(f"{where}: there is no key {key}{hint}")
