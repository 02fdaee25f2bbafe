"""Processes of a run as launchers describe them: environment variables and accelerate's config files, checked before anything loads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tinyzero_trl.config.recipes import ACCELERATE_CONFIGS
from tinyzero_trl.failures import ConfigError, kind_of, nearest

OF_ONE_PROCESS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""Variables that a launcher sets for each process that it starts."""
GROUP = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables without which the processes of a group do not find each other."""
MAX_PORT = 65535
CONFIG_VARIABLE = "TINYZERO_ACCELERATE_CONFIG"
SWITCHES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")
CHOICES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(SWITCHES, ("true", "false")),
    "ACCELERATE_USE_CPU": ("true", "false", "True", "False", "1", "0", "yes", "no"),
    "ACCELERATE_MIXED_PRECISION": ("no", "fp16", "bf16"),
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": ("0", "1", "2", "3"),
}
"""Values that accelerate's launcher gives these variables."""
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
"""Keys that accelerate's config files may have; the last two are of older ones."""


def check_environment(environment: Mapping[str, str] | None = None) -> None:
    """Refuse variables about this process and its group that contradict each other.

    Raises: ConfigError that names the variable, its value, and what would be right.
    """
    env = os.environ if environment is None else environment
    rank, size = _number(env, "RANK", 0), _number(env, "WORLD_SIZE", 1)
    # -1 is an older word for a process that is alone.
    local_rank = -1 if env.get("LOCAL_RANK") == "-1" else _number(env, "LOCAL_RANK", 0)
    local_size = _number(env, "LOCAL_WORLD_SIZE", size)
    for name, value, of, bound in (
        ("RANK", rank, "WORLD_SIZE", size),
        ("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_size),
    ):
        if bound < 1:
            raise ConfigError(f"{of}={bound} in the environment must be at least 1; {_REMEDY}")
        if value >= bound:
            said = env.get(of) or f"{bound} ({of} is not set)"
            raise ConfigError(f"{name}={value} in the environment must be below {of}, which is {said}; {_REMEDY}")
    missing = [name for name in GROUP if not env.get(name)]
    if missing and (size > 1 or (env.get("LOCAL_RANK") and local_rank >= 0)):
        said = f"WORLD_SIZE={size}" if size > 1 else f"LOCAL_RANK={local_rank}"
        raise ConfigError(f"{said} in the environment, and {', '.join(missing)} is not set; {_REMEDY}")
    if env.get("MASTER_PORT"):
        check_port("MASTER_PORT", env["MASTER_PORT"])
    for name, allowed in CHOICES.items():
        if env.get(name) and env[name] not in allowed:
            raise ConfigError(
                f"{name}={env[name]} in the environment must be {', '.join(allowed[:-1])} or {allowed[-1]}; "
                "accelerate launch sets it, so unset it"
            )
    steps = env.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS") or "auto"
    if steps != "auto" and not (_is_number(steps) and int(steps) >= 1):
        raise ConfigError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={steps} in the environment must be auto or a number of steps; unset it"
        )
    if env.get("ACCELERATE_USE_MEGATRON_LM") == "true":
        raise ConfigError("Megatron-LM cannot train these runs; use DeepSpeed or FSDP: recipes/accelerate_configs/")


def check_to_launch(environment: Mapping[str, str] | None = None) -> None:
    """Refuse to launch from within a process that another launcher started as one of several.

    Raises: ConfigError where WORLD_SIZE says so and no number of machines does (PET_NNODES, see `launch.NODES`).
    """
    env = os.environ if environment is None else environment
    size = _number(env, "WORLD_SIZE", 1)
    if size > 1 and not env.get("PET_NNODES"):
        raise ConfigError(
            f"WORLD_SIZE={size} in the environment says that this is one of {size} processes, and `tinyzero train` starts "
            "the processes itself: unset WORLD_SIZE and use --processes, or set PET_NNODES for several machines (docs/scale.md)"
        )
    for name in ("PET_MASTER_PORT", "MASTER_PORT"):
        if env.get(name):
            check_port(name, env[name])


def check_port(name: str, value: str) -> None:
    """Raises: ConfigError where `value` is no port."""
    if not _is_number(value) or not 1 <= int(value) <= MAX_PORT:
        raise ConfigError(f"{name}={value} in the environment must be a port, from 1 to {MAX_PORT}")


def read_accelerate_config(file: Path, *, num_processes: int | None = None) -> dict[str, Any]:
    """The content of one of accelerate's config files.

    num_processes: what goes before the file's own number, which it then need not have.
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
    if (
        num_processes is not None and content.get("num_processes") == -1
    ):  # accelerate's word for a number that is given later
        content = {key: value for key, value in content.items() if key != "num_processes"}
    fault = next((fault for fault in (_fault(str(key), value) for key, value in content.items()) if fault), None)
    if fault is None and "distributed_type" not in content:
        fault = f"has no distributed_type; there is {', '.join(DISTRIBUTED)}"
    if (
        fault is None
        and num_processes is None
        and content.get("num_processes") is None
        and content["distributed_type"] != "NO"
    ):
        fault = "has no num_processes"
    if fault:
        raise ConfigError(f"accelerate config {file} {fault}")
    return content


def _fault(key: str, value: Any) -> str | None:
    """The fault of one key of a config file, or None; accelerate itself judges the keys that are not named here."""
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


_REMEDY = "a launcher sets these for the processes that it starts: unset them, or start with `tinyzero train`"


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    value = env.get(name) or str(default)
    if not _is_number(value):
        raise ConfigError(f"{name}={value} in the environment must be a whole number; {_REMEDY}")
    return int(value)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def accelerate_config_in_use() -> str | None:
    """The accelerate config that this process was launched with: the name of one of ours, or an absolute path; None without one."""
    named = os.environ.get(CONFIG_VARIABLE) or _config_of_launcher()
    if not named:
        return None
    path = Path(named).absolute()
    return path.stem if path.parent == ACCELERATE_CONFIGS else str(path)


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
