"""The model a run trains: where it is, in which precision it loads, its adapter, and who generates with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from tinyzero_trl.config import model_path


def init_arguments(cfg: DictConfig) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`.

    TRL reads the dtype from here alone: ModelConfig's is ignored, and float32 loads, unless it is passed on.
    """
    given = OmegaConf.to_container(cfg.trainer.model_init_kwargs) if cfg.trainer.model_init_kwargs else {}
    named = {
        "dtype": cfg.model.dtype,
        "revision": cfg.model.model_revision,
        "attn_implementation": cfg.model.attn_implementation,
    }
    return {**{key: value for key, value in named.items() if value is not None}, **cast(dict[str, Any], given)}


def policy(cfg: DictConfig) -> dict[str, Any]:
    """Keyword arguments of TRL's trainers that say what is trained: the model, its quantization, its adapter."""
    from trl import ModelConfig, get_peft_config, get_quantization_config

    arguments = ModelConfig(**cast(dict[str, Any], OmegaConf.to_container(cfg.model)))
    return {
        "model": model_path(cfg.model.model_name_or_path),
        "quantization_config": get_quantization_config(arguments),
        "peft_config": get_peft_config(arguments),
    }


def rollout_function(cfg: DictConfig) -> Callable[..., dict[str, Any]] | None:
    """Our sampler in TRL's form, or None where vLLM generates, or FSDP shards the model.

    Under FSDP each forward pass is a collective, and processes whose completions end early would leave it; transformers'
    generate keeps them in step.
    """
    if cfg.trainer.use_vllm or os.environ.get("ACCELERATE_USE_FSDP", "false") == "true":
        return None
    from tinyzero_trl.generation.rollout import transformers_rollout

    return transformers_rollout
