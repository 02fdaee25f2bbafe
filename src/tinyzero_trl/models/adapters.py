"""Merging a LoRA adapter into the model below it. The merged folder needs neither PEFT nor the base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinyzero_trl import storage
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.models import inspection, tokens
from tinyzero_trl.models.location import EVALUATED, ModelLocation, locate


def merge(model_path: str, to: Path) -> Path:
    """Write the merged model of a run, checkpoint or adapter folder to `to`; returns `to`.

    Raises: ConfigError if there is no adapter, if its files are damaged, or if `to` exists.
    """
    location = locate(model_path, typed="")
    if location.adapter is None:
        raise ConfigError(f"{model_path} has no adapter: {location.path} is a whole model already")
    if to.exists():
        raise ConfigError(f"{to} is there already; choose another folder")
    inspection.empty_model(location, inspection.config_of(location, typed=""), typed="")
    write_merged(location, to)
    return to


def write_merged(location: ModelLocation, to: Path) -> None:
    """Write the model of `location`, its adapter merged, to the folder `to`, in the precision of the model below.

    A base model that was quantized to 4 bits in training is loaded unquantized, so the merged model differs from the
    trained one by that rounding.
    """
    tokenizer = tokens.tokenizer_of(location, typed="")
    # Under ZeRO-3 only one process merges, so the other processes would not join in sharding the weights.
    with inspection.whole_weights():
        model = whole(location, dtype="auto")
    with storage.replacing_folder(to) as beside:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)


def whole(location: ModelLocation, *, dtype: Any) -> Any:
    """The model of `location`, loaded, with its adapter merged into the weights."""
    model = inspection.class_of(inspection.config_of(location, typed=EVALUATED)).from_pretrained(
        location.path, dtype=dtype
    )
    if location.adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, location.adapter).merge_and_unload()


def make_trainable(model: Any, *, has_masters: bool) -> None:
    """Have an adapter of `model` learn in float32 and get its whole gradient, whatever the weights below it are stored in.

    TRL casts an adapter on quantized weights to bfloat16, as QLoRA does, which takes steps of 2e-4 (arXiv 2305.14314, sec. 4).
    Reinforcement learning takes steps of 1e-5 and less. A bfloat16 number of 0.004 has its neighbours 3e-5 away, so such a step
    is rounded to none, and the adapter stops learning once it has begun to matter. Costs 2 bytes a weight of the adapter; products stay
    in half precision by autocast. has_masters: the optimizer has float32 weights of its own (DeepSpeed), and the cast stays.

    On CPUs with AVX512-BF16, bitsandbytes 0.50.2 packs 4-bit weights anew in the first pass of generation, and has no backward pass for
    that form: from then on only the adapter's last maps would get a gradient, with no more than a warning of torch's. That is switched off.
    """
    import torch

    if hasattr(model, "peft_config") and not has_masters:
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
