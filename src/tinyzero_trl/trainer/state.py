"""State that a resumed run needs beyond transformers' checkpoint: written per process beside it, checked before it is loaded.

The state is nested dicts and lists of tensors, numbers, text and None. Nothing is pickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from tinyzero_trl import storage
from tinyzero_trl.failures import ConfigError

STATE = "rollout_state"
REFERENCE = "reference_model.safetensors"
TENSOR = "$tensor"


def save_state(folder: Path, state: dict[str, Any], *, rank: int) -> None:
    """Write `rollout_state-<rank>.safetensors` and, last, the `.json` that says where in the state each tensor belongs."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    plain = _without_tensors(state, tensors)
    path = folder / f"{STATE}-{rank}.safetensors"
    with storage.replacing(path) as file:
        safetensors.torch.save_file(tensors, file.name)
    storage.write_text(path.with_suffix(".json"), json.dumps(plain))


def load_state(folder: Path, *, rank: int, device: torch.device) -> dict[str, Any] | None:
    """Returns the state that `save_state` wrote, tensors on `device` or the CPU as they were; None if there is none. Nothing is unpickled."""
    path = folder / f"{STATE}-{rank}.json"
    if not path.is_file():
        return None
    tensors = safetensors.torch.load_file(path.with_suffix(".safetensors"))
    state: dict[str, Any] = _with_tensors(json.loads(path.read_text(encoding="utf-8")), tensors, device)
    return state


def save_reference(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write the reference model as it was synchronised."""
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
    safetensors.torch.save_file(tensors, folder / REFERENCE)


def load_reference(folder: Path, model: torch.nn.Module) -> None:
    """Take back what `save_reference` wrote. Raises: ConfigError where it is not there."""
    path = folder / REFERENCE
    if not path.is_file():
        raise ConfigError(f"{folder} lacks {REFERENCE}, the reference model as it was synchronised")
    model.load_state_dict(safetensors.torch.load_file(path), strict=True)


def check_files(checkpoint: Path, names: list[str]) -> None:
    """Raises: ConfigError for a checkpoint without these files: transformers begins a new optimizer without a word."""
    if lost := [name for name in names if not (checkpoint / name).is_file()]:
        raise ConfigError(
            f"{checkpoint} lacks {', '.join(lost)}, so the run cannot go on from it as it was (trainer.save_only_model=true leaves them out)"
        )


def check_weights(model: torch.nn.Module, *, missing: list[str], unexpected: list[str]) -> None:
    """Raises: ConfigError for a checkpoint with other weights than the model's: transformers only warns.

    missing, unexpected: keys, as torch names them after loading. A key may be missing where its tensor is tied to one that is there.
    """
    tensors = model.state_dict(keep_vars=True)
    loaded = {tensor.data_ptr() for name, tensor in tensors.items() if name not in set(missing)}
    lost = sorted(name for name in set(missing) & tensors.keys() if tensors[name].data_ptr() not in loaded)
    if lost or unexpected:
        raise ConfigError(
            f"the checkpoint's weights are not this model's: missing {lost}, not known {list(unexpected)}"
        )


def _without_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {TENSOR: name, "on_cpu": value.device.type == "cpu"}
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value), f"JSON has text keys only: {list(value)}"
        return {key: _without_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, tensors) for item in value]
    return value.item() if hasattr(value, "item") else value


def _with_tensors(value: Any, tensors: dict[str, torch.Tensor], device: torch.device) -> Any:
    if isinstance(value, list):
        return [_with_tensors(item, tensors, device) for item in value]
    if isinstance(value, dict) and TENSOR in value:
        tensor = tensors[value[TENSOR]]
        return tensor if value["on_cpu"] else tensor.to(device)
    if isinstance(value, dict):
        return {key: _with_tensors(item, tensors, device) for key, item in value.items()}
    return value
