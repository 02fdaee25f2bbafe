"""Processes of a run and what they share out, as one of accelerate's config files says, or the environment that its launcher makes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from tinyzero_trl.config.environment import CHOICES
from tinyzero_trl.config.recipes import ACCELERATE_CONFIGS
from tinyzero_trl.failures import ConfigError, kind_of, nearest

CONFIG_VARIABLE = "TINYZERO_ACCELERATE_CONFIG"
"""Environment variable that tells a launched program which accelerate config it was launched with."""
DISTRIBUTED = ("NO", "MULTI_CPU", "MULTI_GPU", "DEEPSPEED", "FSDP")
"""Values of `distributed_type` in a config file that runs here can have."""
KEYS = frozenset(
    [
        *(
            "compute_environment",
            "distributed_type",
            "mixed_precision",
            "use_cpu",
            "debug",
            "num_processes",
            "num_machines",
        ),
        *("machine_rank", "gpu_ids", "main_process_ip", "main_process_port", "rdzv_backend", "same_network"),
        *(
            "main_training_function",
            "enable_cpu_affinity",
            "deepspeed_config",
            "fsdp_config",
            "fp8_config",
            "dynamo_config",
        ),
        *("parallelism_config", "megatron_lm_config", "mpirun_config", "downcast_bf16", "command_file", "commands"),
        *("tpu_name", "tpu_zone", "tpu_use_cluster", "tpu_use_sudo", "tpu_vm", "tpu_env", "fp16", "dynamo_backend"),
    ]
)
"""Keys that accelerate's config files may have; the last two are from older versions."""


@dataclass(frozen=True)
class Sharding:
    """Processes and the state they share out."""

    num_processes: int = 1
    kind: Literal["none", "deepspeed", "fsdp"] = "none"
    stage: int = 0
    """ZeRO stage: 1 optimizer state, 2 and gradients, 3 and weights. FSDP2 is 3."""
    offloads_optimizer: bool = False
    """Optimizer state is in the host's memory."""
    offloads_weights: bool = False
    """Weights are in the host's memory."""
    is_cpu: bool = False
    """True if training runs on CPUs."""

    def share(self, stage: int) -> int:
        """Number of processes that share out what ZeRO shares out from `stage` on; 1 where each has all of it."""
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
    """The sharding that an accelerate config file describes; num_processes takes precedence over its own. Raises: ConfigError for impossible values."""
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
    """The sharding that `accelerate launch` chose for this process."""
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


def read_accelerate_config(file: Path, *, num_processes: int | None = None) -> dict[str, Any]:
    """The content of one of accelerate's config files.

    num_processes: takes precedence over the file's own number, which may then be missing.
    Raises: ConfigError that names the file, the key, its value, and what would be right.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"accelerate config {file} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"accelerate config {file} holds {kind_of(content)}, and must hold "
            "keys such as distributed_type and num_processes; recipes/accelerate_configs/ has some"
        )
    if num_processes is not None and content.get("num_processes") == -1:  # in accelerate a number that is given later
        content = {key: value for key, value in content.items() if key != "num_processes"}
    reason = next(
        (reason for reason in (_why_not_valid(str(key), value) for key, value in content.items()) if reason), None
    )
    if reason is None and "distributed_type" not in content:
        reason = f"has no distributed_type; there is {', '.join(DISTRIBUTED)}"
    if (
        reason is None
        and num_processes is None
        and content.get("num_processes") is None
        and content["distributed_type"] != "NO"
    ):
        reason = "has no num_processes"
    if reason:
        raise ConfigError(f"accelerate config {file} {reason}")
    return content


def accelerate_config_in_use() -> str | None:
    """The accelerate config that this process was launched with: the name of one of ours, or an absolute path; None without one."""
    named = os.environ.get(CONFIG_VARIABLE) or _config_of_launcher()
    if not named:
        return None
    path = Path(named).absolute()
    return path.stem if path.parent == ACCELERATE_CONFIGS else str(path)


def _why_not_valid(key: str, value: Any) -> str | None:
    """The reason why a value of a config file cannot be used, or None; accelerate itself checks the keys that are not named here."""
    if key not in KEYS:
        return f"has a key {key} that accelerate does not know{nearest(key, KEYS)}"
    if key == "distributed_type":
        # YAML 1.1 reads a bare NO as false.
        if value is False:
            return 'has distributed_type false: write it in quotes, "NO"'
        if value not in DISTRIBUTED:
            hint = nearest(str(value), DISTRIBUTED)
            return (
                f"has distributed_type {value!r}, which runs here cannot have; there is {', '.join(DISTRIBUTED)}{hint}"
            )
    elif key == "compute_environment":
        if value != "LOCAL_MACHINE":
            return f"has compute_environment {value!r}; runs here have LOCAL_MACHINE"
    elif key == "mixed_precision":
        if value is not False and value not in CHOICES["ACCELERATE_MIXED_PRECISION"]:
            return f'has mixed_precision {value!r}; write "no", and trainer.bf16 in the recipe'
    elif key in ("num_processes", "num_machines"):
        if type(value) is not int or value < 1:
            return f"has {key} {value!r}, and it must be a whole number of at least 1"
    elif key in ("machine_rank", "main_process_port"):
        if value is not None and (type(value) is not int or value < 0):
            return f"has {key} {value!r}, and it must be a whole number"
    elif key in ("deepspeed_config", "fsdp_config"):
        if not isinstance(value, dict):
            return f"has {key} {value!r:.80}, and it must be a section with keys of its own"
        stage = value.get("zero_stage", 2)
        if str(stage) not in CHOICES["ACCELERATE_DEEPSPEED_ZERO_STAGE"]:
            return f"has deepspeed_config.zero_stage {stage!r}; there is 0, 1, 2 and 3"
    elif key == "gpu_ids" and value is not None and not isinstance(value, str):
        return f'has gpu_ids {value!r}, and it must be text: "all", "0" or "0,1"'
    return None


def _config_of_launcher() -> str | None:
    """`--config_file` of the `accelerate launch` above this process."""
    import psutil

    if "ACCELERATE_MIXED_PRECISION" not in os.environ:  # it sets this variable
        return None
    for parent in psutil.Process().parents():
        try:
            words = parent.cmdline()
        except psutil.Error:
            continue
        for word, following in zip(words, [*words[1:], ""], strict=True):
            if word == "--config_file":
                return following
            if word.startswith("--config_file="):
                return word.partition("=")[2]
    return None
