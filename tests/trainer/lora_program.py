"""Run under `accelerate launch` with ZeRO-3: an adapter merged for vLLM, weight by weight, where no process has a whole model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from parity_program import new_trainer
from peft import LoraConfig
from safetensors.torch import load_file
from trl.distributed import DistributedBackend

from tinyzero_trl.generation.lora import adapter_of, merged_params
from tinyzero_trl.trainer import TinyZeroTrainer

SCALE = 2.0


def merged(model: str) -> dict[str, Any]:
    """The largest difference to the weights on disk with the trained adapter added, and how much was gathered at a time.

    `gathered`: numbers that a process had whole, at most, while one merged weight was handed on; `largest`: of the largest weight with
    its two factors; `all`: of the model.
    """
    torch.manual_seed(5)
    config = LoraConfig(r=4, lora_alpha=SCALE * 4, target_modules="all-linear", task_type="CAUSAL_LM")
    # Small parameters would stay whole everywhere.
    sharded = {"stage3_param_persistence_threshold": 0}
    case = {"peft_config": config, "zero_optimization": sharded, "learning_rate": 0.5, "max_steps": 2}
    trainer = new_trainer(model, TinyZeroTrainer, case)
    trainer.train()
    generation: Any = SimpleNamespace(model=trainer.model, _dist=DistributedBackend(trainer.accelerator))
    parameters = dict(trainer.model.named_parameters())
    with adapter_of(generation) as (_, factors):
        factors = {name: value.detach().clone() for name, value in factors.items()}
    found, gathered = {}, 0
    for name, weight in merged_params(generation):
        gathered = max(
            gathered, sum(p.numel() for p in parameters.values())
        )  # a parameter that is in pieces has no numbers
        found[name] = weight.detach().clone()
    whole = load_file(Path(model) / "model.safetensors")
    moved = 0.0
    for name, weight in whole.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in factors:
            change = SCALE * factors[f"{stem}.lora_B.weight"] @ factors[f"{stem}.lora_A.weight"]
            moved, whole[name] = max(moved, float(change.abs().max())), weight + change
    return {
        "names": sorted(found) == sorted(whole),
        "difference": max(float((found[name] - whole[name]).abs().max()) for name in whole),
        "moved": moved,
        "gathered": gathered,
        "largest": max(w.numel() + (4 * sum(w.shape) if w.dim() == 2 else 0) for w in whole.values()),
        "all": sum(weight.numel() for weight in whole.values()),
    }
