"""The model that a run trains: checked before it is loaded, and the arguments TRL loads it with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from tinyzero_trl.failures import ConfigError
from tinyzero_trl.models import adapters, inspection, tokens
from tinyzero_trl.models.location import START, TRAINED, ModelLocation, load_path, locate

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class CheckedModel:
    """A model and its tokenizer, checked without reading weights."""

    location: ModelLocation
    """Its place, and the run it comes from."""
    config: PreTrainedConfig
    """Content of its config.json."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer, with padding on the left."""


def checked_start(cfg: DictConfig) -> CheckedModel:
    """The model and tokenizer that `cfg` names, checked without reading weights.

    If `cfg` names a run folder, it is set to the model folder in it, so that the new run's record says which model it was.
    Raises: ConfigError.
    """
    location = locate(str(cfg.model.model_name_or_path), typed=TRAINED)
    if location.run_folder:
        cfg.model.model_name_or_path = location.shown
    asked = {"revision": cfg.model.model_revision, "trust_remote_code": bool(cfg.trainer.trust_remote_code)}
    config = inspection.config_of(location, typed=TRAINED, **asked)
    if not config.architectures:
        raise ConfigError(
            f"{TRAINED}{location.path}: config.json names no architecture, by which TRL loads the model; add "
            f'"architectures": ["{inspection.class_name_of(config)}"]'
        )
    tokenizer = tokens.tokenizer_of(location, typed=TRAINED, config=config, **asked)
    model = inspection.empty_model(location, config, typed=TRAINED, **init_arguments(cfg))
    if model is not None and cfg.model.get("use_peft"):
        inspection.check_lora(model, _model_settings(cfg))
    if "critic" in cfg and cfg.critic.model is not None:
        _check_critic(cfg)
    return CheckedModel(location, config, tokenizer)


def _check_critic(cfg: DictConfig) -> None:
    """Check the model whose weights, without the head, PPO's value model starts from. Raises: ConfigError."""
    typed = "critic.model="
    location = locate(str(cfg.critic.model), typed=typed)
    if location.adapter:
        raise ConfigError(f"{typed}{cfg.critic.model} is an adapter; make one model of it with `tinyzero merge`")
    trusts = bool(cfg.trainer.trust_remote_code)
    config = inspection.config_of(location, typed=typed, trust_remote_code=trusts, writes_text=False)
    inspection.empty_model(location, config, typed=typed, has_head=False)
    cfg.critic.model = location.path


def settle_adapter(cfg: DictConfig, location: ModelLocation, run_folder: Path) -> None:
    """Merge the adapter that a run starts from into a model in the run folder, and have `cfg` name that. Every process calls it.

    Everything that loads the model by its name (reference model, value model, vLLM, the record of a new adapter) then gets
    the adapter's weights too.
    """
    if location.adapter is None:
        return
    from accelerate import PartialState

    state = PartialState()
    if state.is_main_process and not (run_folder / START).is_dir():
        adapters.write_merged(location, run_folder / START)
    state.wait_for_everyone()
    cfg.model.model_name_or_path = str(run_folder / START)


def init_arguments(cfg: DictConfig) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`.

    TRL takes the dtype only from here: it ignores ModelConfig's, and would load float32.
    """
    given = OmegaConf.to_container(cfg.trainer.model_init_kwargs) if cfg.trainer.model_init_kwargs else {}
    named = {
        "dtype": cfg.model.dtype,
        "revision": cfg.model.model_revision,
        "attn_implementation": cfg.model.attn_implementation,
    }
    return {**{key: value for key, value in named.items() if value is not None}, **cast(dict[str, Any], given)}


def policy_arguments(cfg: DictConfig) -> dict[str, Any]:
    """Keyword arguments of TRL's trainers for the model, its quantization and its adapter."""
    from trl import get_peft_config, get_quantization_config

    arguments = _model_settings(cfg)
    return {
        "model": load_path(cfg.model.model_name_or_path),
        "quantization_config": get_quantization_config(arguments),
        "peft_config": get_peft_config(arguments),
    }


def _model_settings(cfg: DictConfig) -> Any:
    from trl import ModelConfig

    settings = ModelConfig(**cast(dict[str, Any], OmegaConf.to_container(cfg.model)))
    # ModelConfig turns a list of one into a string, which PEFT matches as a pattern against whole names: `q_proj` would match none.
    only = settings.lora_target_modules
    if isinstance(only, str) and re.fullmatch(r"[\w.]+", only):
        settings.lora_target_modules = [only]
    return settings
