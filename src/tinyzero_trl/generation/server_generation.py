"""Generation by a vLLM server that may be killed, hang, or come back with other weights: found out, mended, and done again."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from trl.generation import vllm_generation

from tinyzero_trl.failures import Failure, ServerLost
from tinyzero_trl.generation.calls import Calls, ServerFault, look
from tinyzero_trl.generation.client import Client, Rows, StaleFault
from tinyzero_trl.generation.lora import WithAdapter, adapter_of
from tinyzero_trl.generation.server import Server
from tinyzero_trl.generation.weights import WeightFolder

logger = logging.getLogger(__name__)


@dataclass
class Remote:
    """What rank 0 knows of the server of a run; the other processes have none of it."""

    calls: Calls
    folder: WeightFolder | None
    """Where weights are handed over; None: NCCL."""
    server: Server | None
    """Ours to restart; None: a person's."""
    seconds_to_start: float
    seconds_per_batch: float
    has_begun: bool = False

    def begin(self) -> None:
        """Return when it can generate for the first time; a start that failed is tried once more. Raises: ServerFault."""
        if self.has_begun:
            return
        self.has_begun = True
        try:
            self.wait()
        except ServerFault as fault:
            if self.server is None:
                raise
            logger.warning("%s; starting once more", fault)
            self.revive()

    def wait(self) -> None:
        """Return when it can generate. Raises: ServerFault."""
        if self.server is not None:
            self.server.wait_until_healthy(self.seconds_to_start)
            self.calls = self.server.calls
            return
        until = time.monotonic() + self.seconds_to_start
        while not self.calls.is_healthy(seconds=look(until)):
            if time.monotonic() > until:
                raise ServerFault(f"{self.calls.url} was not ready within {self.seconds_to_start:g} s")
            time.sleep(0.5)

    def revive(self) -> None:
        """After a fault: a new process where it is ours, otherwise patience. Raises: ServerFault."""
        if self.server is not None:
            self.server.start()
        self.wait()


class ServerGeneration(WithAdapter):
    """TRL's generation on our client. A rollout comes from the weights of this step, or the run stops.

    All processes go through `generate` alike: where rank 0 lost the server, all get no completions, rank 0 mends it, all gather the weights once
    more, and the same rows with the same seeds are asked for again.
    """

    vllm_client: Client

    def __init__(
        self, *args: Any, remote: Remote | None, max_failures: int, sends_adapter: bool = False, **kwargs: Any
    ):
        """remote: on rank 0. max_failures: of one batch, after which ServerLost is raised on all processes. sends_adapter: by itself."""
        self.remote = remote
        self.sends_adapter = sends_adapter
        self.max_failures = max_failures
        self.weights_step = -1
        """Optimizer steps behind the weights of the last rollout, as the server said after it."""
        self.seconds_to_sync = 0.0
        self.num_faults = 0
        """Of the last batch."""
        self._rows = Rows()
        self._step = -1
        super().__init__(*args, **kwargs)

    def prepare(
        self,
        *,
        seeds: Sequence[int],
        eos_token_ids: Sequence[int],
        stop: Sequence[str] = (),
        temperature: float,
        step: int,
    ) -> None:
        """Say what the next rollout of this process is drawn with, before weights are synchronised for it."""
        self._rows = Rows(list(seeds), list(eos_token_ids), list(stop))
        self.temperature, self._step = temperature, step

    def awake(self) -> AbstractContextManager[None]:
        """Nothing: a server never sleeps."""
        return nullcontext()

    def _init_vllm(self) -> None:
        try:
            if self.remote is not None:
                self.remote.begin()
                self.server_base_url = self.remote.calls.url
            with replaced(vllm_generation, "VLLMClient", self._client):
                super()._init_vllm()
        except ServerFault as fault:
            raise ServerLost(str(fault)) from fault

    def _client(self, **kwargs: Any) -> Client:
        assert self.remote is not None
        remote = self.remote
        client = Client(
            remote.calls,
            run=uuid.uuid4().hex[:12],
            folder=remote.folder,
            seconds_per_batch=remote.seconds_per_batch,
            **kwargs,
        )
        client.sends_adapter = self.sends_adapter
        return client

    def sync_weights(self) -> None:
        start = time.perf_counter()
        if self.remote is not None:
            self.vllm_client.push(self._step)
        if self.sends_adapter:
            with adapter_of(self) as (config, parameters):
                if self.remote is not None:
                    self.vllm_client.update_adapter(config, parameters)
                    self.vllm_client.reset_prefix_cache()
        else:
            super().sync_weights()
        self.seconds_to_sync = time.perf_counter() - start

    def generate(self, prompts: Any, images: Any, num_generations: int, profiler: Any = None) -> Any:
        seeds = gather_object(list(self._rows.seeds or []))
        if self.remote is not None:
            self.vllm_client.rows = replace(self._rows, seeds=seeds)
        # TRL sends each prompt once and asks for n completions; ours have a seed each, so every row is a request.
        generated = super().generate(prompts, images, 1, profiler)
        self.num_faults = 0
        while prompts and not generated[1]:
            self.num_faults += 1
            self._mend()
            self.sync_weights()
            generated = super().generate(prompts, images, 1, profiler)
        self.weights_step = self._version_of_all()
        return generated

    def _mend(self) -> None:
        """Have the server back, or raise the same failure on all processes."""
        verdict: list[Any] = [None]
        if self.remote is not None:
            fault = self.vllm_client.fault
            if isinstance(fault, Failure):
                verdict = [fault]
            elif self.num_faults > self.max_failures:
                said = f" ({self.remote.server.last_error()})" if self.remote.server else ""
                verdict = [ServerLost(f"the vLLM server failed {self.num_faults} times in a row: {fault}{said}")]
            else:
                logger.warning(
                    "step %d: %s; trying again (%d of %d)", self._step + 1, fault, self.num_faults, self.max_failures
                )
                self._revive(fault)
        broadcast_object_list(verdict, from_process=0)
        if verdict[0] is not None:
            raise verdict[0]

    def _revive(self, fault: BaseException | None) -> None:
        assert self.remote is not None
        client = self.vllm_client
        try:
            if not (isinstance(fault, StaleFault) and self.remote.calls.is_healthy()):
                client.close_communicator()
                self.remote.revive()
                client.reach(self.remote.calls)
                client.init_communicator(device=self.accelerator.device)
        except ServerFault as another:
            logger.warning("%s", another)

    def _version_of_all(self) -> int:
        found = [int(self.vllm_client.version.split(":")[1]) if self.remote is not None else 0]
        broadcast_object_list(found, from_process=0)
        return int(found[0])


@contextmanager
def replaced(module: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """Within the block, `module.name` is another: TRL names its classes where it makes them, and has no other way in."""
    standing = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, standing)
