"""TRL's generation by a vLLM server that may be killed, hang, or return with other weights: the rollout is then generated again."""

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
from tinyzero_trl.generation.client import Client, Rows, StaleWeightsError
from tinyzero_trl.generation.http_client import HttpClient, ServerError, health_timeout
from tinyzero_trl.generation.lora import WithAdapter, adapter_of
from tinyzero_trl.generation.server import Server
from tinyzero_trl.generation.weights import WeightFolder

logger = logging.getLogger(__name__)


@dataclass
class Remote:
    """The server of a run, as rank 0 sees it; the other processes have no such object."""

    http_client: HttpClient
    folder: WeightFolder | None
    """Folder in which weights are handed over; None: they go by NCCL."""
    server: Server | None
    """The server that this run started and may restart; None if a person started it."""
    seconds_to_start: float
    seconds_per_batch: float
    has_begun: bool = False

    def begin(self) -> None:
        """Wait for the first start of the server; a start that failed is repeated once. Raises: ServerError."""
        if self.has_begun:
            return
        self.has_begun = True
        try:
            self.wait()
        except ServerError as error:
            if self.server is None:
                raise
            logger.warning("%s; starting once more", error)
            self.revive()

    def wait(self) -> None:
        """Return when the server can generate. Raises: ServerError."""
        if self.server is not None:
            self.server.wait_until_healthy(self.seconds_to_start)
            self.http_client = self.server.http_client
            return
        until = time.monotonic() + self.seconds_to_start
        while not self.http_client.is_healthy(seconds=health_timeout(until)):
            if time.monotonic() > until:
                raise ServerError(f"{self.http_client.url} was not ready within {self.seconds_to_start:g} s")
            time.sleep(0.5)

    def revive(self) -> None:
        """Restart the server if this run started it, otherwise wait for it. Raises: ServerError."""
        if self.server is not None:
            self.server.start()
        self.wait()


