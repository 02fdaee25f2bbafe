"""`generation.offload`: weights and optimizer state wait in the host's memory until their phase of a step comes.

The optimizer's state is on the device while the optimizer steps, the reference model while nothing is generated. The numbers are those
of a run without: they are moved, not computed. Each move is waited for.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

HOST = torch.device("cpu")


class HostMemory:
    """Tensors of a device while they are in the host's memory, each in pages of its own that are kept for the next time.

    The pages are locked: through pageable memory a card copies at a third of the speed, and locking takes longer than copying.
    """

    def __init__(self) -> None:
        self._pages: dict[Hashable, torch.Tensor] = {}
        self._devices: dict[Hashable, torch.device] = {}

    def take(self, key: Hashable, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor's numbers on the host; complete after `settle`."""
        pages = self._pages.get(key)
        if pages is None or pages.shape != tensor.shape or pages.dtype != tensor.dtype:
            pages = self._pages[key] = locked_like(tensor)
        self._devices[key] = tensor.device
        return pages.copy_(tensor, non_blocking=True)

    def give_back(self) -> Iterator[tuple[Any, torch.Tensor]]:
        """Key and tensor of everything that was taken, each on the device it came from, in the order of the device's work."""
        for key, device in self._devices.items():
            yield key, on_device(self._pages[key], device)
        self._devices.clear()


def keep_state_on_host(optimizer: torch.optim.Optimizer) -> None:
    """Keep the optimizer's state on its device only while it steps, also after a checkpoint is loaded."""
    memory = HostMemory()

    def bring(*arguments: Any) -> None:
        for (parameter, name), value in memory.give_back():
            optimizer.state[parameter][name] = value

    def send(*arguments: Any) -> None:
        # May come twice after one step: torch calls the hooks for a subclass's step, and for the one within it.
        for parameter, values in optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor) and is_on_device(value):
                    values[name] = memory.take((parameter, name), value)
        settle()

    optimizer.register_step_pre_hook(bring)
    optimizer.register_step_post_hook(send)
    optimizer.register_load_state_dict_post_hook(send)


@contextmanager
def on_host(model: torch.nn.Module, memory: HostMemory) -> Iterator[None]:
    """Keep the model's weights in the host's memory within the block, in which it computes nothing."""
    for parameter in model.parameters():
        if is_on_device(parameter):
            parameter.data = memory.take(parameter, parameter.data)
    settle()
    try:
        yield
    finally:
        for parameter, weight in memory.give_back():
            parameter.data = weight


def locked_like(tensor: torch.Tensor) -> torch.Tensor:
    """Memory of the host for the tensor's numbers, which a card copies to and from directly."""
    return torch.empty_like(tensor, device=HOST, pin_memory=torch.cuda.is_available())


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The numbers of a tensor of the host on a device; whatever the device does next comes after them."""
    return tensor.to(device, non_blocking=True)


def is_on_device(tensor: torch.Tensor) -> bool:
    """True for a tensor in memory that is not the host's."""
    return tensor.device != HOST


def settle() -> None:
    """Wait until everything sent is on the host, and give the device's memory back: vLLM is about to ask for it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
