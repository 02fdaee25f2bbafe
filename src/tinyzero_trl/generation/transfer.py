"""The server's side of a weight transfer through files, on any device: shared memory on one host, a shared folder across hosts.

Only vLLM's workers import it (plugin.py registers it). The trainer's side is weights.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Empty: there is nothing to agree on before the first transfer."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """One file of a transfer."""

    path: str
    """A .safetensors file with parameters by the names of the checkpoint format."""


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """Loads parameters from files into the running model. A transfer is start, one update for each file, finish."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":  # torch.accelerator has no CPU
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        path = Path(update_info.path)
        if path.suffix != ".safetensors":
            raise ValueError(f"{path} is not a .safetensors file")
        with safe_open(path, framework="pt", device=str(self.device)) as file:
            self.model.load_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        repack_heads(self.model)

    def shutdown(self) -> None:
        """Does nothing: no resource is held."""


def repack_heads(model: torch.nn.Module) -> None:
    """Let output heads on a CPU multiply by their new weights.

    On CPUs vLLM packs a head's matrix once, after loading, and its layerwise reload packs a layer again only if tensors
    arrived under that layer's own name. None do for a tied head: its `weight` is the new embedding, its packed copy the old one
    (logits wrong by 1.4, without an error). To pack twice is harmless.
    """
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and module.weight.device.type == "cpu":
            module.quant_method.process_weights_after_loading(module)
