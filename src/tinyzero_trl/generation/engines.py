"""Reads a recipe's engine: which generation TRL builds in place of its own, and the server that the run starts or uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from tinyzero_trl.config import (
    ADAPTER_RANKS,
    Sharding,
    has_gpu,
    memory_share,
    several,
    sharding_here,
    shares_gpus,
    uses_fsdp,
    why_merged,
)
from tinyzero_trl.config import weight_transfer as transfer_of
from tinyzero_trl.failures import ConfigError, ServerLost
from tinyzero_trl.generation.server import ON_CPU, Server, ServerSpec
from tinyzero_trl.models import load_path

if TYPE_CHECKING:
    from tinyzero_trl.generation.weights import WeightFolder

Generation = Callable[..., Any]
"""Makes a generation from the arguments of TRL's VLLMGeneration."""


@contextmanager
def engine(cfg: DictConfig, folder: Path) -> Iterator[Generation | None]:
    """The generation of this run by vLLM, for the time of the block; None if the trainer's own model generates.

    A server of the run starts here, so that it loads while the trainer does; its log is `folder`/server.log.
    """
    if cfg.generation.engine == "transformers":
        yield None
        return
    if cfg.generation.engine == "colocate":
        from tinyzero_trl.generation.colocated import ColocatedGeneration

        with ExitStack() as stack:
            adapters = _weight_folder(cfg, stack) if adapter_rank(cfg) else None
            yield partial(ColocatedGeneration, engine=colocated_arguments(cfg), adapters=adapters)
        return
    from tinyzero_trl.generation.server_generation import ServerGeneration

    with ExitStack() as stack:
        remote = _remote(cfg, folder, stack) if os.environ.get("RANK", "0") == "0" else None
        sends_adapter = adapter_rank(cfg) is not None
        failures = cfg.generation.max_failures
        if shares_gpus(cfg):
            _start_first(remote)
        yield partial(
            ServerGeneration,
            remote=remote,
            max_failures=failures,
            sends_adapter=sends_adapter,
            is_ahead=cfg.generation.ahead > 0,
        )


def _remote(cfg: DictConfig, folder: Path, stack: ExitStack) -> Any:
    from tinyzero_trl.generation.authentication import read_token
    from tinyzero_trl.generation.http_client import HttpClient
    from tinyzero_trl.generation.server_generation import Remote
    from tinyzero_trl.generation.server_pool import ServerPool

    section = cfg.generation
    weights = _weight_folder(cfg, stack) if weight_transfer(cfg) == "file" else None
    to_start, per_batch = float(section.seconds_to_start), float(section.seconds_per_batch)
    if section.server != "auto":
        servers = []
        urls, files = several(section.server), several(section.token_file)
        for url, file in zip(urls, files or [str(token_file_of(url)) for url in urls], strict=True):
            token_file = Path(file).expanduser()
            try:
                read_token(token_file)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"generation.server {url}: {error}; `tinyzero serve` prints the file that holds its token, set "
                    "generation.token_file to it"
                ) from error
            stack.enter_context(_leased(token_file, url))
            servers.append(HttpClient(url, token=token_file, seconds_per_call=section.seconds_per_call))
        return Remote(servers[0] if len(servers) == 1 else ServerPool(servers), weights, None, to_start, per_batch)
    server = Server(
        server_spec(cfg),
        log=folder / "server.log",
        token_file=folder / "server.token",
        seconds_per_call=section.seconds_per_call,
        leftovers=[weights.path] if weights else [],
    )
    stack.callback((folder / "server.token").unlink, missing_ok=True)
    stack.callback(server.stop)
    server.start()
    return Remote(server.http_client, weights, server, to_start, per_batch)


def _start_first(remote: Any) -> None:
    """Wait for the server before any process loads its model: vLLM measures the free memory of its GPU, which must not change meanwhile.

    Raises: ServerLost.
    """
    from accelerate import PartialState

    from tinyzero_trl.generation.http_client import ServerError

    if remote is not None:
        try:
            remote.begin()
        except ServerError as error:
            raise ServerLost(str(error)) from error
    PartialState().wait_for_everyone()


