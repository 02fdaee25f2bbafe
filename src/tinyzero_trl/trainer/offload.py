"""`generation.offload`: what waits in the host's memory until its phase of a step comes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from trl import GRPOTrainer

HOST = torch.device("cpu")


class Offload(GRPOTrainer):
    """The optimizer's state is on the device while the optimizer steps, the reference model while nothing is generated.

    The numbers are those of a run without: they are moved, not computed. Each move is waited for.
    """

    def __init__(self, *args: Any, offload: bool = False, **kwargs: Any):
        self.offload = offload
        super().__init__(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if self.offload:
            keep_state_on_host(optimizer)
        return optimizer

    def _generate(self, prompts: list[Any]) -> Any:
        if not self.offload or self.ref_model is None:
            return super()._generate(prompts)
        with on_host(self.ref_model):
            return super()._generate(prompts)


def keep_state_on_host(optimizer: torch.optim.Optimizer) -> None:
    """Have the optimizer's state on its device only while it steps, also after a checkpoint is loaded."""
    devices: dict[tuple[torch.Tensor, str], torch.device] = {}

    def bring(*arguments: Any) -> None:
        for (parameter, name), device in devices.items():
            optimizer.state[parameter][name] = moved(optimizer.state[parameter][name], device)
        devices.clear()

    def send(*arguments: Any) -> None:
        # May come twice after one step: torch calls the hooks for a subclass's step, and for the one within it.
        for parameter, values in optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor) and is_on_device(value):
                    devices[parameter, name] = value.device
                    values[name] = moved(value, HOST)
        _free()

    optimizer.register_step_pre_hook(bring)
    optimizer.register_step_post_hook(send)
    optimizer.register_load_state_dict_post_hook(send)


@contextmanager
def on_host(model: torch.nn.Module) -> Iterator[None]:
    """Within the block the model's weights are in the host's memory, and it computes nothing."""
    devices = {parameter: parameter.device for parameter in model.parameters() if is_on_device(parameter)}
    for parameter in devices:
        parameter.data = moved(parameter.data, HOST)
    _free()
    try:
        yield
    finally:
        for parameter, device in devices.items():
            parameter.data = moved(parameter.data, device)


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor's numbers there."""
    return tensor.to(device)


def is_on_device(tensor: torch.Tensor) -> bool:
    """Whether it takes memory that is not the host's."""
    return tensor.device != HOST


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # vLLM is about to ask the card for it
