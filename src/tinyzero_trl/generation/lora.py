"""Weights of a model with a LoRA adapter, for vLLM: the adapter alone, or whole weights with the adapter added."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from trl.generation.vllm_generation import VLLMGeneration


class WithAdapter(VLLMGeneration):
    """TRL's generation, with an adapter merged into copies of the weights, which themselves do not change."""

    def _iter_named_params(self) -> Iterator[tuple[str, torch.Tensor]]:
        if isinstance(self.model, PeftModel) and not self._dist.is_fsdp and is_plain(self.model.peft_config["default"]):
            yield from merged_params(self)
        else:
            yield from super()._iter_named_params()


def is_plain(config: Any) -> bool:
    """True if PEFT's config trains nothing but two factors beside linear maps."""
    return config.peft_type == "LORA" and not (config.use_dora or config.modules_to_save or config.target_parameters)


@contextmanager
def adapter_of(generation: Any) -> Iterator[tuple[Any, dict[str, torch.Tensor]]]:
    """PEFT's config and the adapter's parameters by the names under which PEFT saves them; gathered on all processes within the block.

    generation: TRL's VLLMGeneration, which has the model and the way it is sharded.
    """
    model = generation.model
    trained = [parameter for name, parameter in model.named_parameters() if model.prefix in name]
    with generation._dist.gather_params(trained):
        # By default PEFT would ask the hub if the vocabulary has grown.
        yield model.peft_config["default"], get_peft_model_state_dict(model, save_embedding_layers=False)


def merged_params(generation: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of the model with its adapter added, one by one, by the names of the checkpoint format.

    TRL merges in place and subtracts again, and each time rounding changes every weight (by 2**-9 of it in bfloat16). Here the
    weights below the adapter do not change.
    """
    model = generation.model
    layers = {
        f"{name}.base_layer.weight": module for name, module in model.named_modules() if isinstance(module, LoraLayer)
    }
    for name, parameter in model.named_parameters():
        if model.prefix in name:
            continue
        layer = layers.get(name)
        # One layer at a time: under ZeRO-3 the whole model may fit no GPU.
        factors = [] if layer is None else [p for p in layer.parameters() if p is not parameter]
        with generation._dist.gather_params([parameter, *factors]), torch.no_grad():
            weight = parameter.data
            if layer is not None:
                weight = weight + layer.get_delta_weight("default").to(weight.dtype)
            yield name.removeprefix("base_model.model.").replace(".base_layer", ""), weight