def _weight_folder(cfg: DictConfig, stack: ExitStack) -> WeightFolder:
    """The folder in which weights are handed over, removed with the stack. Raises: ConfigError."""
    import torch

    from tinyzero_trl.generation.weights import WeightFolder

    place = cfg.generation.shared_folder
    # The precision in which vLLM computes; "auto" is the checkpoint's own.
    dtype = getattr(torch, server_dtype(cfg), None)
    try:
        folder = WeightFolder(place, dtype=dtype)
    except OSError as error:
        raise ConfigError(f"generation.shared_folder {place}: {error.strerror or error}") from error
    stack.callback(folder.remove)
    return folder


def server_spec(cfg: DictConfig) -> ServerSpec:
    """The server that a recipe needs."""
    trainer, section = cfg.trainer, cfg.generation
    return ServerSpec(
        model=load_path(cfg.model.model_name_or_path),
        dtype=server_dtype(cfg),
        max_model_length=trainer.vllm_max_model_length,
        is_on_cpu=is_on_cpu(cfg),
        weight_transfer=weight_transfer(cfg),
        seed=trainer.seed,
        revision=cfg.model.model_revision if cfg.model.model_revision != "main" else None,
        trust_remote_code=bool(trainer.trust_remote_code),
        tensor_parallel=trainer.vllm_tensor_parallel_size,
        memory_share=memory_share(cfg),
        kv_cache_gib=section.kv_cache_gib,
        devices=section.devices,
        adapter_rank=adapter_rank(cfg),
    )


def server_dtype(cfg: DictConfig) -> str:
    """Precision of the trainer's forward pass: autocast's if it is on, otherwise that of the weights."""
    if not is_on_cpu(cfg):
        if cfg.trainer.fp16:
            return "float16"
        if cfg.trainer.bf16 is not False:
            return "bfloat16"
    return str(cfg.model.dtype or "float32")


def colocated_arguments(cfg: DictConfig) -> dict[str, Any]:
    """Arguments of vLLM's LLM in addition to those of TRL."""
    arguments: dict[str, Any] = {"dtype": server_dtype(cfg), "generation_config": "vllm"}
    gib = cfg.generation.kv_cache_gib
    if rank := adapter_rank(cfg):
        arguments |= {"enable_lora": True, "max_lora_rank": rank}
    if is_on_cpu(cfg):
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it overrides the size given here
        arguments |= ON_CPU
        gib = gib or 1.0
    if gib is not None:
        arguments["kv_cache_memory_bytes"] = int(gib * 2**30)
    return arguments


def adapter_rank(cfg: DictConfig) -> int | None:
    """The rank for which vLLM reserves memory if the adapter alone is transferred, through files; None if whole weights are."""
    goes = cfg.generation.lora != "merged" and why_merged(cfg) is None
    # NCCL is for a server with its own GPUs, perhaps on another host that sees none of our files.
    if not goes or (cfg.generation.engine == "server" and weight_transfer(cfg) == "nccl"):
        return None
    return next(rank for rank in ADAPTER_RANKS if rank >= cfg.model.lora_r)


def weight_transfer(cfg: DictConfig, sharding: Sharding | None = None) -> str:
    """`file` or `nccl`, on this machine. sharding: the run's; None reads the environment of `accelerate launch`."""
    stage = (sharding or sharding_here(1, is_cpu=False)).stage
    return transfer_of(cfg, stage=stage, is_on_cpu=is_on_cpu(cfg))


def is_on_cpu(cfg: DictConfig) -> bool:
    """True if trainer and server compute on CPUs."""
    return bool(cfg.trainer.use_cpu) or not has_gpu()


def token_file_of(url: str) -> Path:
    """The file into which `tinyzero serve` writes the token of the server at this address."""
    from urllib.parse import urlparse

    parts = urlparse(url)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "tinyzero-trl" / f"server-{parts.hostname}-{parts.port}.token"


@contextmanager
def _leased(token_file: Path, url: str) -> Iterator[None]:
    """Hold the lock of the token's file, so that two runs on one machine cannot write their weights into one server."""
    import fcntl

    with token_file.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"generation.server {url} is used by another run; give each run a server of its own"
            ) from None
        yield


def rollout_function(cfg: DictConfig) -> Callable[..., dict[str, Any]] | None:
    """Our sampler as a `rollout_func` of TRL; None if vLLM generates or FSDP shards the model.

    Under FSDP each forward pass is a collective, which processes whose completions end early would leave; transformers' `generate`
    keeps all processes in it.
    """
    if cfg.trainer.use_vllm or uses_fsdp():
        return None
    from tinyzero_trl.generation.transformers_rollout import transformers_rollout

    return transformers_rollout
