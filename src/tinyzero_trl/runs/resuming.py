"""Continuing a run: the command that started it, the changes that are refused, and whether anything is left to do."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinyzero_trl.config import batching, compose, names_recipe, recipe_of_words, without_config_dir
from tinyzero_trl.failures import ConfigError, first_line
from tinyzero_trl.redaction import REDACTED, redacted
from tinyzero_trl.runs.record import code_names
from tinyzero_trl.storage import manifest, plain_record, trust

MAY_CHANGE = re.compile(
    r"""
    # The place of the run, its length, and when it gives up.
    output_dir | give_up_after | max_generated_tokens | trainer\.(max_steps|num_train_epochs|resume_from_checkpoint|run_name)
    # Logging, saving and evaluation.
    | data\.num_eval_rows | trainer\.num_generations_eval
    | trainer\.(log|eval|save|hub|push_to_hub|trackio|report_to|project|disable_tqdm|skip_memory_metrics|debug).*
    | evaluation\..*
    | trainer\.(do_eval|per_device_eval_batch_size|batch_eval_metrics|num_completions_to_print|include_num_input_tokens_seen)
    | trainer\.(metric_for_best_model|greater_is_better|load_best_model_at_end)
    # Other ways to the same numbers (on a GPU, up to rounding): processes, time limits, memory.
    | reward_workers\..* | batching\.max_tokens_per_microbatch
    | trainer\.(gradient_checkpointing.*|torch_empty_cache_steps|dataloader_(?!drop_last).*|ddp_timeout)
    | trainer\.vllm_(server_.*|group_port|gpu_memory_utilization|enable_sleep_mode)
    """,
    re.VERBOSE,
)
"""Keys that a continued run may change. A change of any other key makes it another run."""
OPEN_SECTIONS = ("rewards", "data")
"""Sections whose keys the schema does not list. A key that is missing in one of them was removed by a person."""
ABSENT = "not set"
"""Word for the value of a missing key."""


@dataclass(frozen=True)
class Launch:
    """The command that starts a run again, from its last checkpoint."""

    program: str
    """Name of the training program: grpo."""
    words: list[str]
    """Words of the command line, with `trainer.resume_from_checkpoint` among them."""
    num_processes: int
    """Processes on each machine."""
    accelerate_config: str | None
    """Name or file of the accelerate config; None if the run was started without one."""
    working_directory: Path
    """Folder in which the run was started; its relative paths count from there."""


def launch_of(path: Path, more: Sequence[str] = ()) -> Launch:
    """The command that continues the run in `path`, a run folder or a checkpoint in one. Words in `more` replace those of the same key.

    Raises: ConfigError if run.yaml has no command, or if the command held a secret, which run.yaml does not keep.
    """
    run = run_of(path)
    file = run / "run.yaml"
    provenance = record_of(run).get("provenance") or {}
    command = provenance.get("command")
    try:
        script, *words = shlex.split(command) if isinstance(command, str) else []
    except ValueError:
        raise ConfigError(
            f"{file} does not say how the run was started (provenance.command is {command!r:.80}); type its command with "
            f"trainer.resume_from_checkpoint={run}"
        ) from None
    program = Path(script).stem
    if program != "grpo":
        raise ConfigError(
            f"{run} was started by {Path(script).name}, and only runs of grpo.py are continued; start it anew"
        )
    given = {_key(word) for word in more} | {"trainer.resume_from_checkpoint", "output_dir"}
    words, config_dir = without_config_dir(words)
    words = [word for word in words if not word.startswith("-") and _key(word) not in given]
    if hidden := [_key(word) for word in words if REDACTED in word]:
        raise ConfigError(
            f"{run} was started with a secret that run.yaml does not keep; say it again: tinyzero resume {path} {hidden[0]}=..."
        )
    words += ["--config-dir", config_dir] if config_dir else []
    home = Path(str(provenance.get("working_directory") or "."))
    with contextlib.chdir(home if home.is_dir() else "."):
        has_recipe = recipe_of_words(words) is not None
    if not has_recipe:  # it was moved, or is on another machine; the record holds all that it said
        words = [str(file.absolute()), *(word for word in without_config_dir(words)[0] if not names_recipe([word]))]
    count = provenance.get("processes", 1)
    config = provenance.get("accelerate_config")
    return Launch(
        program=program,
        words=[*words, *more, f"trainer.resume_from_checkpoint={path.absolute()}"],
        num_processes=count if type(count) is int and count > 0 else 1,
        accelerate_config=config if isinstance(config, str) else None,
        working_directory=home,
    )


def run_of(path: Path) -> Path:
    """The run folder that `path` is, or that the checkpoint `path` is in."""
    return path.parent if path.name.startswith("checkpoint-") and (path.parent / "run.yaml").is_file() else path


def check_no_code(launch: Launch, path: Path) -> None:
    """Refuse a run of another user whose command would run that user's code here. Raises: ConfigError."""
    content: Any = OmegaConf.to_container(compose(launch.words, program=launch.program))
    named = [f"{name} ({file})" for name, file in trust.code_of(code_names(content)).items()]
    named += [f"{key}: {value}" for key, value in _hub_code(content)]
    if named:
        raise ConfigError(
            f"{run_of(path)} was not made by this user, and to go on with it runs {' and '.join(named)}: read what that is, then add "
            f"{trust.OPTION}, or type the run's command yourself with trainer.resume_from_checkpoint={path}"
        )