class ServerGeneration(WithAdapter):
    """TRL's generation on our client. A rollout comes from the weights of this step, or the run stops.

    All processes take the same way through `generate`: if the server failed, all get no completions, rank 0 restarts it or waits for
    it, all gather the weights again, and the same rows are requested again with the same seeds.
    """

    vllm_client: Client

    def __init__(
        self,
        *args: Any,
        remote: Remote | None,
        max_failures: int,
        sends_adapter: bool = False,
        is_ahead: bool = False,
        **kwargs: Any,
    ):
        """remote: the server; None on all ranks except 0. max_failures: failures of one batch before ServerLost is raised on all processes.

        sends_adapter: True if the adapter alone is transferred. is_ahead: True if the trainer is to request the next batch
        while it trains one; weights then stay in their files until the next transfer.
        """
        self.remote = remote
        self.sends_adapter = sends_adapter
        self.is_ahead = is_ahead
        self.max_failures = max_failures
        self.weights_step = -1
        """Optimizer steps that made the weights of the last rollout, by the server's own version."""
        self.seconds_to_sync = 0.0
        self.seconds_to_generate = 0.0
        """Time of the server for the last rollout."""
        self.num_faults = 0
        """Failures of the server in the last batch."""
        self._requested: list[list[int]] | None = None
        """This process's prompts of the request in flight."""
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
        """Set the sampling of this process's next rollout; called before the weights are synchronised for it."""
        self._rows = Rows(list(seeds), list(eos_token_ids), list(stop))
        self.temperature, self._step = temperature, step

    def awake(self) -> AbstractContextManager[None]:
        """A block that does nothing: a server never sleeps."""
        return nullcontext()

    def _init_vllm(self) -> None:
        try:
            if self.remote is not None:
                self.remote.begin()
                self.server_base_url = self.remote.http_client.url
            with replaced(vllm_generation, "VLLMClient", self._client):
                super()._init_vllm()
        except ServerError as error:
            raise ServerLost(str(error)) from error

    def _client(self, **kwargs: Any) -> Client:
        assert self.remote is not None
        remote = self.remote
        client = Client(
            remote.http_client,
            run=uuid.uuid4().hex[:12],
            folder=remote.folder,
            seconds_per_batch=remote.seconds_per_batch,
            **kwargs,
        )
        client.sends_adapter, client.keeps_weights = self.sends_adapter, self.is_ahead
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
        assert self._requested is None, "collect what was requested first"
        self._name_seeds()
        return self._until_complete(prompts, images, profiler, send_weights=self.sync_weights)

    def request(self, prompts: list[list[int]]) -> None:
        """Begin the next rollout, as `prepare` has set it, by the weights that were sent last; returns at once, and raises nothing.

        Until `collect` nothing else may be asked of this object. prompts: token ids of this process's rows.
        """
        assert self.is_ahead
        self._name_seeds()
        self._requested = prompts
        # TRL's method gathers the prompts and names the sampling parameters.
        if self.remote is None:
            super().generate(prompts, None, 1)
            return
        self.vllm_client.begins_alone = True
        try:
            super().generate(prompts, None, 1)
        finally:
            self.vllm_client.begins_alone = False

    def collect(self) -> tuple[list[list[int]], list[list[float]]]:
        """Completions and their log-probabilities of what was requested, as soon as they are there.

        A server that failed meanwhile is given the same weights again, from the files that were kept: the trainer's own may be newer.
        Raises: as `generate`; then nothing is requested any more.
        """
        assert self._requested is not None
        prompts, self._requested = self._requested, None
        _, ids, logprobs, _ = self._until_complete(prompts, None, None, send_weights=self._send_weights_again)
        return ids, [[each[0] for each in row] for row in logprobs]

    @property
    def is_in_flight(self) -> bool:
        """True between `request` and `collect`."""
        return self._requested is not None

    def _name_seeds(self) -> None:
        seeds = gather_object(list(self._rows.seeds or []))
        if self.remote is not None:
            self.vllm_client.rows = replace(self._rows, seeds=seeds)

    def _until_complete(self, prompts: Any, images: Any, profiler: Any, *, send_weights: Callable[[], None]) -> Any:
        """TRL's generation, repeated until the server has completed every prompt; before each repetition it is mended and given its weights."""
        # TRL would send each prompt once and ask for n completions; each of our completions has its own seed, so each is a request.
        generated = super().generate(prompts, images, 1, profiler)
        self.num_faults = 0
        while prompts and not generated[1]:
            self.num_faults += 1
            self._mend()
            send_weights()
            generated = super().generate(prompts, images, 1, profiler)
        self.weights_step, self.seconds_to_generate = self._source_of_all()
        return generated

    def _send_weights_again(self) -> None:
        if self.remote is not None:
            self.vllm_client.send_again()

    def _mend(self) -> None:
        """Bring the server back, or raise the same failure on all processes."""
        verdict: list[Any] = [None]
        if self.remote is not None:
            error = self.vllm_client.error
            if isinstance(error, Failure):
                verdict = [error]
            elif self.num_faults > self.max_failures:
                said = f" ({self.remote.server.last_error()})" if self.remote.server else ""
                verdict = [ServerLost(f"the vLLM server failed {self.num_faults} times in a row: {error}{said}")]
            else:
                logger.warning(
                    "step %d: %s; trying again (%d of %d)", self._step + 1, error, self.num_faults, self.max_failures
                )
                self._revive(error)
        broadcast_object_list(verdict, from_process=0)
        if verdict[0] is not None:
            raise verdict[0]

    def _revive(self, error: BaseException | None) -> None:
        assert self.remote is not None
        client = self.vllm_client
        try:
            if not (isinstance(error, StaleWeightsError) and self.remote.http_client.is_healthy()):
                client.close_communicator()
                self.remote.revive()
                client.reach(self.remote.http_client)
                client.init_communicator(device=self.accelerator.device)
        except ServerError as another:
            logger.warning("%s", another)

    def _source_of_all(self) -> tuple[int, float]:
        """On all processes: optimizer steps behind the weights of the last rollout, and the server's seconds."""
        found = [(self.vllm_client.step, self.vllm_client.seconds_to_generate) if self.remote is not None else None]
        broadcast_object_list(found, from_process=0)
        assert found[0] is not None
        return found[0]


@contextmanager
def replaced(module: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """Replace `module.name` within the block: TRL names the classes that it makes in its own code, and takes no others."""
    standing = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, standing)
