"""How a run is spread over processes: what an accelerate config says, or the environment that `accelerate launch` makes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinyzero_trl.config.processes import read_accelerate_config


@dataclass(frozen=True)
class Sharding:
    """Processes and what they share out."""

    num_processes: int = 1
    kind: Literal["none", "deepspeed", "fsdp"] = "none"
    stage: int = 0
    """ZeRO stage: 1 optimizer state, 2 and gradients, 3 and weights. FSDP2 is 3."""
    offloads_optimizer: bool = False
    """Optimizer state is in the host's memory."""
    offloads_weights: bool = False
    """Weights are in the host's memory."""
    is_cpu: bool = False
    """Whether training runs on the host itself."""

    def share(self, stage: int) -> int:
        """By how much the memory of what ZeRO shares out from `stage` on is divided."""
        return self.num_processes if self.stage >= stage else 1

    @property
    def shown(self) -> str:
        name = {"none": "DDP", "deepspeed": f"ZeRO-{self.stage}", "fsdp": "FSDP2"}[self.kind]
        return (
            "1 process"
            if self.num_processes == 1 and self.kind == "none"
            else f"{self.num_processes} processes, {name}"
        )


def sharding_of(config: Path, *, num_processes: int | None = None) -> Sharding:
    """The sharding that an accelerate config file describes; num_processes goes before its own. Raises: ConfigError for values that cannot be."""
    content = read_accelerate_config(config, num_processes=num_processes)
    number = num_processes or int(content.get("num_processes") or 1)
    is_cpu = bool(content.get("use_cpu"))
    deepspeed, fsdp = content.get("deepspeed_config") or {}, content.get("fsdp_config") or {}
    if deepspeed:
        return Sharding(
            number,
            "deepspeed",
            int(deepspeed.get("zero_stage", 0)),
            str(deepspeed.get("offload_optimizer_device", "none")) not in ("none", "None"),
            str(deepspeed.get("offload_param_device", "none")) not in ("none", "None"),
            is_cpu,
        )
    if fsdp:
        offloads = bool(fsdp.get("fsdp_offload_params"))
        return Sharding(number, "fsdp", 3, offloads, offloads, is_cpu)
    return Sharding(number, is_cpu=is_cpu)


def sharding_here(num_processes: int, *, is_cpu: bool, environment: Mapping[str, str] | None = None) -> Sharding:
    """What `accelerate launch` has told this process."""
    env = os.environ if environment is None else environment
    if env.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
        return Sharding(
            num_processes,
            "deepspeed",
            int(env.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")),
            env.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none") != "none",
            env.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none") != "none",
            is_cpu,
        )
    if env.get("ACCELERATE_USE_FSDP", "false") == "true":
        offloads = env.get("FSDP_OFFLOAD_PARAMS", "false") == "true"
        return Sharding(num_processes, "fsdp", 3, offloads, offloads, is_cpu)
    return Sharding(num_processes, is_cpu=is_cpu)