def _hub_code(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values that make a library fetch code and run it: a model's own modules, or an attention kernel from the hub."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _hub_code(item, f"{key}.{name}" if key else str(name))
    elif (key.endswith("trust_remote_code") and value) or (key.endswith("attn_implementation") and "/" in str(value)):
        yield key, value


def _key(word: str) -> str:
    return word.lstrip("+").partition("=")[0]


def record_of(path: Path) -> DictConfig:
    """The run.yaml of the run in `path`. Raises: ConfigError if it is missing or damaged."""
    if not (path / "run.yaml").is_file():
        raise ConfigError(f"nothing to resume: {path} is not a run folder (it has no run.yaml)")
    import yaml

    file = path / "run.yaml"
    try:
        plain_record(file)
        # Unlike YAML, OmegaConf reads 1e-05 as a number, and refuses a key that appears twice.
        record = OmegaConf.load(file)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot continue {path}: {file}: {' '.join(str(error).split())[:200]}") from error
    except (ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"cannot continue {path}: {first_line(error)}") from error
    assert isinstance(record, DictConfig)
    return record


def check_same_run(path: Path, cfg: DictConfig) -> None:
    """Refuse a config that differs in a key outside MAY_CHANGE.

    Raises: ConfigError with each such key, its old and its new value.
    """
    before = record_of(path)
    # These keys follow from the batch sizes and the number of processes, which `check_world` checks.
    follow = [
        f"trainer.{follows}"
        for key, follows in batching.FOLLOWS.items()
        if cfg.batching[key] is not None and OmegaConf.select(before, f"batching.{key}") == cfg.batching[key]
    ]
    changes = [
        f"{key} was {old if old is ABSENT else repr(old)} and is now {new if new is ABSENT else repr(new)}"
        for key, old, new in _differences(before, cfg)
        if not MAY_CHANGE.fullmatch(key) and key not in follow
    ]
    if changes:
        raise ConfigError(f"cannot continue {path}: {'; '.join(changes)}")


def check_same_sources(path: Path, *, data: Mapping[str, Any], model: Mapping[str, str]) -> None:
    """Refuse training rows, or files of model or tokenizer, that differ from those the run began with.

    Raises: ConfigError.
    """
    if not (path / "run.yaml").is_file():
        return
    record = record_of(path)
    before = OmegaConf.select(record, "provenance.data.fingerprint")
    if before and before != data.get("fingerprint"):
        raise ConfigError(
            f"cannot continue {path}: the training rows have changed (fingerprint {before}, now {data.get('fingerprint')})"
        )
    files = OmegaConf.select(record, "provenance.model") or {}
    if not files or not model:
        return
    changed = [
        f"{name} ({'new' if name not in files else 'gone' if name not in model else 'other content'})"
        for name in sorted({*files, *model})
        if files.get(name) != model.get(name)
    ]
    if changed:
        raise ConfigError(
            f"cannot continue {path}: the model or tokenizer it began with has changed: {', '.join(changed)}"
        )


def check_world(checkpoint: Path, num_processes: int) -> None:
    """Refuse a checkpoint that another number of processes wrote. Raises: ConfigError."""
    before = manifest.facts(checkpoint).get("world_size", "an unknown number of")
    if before != num_processes:
        raise ConfigError(
            f"cannot continue {checkpoint}: it was written by {before} processes, this run has {num_processes}"
        )


def changed_packages(path: Path, packages: Mapping[str, str]) -> str | None:
    """One line with each package whose version has changed since the run began, old -> new; None without a change."""
    before = OmegaConf.select(record_of(path), "provenance.packages") or {}
    changes = [
        f"{name} {before.get(name, 'absent')} -> {packages.get(name, 'absent')}"
        for name in sorted({*before, *packages})
        if before.get(name) != packages.get(name)
    ]
    return f"the run began with other versions, so its numbers may differ: {', '.join(changes)}" if changes else None


def is_finished(path: Path, cfg: DictConfig, *, checkpoint: Path | None = None) -> bool:
    """True if the run ended and the config asks for nothing more.

    With `checkpoint`, it must also be the run's last one.
    """
    model = path / "model"
    if manifest.why_not_usable(model) is not None:
        return False
    if checkpoint is not None and manifest.facts(model).get("step") != manifest.facts(checkpoint).get("step"):
        return False
    before = record_of(path)
    keys = ["trainer.max_steps", "max_generated_tokens"]
    if not cfg.trainer.max_steps > 0:
        keys.append("trainer.num_train_epochs")  # with both set, max_steps decides
    return not any(_is_longer(OmegaConf.select(before, key), OmegaConf.select(cfg, key)) for key in keys)


def _is_longer(before: float | None, now: float | None) -> bool:
    """True if the limit was raised or removed. Null and numbers below 1 mean no limit."""
    return before != now and not ((before or 0) > 0 and 0 < (now or 0) < (before or 0))


def _differences(before: DictConfig, now: DictConfig) -> Iterator[tuple[str, Any, Any]]:
    """Key, old and new value of every difference.

    Keys of a section are compared one by one, deeper values as a whole.
    """
    old, new = _flat(before), redacted(_flat(now))
    for key in sorted(old.keys() | new.keys()):
        if (key not in old or key not in new) and key.partition(".")[0] not in OPEN_SECTIONS:
            continue  # the key exists in one version of the schema only, so nobody has changed it
        if old.get(key, ABSENT) != new.get(key, ABSENT):
            yield key, old.get(key, ABSENT), new.get(key, ABSENT)


def _flat(cfg: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(cfg)
    assert isinstance(content, dict)
    flat: dict[str, Any] = {}
    for section, value in content.items():
        if section == "provenance":
            continue
        if isinstance(value, dict):
            flat |= {f"{section!s}.{key!s}": item for key, item in value.items()}
        else:
            flat[str(section)] = value
    return flat
