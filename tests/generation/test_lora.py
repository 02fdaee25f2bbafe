"""Weights with an adapter in them: what the model with the adapter computes, whatever the weights below are stored in."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from small_models import make_llama


def adapted(folder: Path, **loading: Any) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(folder, **loading), lora).eval()


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_merged_weights_compute_what_the_adapter_does_and_nothing_below_it_moves(stored: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from tinyzero_trl.generation.lora import merged_params

    folder = make_llama(tmp_path, hidden=64)
    model = adapted(folder, dtype=getattr(torch, stored))
    generation = SimpleNamespace(
        model=model, _dist=SimpleNamespace(gather_params=lambda parameters: contextlib.nullcontext())
    )
    below = {name: value.detach().clone() for name, value in model.named_parameters()}
    merged = {name: value.float() for name, value in merged_params(generation)}
    assert all(torch.equal(value, below[name]) for name, value in model.named_parameters())
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert merged.keys() == dict(plain.named_parameters()).keys()
    plain.load_state_dict(merged, strict=False)
    ids = torch.arange(60, 100)[None]
    with torch.no_grad():
        expected = model.float()(ids).logits if stored == "bfloat16" else model(ids).logits
        with model.disable_adapter():
            assert (model(ids).logits - expected).abs().max() > 0.1
        gap = (plain(ids).logits - expected).abs().max()
    assert gap < (0.05 if stored == "bfloat16" else 1e-4), gap


def test_merging_gathers_one_layer_at_a_time(tmp_path: Path) -> None:
    """Under ZeRO-3 what is gathered at once has to fit each GPU; the whole model may not."""
    from tinyzero_trl.generation.lora import merged_params

    model = adapted(make_llama(tmp_path, hidden=64), dtype=torch.float32)
    whole: set[int] = set()
    most = 0

    @contextlib.contextmanager
    def gather(parameters: Any) -> Any:
        nonlocal most
        parameters = list(parameters)
        whole.update(map(id, parameters))
        most = max(most, sum(parameter.numel() for parameter in parameters))
        yield
        whole.difference_update(map(id, parameters))

    def seen(module: Any, inputs: Any) -> None:
        assert all(id(parameter) in whole for parameter in module.parameters()), "a factor is read in pieces"

    for module in model.modules():
        if "default" in getattr(module, "lora_A", {}):
            delta = module.get_delta_weight
            module.get_delta_weight = lambda name, module=module, delta=delta: (seen(module, None), delta(name))[1]
    generation = SimpleNamespace(model=model, _dist=SimpleNamespace(gather_params=gather))
    largest = max(value.numel() for _, value in merged_params(generation))
    factors = max(
        sum(parameter.numel() for name, parameter in module.named_parameters() if "lora_" in name)
        for module in model.modules()
        if "default" in getattr(module, "lora_A", {})
    )
    assert most <= largest + factors
    assert most < sum(parameter.numel() for parameter in model.parameters()) / 2
