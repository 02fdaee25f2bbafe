"""Reading run.yaml, the record of a run: plain values of checked types, because anybody may have edited the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinyzero_trl.failures import kind_of

SECTIONS = (
    *("batching", "critic", "curriculum", "data", "evaluation", "generation", "model", "pretraining", "replay"),
    *("reward_parameters", "reward_workers", "rewards", "scratch", "trainer"),
)
"""Keys of a record that hold a section. A test compares them with the keys of a recipe (config.keys.MAPPINGS)."""

NUMBERS = ("temperature", "max_completion_length", "max_steps", "num_train_epochs")
"""Keys of `trainer` whose values evaluation and resuming use as numbers."""
_ANOTHER = "put back the file that the run wrote, or use another run"


def is_number(value: Any) -> bool:
    """True if a value read from a file is a finite number below 1e300."""
    # JSON allows integers of any length, and math.isfinite raises OverflowError above 1e308.
    return type(value) in (int, float) and -1e300 < value < 1e300


def plain_record(file: Path) -> dict[str, Any]:
    """Content of a run.yaml. Raises: ValueError that names the file, if the file is not what `write_record` writes."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        has_aliases = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
        content = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{file} is not YAML ({' '.join(str(error).split())[:120]}); {_ANOTHER}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{file} is not the record of a run: it holds {kind_of(content)}; {_ANOTHER}")
    if has_aliases:  # we write none, and nested aliases can expand to more copies than memory holds
        raise ValueError(f"{file} is not the record of a run: it has YAML aliases; {_ANOTHER}")
    sections = {name: content.get(name) for name in (*SECTIONS, "provenance")}
    origin = sections["provenance"] if isinstance(sections["provenance"], dict) else {}
    sections |= {f"provenance.{name}": origin.get(name) for name in ("data", "hardware", "model", "packages", "seeds")}
    for name, section in sections.items():
        if not isinstance(section or {}, dict):
            raise ValueError(
                f"{file} is not the record of a run: {name} must be a section, not {kind_of(section)}; {_ANOTHER}"
            )
    trainer = sections["trainer"] or {}
    numbers = {f"trainer.{name}": trainer.get(name) for name in NUMBERS}
    for name, value in (numbers | {"max_generated_tokens": content.get("max_generated_tokens")}).items():
        is_whole = name != "trainer.max_completion_length" or type(value) is int
        if value is not None and not (is_number(value) and is_whole):
            raise ValueError(f"{file} is not the record of a run: {name} is {value!r:.80} and no number; {_ANOTHER}")
    if not isinstance(origin.get("earlier") or [], list):
        raise ValueError(f"{file} is not the record of a run: provenance.earlier must be a list; {_ANOTHER}")
    return content
