"""Keys of a recipe and values on the command line. An unknown key is refused with the key that is probably meant, or that replaced it."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinyzero_trl.config.schema import run_schema
from tinyzero_trl.config.sections import DATA_KEYS
from tinyzero_trl.failures import ConfigError, near

SECTIONS = (
    "model",
    "trainer",
    "batching",
    "critic",
    "curriculum",
    "evaluation",
    "generation",
    "replay",
    "reward_workers",
)
"""Keys of a run whose own keys the schema knows."""
REPLACED: dict[str, str] = {
    "max_prompt_length": "TRL no longer cuts prompts; prompts that do not fit the model are refused at start, with the row named",
    "vllm_device": "use generation.engine=colocate (same GPUs) or generation.engine=server with generation.devices",
    "vllm_dtype": "the policy's own dtype is used; set model.dtype",
    "vllm_max_model_len": "use trainer.vllm_max_model_length",
    "vllm_enable_prefix_caching": "prefix caching is always on now; remove the key",
    "vllm_guided_decoding_regex": "use trainer.vllm_structured_outputs_regex",
    "vllm_importance_sampling_cap": "use trainer.vllm_importance_sampling_clip_max",
    "use_liger_loss": "the language-model head is fused by default now; remove the key",
    "use_liger_kernel": "the language-model head is fused by default now; remove the key",
    "use_transformers_paged": "without vLLM our own sampler generates; remove the key",
    "logging_dir": "use output_dir; trackers write below it",
    "overwrite_output_dir": "a run never overwrites another; choose another output_dir, or trainer.resume_from_checkpoint=true",
    "torch_dtype": "use model.dtype",
    "reward_funcs": "use the mapping rewards: {name: weight}",
    "reward_weights": "use the mapping rewards: {name: weight}",
    "evaluation_strategy": "use trainer.eval_strategy",
    "no_cuda": "use trainer.use_cpu",
    "tokenizer_name_or_path": "the tokenizer is the model's own",
    "parallelism_config": "processes and sharding are in an accelerate config: --accelerate_config",
    "hydra": "runs do not use Hydra's folders or logging; see output_dir",
}
"""Keys of older TRL versions, each with the key to write instead."""

OURS: dict[str, str] = {
    "use_vllm": "use generation.engine=server or generation.engine=colocate",
    "vllm_mode": "use generation.engine=server or generation.engine=colocate",
    "vllm_server_base_url": "use generation.server=<url>",
    "vllm_server_host": "use generation.server=<url>",
    "vllm_server_port": "use generation.server=<url>",
    "vllm_server_timeout": "use generation.seconds_to_start",
    "output_dir": "use output_dir at the top level of the recipe",
    "reward_weights": REPLACED["reward_weights"],
    "parallelism_config": REPLACED["parallelism_config"],
    "use_liger_kernel": REPLACED["use_liger_kernel"],
    "use_transformers_paged": REPLACED["use_transformers_paged"],
    "vllm_importance_sampling_cap": REPLACED["vllm_importance_sampling_cap"],
    "log_completions_hub_repo": "rollouts are written to the run folder as parquet; upload them from there",
    "log_completions": "every rollout is written to rollouts/*.parquet in the run folder; remove the key",
    "auto_find_batch_size": "GRPO needs whole groups; lower trainer.per_device_train_batch_size instead",
    "enable_jit_checkpoint": "SIGTERM is handled here: the step ends, a sealed checkpoint is saved, exit code 143",
}
"""Keys TRL still has but a recipe may not set, each with the reason or the replacement."""
OTHER_NAMES: dict[str, str] = {
    **dict.fromkeys(("lr", "actor_lr", "max_lr", "base_lr"), "trainer.learning_rate"),
    **dict.fromkeys(
        ("batch_size", "train_batch_size", "per_device_batch_size", "micro_batch_size", "device_batch_size"),
        "trainer.per_device_train_batch_size",
    ),
    **dict.fromkeys(("epochs", "num_epochs", "total_epochs", "n_epochs"), "trainer.num_train_epochs"),
    **dict.fromkeys(("steps", "num_steps", "total_steps", "train_steps", "total_training_steps"), "trainer.max_steps"),
    **dict.fromkeys(("kl_coef", "kl_coeff", "kl_loss_coef", "kl_weight", "kl_beta"), "trainer.beta"),
    **dict.fromkeys(
        ("max_new_tokens", "max_tokens", "response_length", "max_response_length", "generate_max_len"),
        "trainer.max_completion_length",
    ),
    **dict.fromkeys(
        ("num_samples", "n_samples", "rollouts", "num_rollouts", "rollout_n", "group_size", "n_samples_per_prompt"),
        "trainer.num_generations",
    ),
    **dict.fromkeys(
        ("grad_accum", "gradient_accumulation", "accumulation_steps"), "trainer.gradient_accumulation_steps"
    ),
    **dict.fromkeys(("clip_ratio", "cliprange", "clip_eps", "eps_clip"), "trainer.epsilon"),
    **dict.fromkeys(("clip_ratio_high", "eps_clip_high"), "trainer.epsilon_high"),
    **dict.fromkeys(("grad_clip", "clip_grad", "max_norm"), "trainer.max_grad_norm"),
    **dict.fromkeys(("warmup", "num_warmup_steps", "lr_warmup_steps"), "trainer.warmup_steps"),
    **dict.fromkeys(("lr_scheduler", "scheduler", "lr_schedule"), "trainer.lr_scheduler_type"),
    **dict.fromkeys(("entropy_coeff", "entropy_bonus"), "trainer.entropy_coef"),
    **dict.fromkeys(("model_path", "model_name", "base_model", "pretrain"), "model.model_name_or_path"),
    "optimizer": "trainer.optim",
}
"""Well-known other names of keys, from verl, OpenRLHF, open-instruct and habit."""
MAPPINGS = frozenset((*SECTIONS, "rewards", "reward_parameters", "data", "scratch"))
"""Keys of a run that have keys below them."""
TEXTS = (
    *("task", "format", "output_dir", "model.model_name_or_path", "critic.model"),
    *("trainer.run_name", "trainer.resume_from_checkpoint", "generation.shared_folder", "generation.token_file"),
    "generation.devices",
)
"""Keys whose value is a name or a path, whatever it looks like; so is a value of `data` that Hydra cannot read."""


def check_keys(content: Any, keys: dict[str, frozenset[str]], *, where: str, prefix: str = "") -> None:
    """Raises: ConfigError, for an unknown key, or a section without keys."""
    for key, value in (content or {}).items():
        if not prefix and key == "defaults":
            continue
        _check_key(f"{prefix}{key}", keys, where=where)
        if not prefix and key in MAPPINGS:
            check_section(key, value, where=where)
        if isinstance(value, dict) and not prefix and key in SECTIONS:
            check_keys(value, keys, where=where, prefix=f"{key}.")


def check_section(key: str, value: Any, *, where: str) -> None:
    """Raises: ConfigError, where a section is empty, or a value that is no mapping."""
    if value is None or value == "":
        raise ConfigError(f"{where}: {key} is empty; give it keys, or leave it out")
    if not isinstance(value, dict):
        raise ConfigError(
            f"{where}: {key} is a section with keys of its own, `{key}: {{key: value}}`; got {value!r:.80}"
        )


def checked_override(argument: str, keys: dict[str, frozenset[str]]) -> str:
    """The override in Hydra's add-or-change form, once its key is known to exist.

    A value that Hydra's grammar cannot read (a blank before a parenthesis, `~`, letters that are not ASCII) is text.
    """
    if argument.startswith("~"):
        raise ConfigError(f"{argument}: keys are set, not deleted; write {argument[1:].partition('=')[0]}=null")
    key, _, value = argument.lstrip("+").partition("=")
    _check_key(key, keys, where="command line")
    takes_text = key in TEXTS or key.startswith("data.")
    is_read, plain = _read(value)
    if not is_read and not takes_text:
        if value[:1] in ("[", "{"):
            raise ConfigError(f"{key}={value}: write a list as [a, b], a mapping as {{a: 1}}; this is neither")
        if _is_sweep(value):
            raise ConfigError(f"{key}={value}: to give a list, write {key}=[{value}]")
    if key in MAPPINGS and (is_read or value == ""):
        check_section(key, plain, where="command line")
        check_keys({key: plain}, keys, where="command line")
    is_number = isinstance(plain, (bool, int, float)) and key in TEXTS and key != "trainer.resume_from_checkpoint"
    override = f"++{key}={value if is_read and not is_number else _quoted(value)}"
    if not _parses(override):
        raise ConfigError(f"command line: there is no key {key}")
    return override


def value_of(text: str) -> Any:
    """The value of a text on the command line: as Hydra reads it, or else the text as it is."""
    is_read, plain = _read(text)
    return plain if is_read else text


def parsed_override(item: str) -> tuple[str, Any]:
    """Key and value of an override that `checked_override` made."""
    override = _parser().parse_override(item)
    return override.key_or_group, override.value()


def recipe_override(group: str, name: str) -> str:
    """The override with which Hydra composes the recipe `name` of the folder `group`."""
    plain = f"+{group}={name}"
    return plain if _parses(plain) else f"+{group}={_quoted(name)}"


@cache
def defaults(program: str) -> dict[str, Any]:
    """Every key of a run with its default."""
    return typing.cast(dict[str, Any], OmegaConf.to_container(run_schema(program)))


def known_keys(program: str) -> dict[str, frozenset[str]]:
    """The keys of each section by its name; no keys for one that is a value, or whose keys the task decides."""
    sections = defaults(program)
    return {key: frozenset(value) if key in SECTIONS else frozenset() for key, value in sections.items()}


def _check_key(key: str, keys: dict[str, frozenset[str]], *, where: str) -> None:
    section, _, name = key.partition(".")
    last = (name or section).split(".")[0]
    if section in ("rewards", "reward_parameters", "data", "scratch") and name:
        return
    if section == "trainer" and last in OURS:
        raise ConfigError(f"{where}: {key} is not for a recipe: {OURS[last]}")
    if section in keys and (not name or last in keys[section]):
        return
    if last in REPLACED:
        raise ConfigError(f"{where}: {key} does not exist any more: {REPLACED[last]}")
    hint = next((found for found in _meant(key, keys) if found), None)
    raise ConfigError(f"{where}: there is no key {key}{f'; did you mean {hint}?' if hint else ''}")


def _meant(key: str, keys: dict[str, frozenset[str]]) -> Iterator[str | None]:
    """Keys that `key` may be meant for, the likeliest first: another name, misspelt in its section, of another or a misspelt section."""
    section, _, name = key.partition(".")
    where, _, other = OTHER_NAMES.get((name or section).lower(), "").partition(".")
    for part in (section, where):
        if other in keys.get(part, ()):
            yield f"{part}.{other}"
    inner = {part: sorted(keys[part]) for part in SECTIONS if part in keys} | {"data": list(DATA_KEYS)}
    if name and section in inner:
        found = near(name, inner[section])
        yield f"{section}.{found}" if found else None
    if name and (right := near(section, keys)):
        found = name if name in inner.get(right, ()) else near(name, inner.get(right, ()))
        yield f"{right}.{found}" if found else f"{right}.{name}" if right not in inner else None
    last = name or section
    everything = {item: f"{part}.{item}" for part in reversed(inner) for item in inner[part]} | {
        one: one for one in keys
    }
    yield everything.get(last)
    if not name:
        found = near(last, everything)
        yield everything[found] if found else None


@cache
def _parser() -> Any:
    """The parser of Hydra's grammar, imported when a command line is read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _read(value: str) -> tuple[bool, Any]:
    """True and the value, if Hydra reads the text as one; otherwise False and None."""
    override = _override(f"key={value}")
    return (False, None) if override is None or override.is_sweep_override() else (True, override.value())


def _is_sweep(value: str) -> bool:
    override = _override(f"key={value}")
    return override is not None and override.is_sweep_override()


def _parses(override: str) -> bool:
    return _override(override) is not None


def _override(text: str) -> Any:
    """The override in Hydra's words; None where it is none."""
    from hydra.errors import HydraException

    try:
        return _parser().parse_override(text)
    except HydraException:
        return None


def _quoted(text: str) -> str:
    """The text in quotes for Hydra. A dollar and a brace stay an interpolation where they are one."""
    from hydra.core.override_parser.types import Quote, QuotedString
    from omegaconf.grammar_parser import parse

    if "${" in text:
        try:
            parse(text)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{text}: `${{` begins an interpolation, ${{section.key}}, and this is none") from error
    return QuotedString(text=text, quote=Quote.single).with_quotes()
