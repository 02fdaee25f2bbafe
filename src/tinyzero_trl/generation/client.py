"""TRL's client of a vLLM server, with a deadline for each request, versions of the weights, and a seed for each completion."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from trl.generation.vllm_client import VLLMClient, parse_logprobs

from tinyzero_trl.config import free_port, is_on_this_machine
from tinyzero_trl.failures import Failure, ServerLost
from tinyzero_trl.generation import broadcast
from tinyzero_trl.generation.http_client import HttpClient, ServerError
from tinyzero_trl.generation.plugin import ENGINE
from tinyzero_trl.generation.weights import WeightFolder

BASE_VERSION = "default"
"""vLLM's name of the weights that a server started with."""
DEFAULT_GROUP_PORT = 51216
"""Default of TRL's trainer.vllm_group_port."""
FINISHED = ("stop", "length")
LOST: dict[str, Any] = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "logprob_token_ids": []}
"""Result of `generate` if the server failed: no completion at all, which a working server never returns, so that all processes notice."""


@dataclass
class Rows:
    """Sampling settings of the next completions that TRL does not pass on."""

    seeds: Sequence[int] | None = None
    """One seed for each row; None: the server draws them."""
    eos_token_ids: Sequence[int] = field(default_factory=tuple)
    """Tokens that end a completion; the trainer's own."""
    stop: Sequence[str] = ()
    """Strings that end a completion."""


class StaleWeightsError(ServerError):
    """The server works, but has other weights than the last transfer gave it."""


class ServerTaken(ServerLost):
    """Another run writes its weights into the same server."""


class Client(VLLMClient):
    """Requests of rank 0 to a server: transfer of weights with a version, completions, and the last error.

    Methods that TRL calls keep a ServerError in `error` instead of raising it: the other processes wait in a collective, and all
    must leave it together (server_generation.py).
    """

    group_port: int
    sends_adapter = False
    """True if an adapter alone is transferred, through the folder, and completions are drawn with it; set before `init_communicator`."""
    keeps_weights = False
    """True if the files of a transfer stay until the next one, so that `send_again` can repeat it."""
    begins_alone = False
    """True if `generate` only begins the request, in a thread, and returns LOST; the call after it, with False, waits for the answer."""

    def __init__(
        self, http_client: HttpClient, *, run: str, folder: WeightFolder | None, seconds_per_batch: float, **kwargs: Any
    ):
        """run: name of this trainer in the versions of its weights. folder: where weights are handed over; None transfers by NCCL."""
        self.http_client = http_client
        self.run = run
        self.folder = folder
        self.seconds_per_batch = seconds_per_batch
        self.error: BaseException | None = None
        self.rows = Rows()
        self.version = BASE_VERSION
        """Version of the weights that the server should have."""
        self.num_pushes = 0
        self.num_bytes = 0
        """Bytes of the last transfer."""
        self.seconds_to_generate = 0.0
        """Time of the last request for completions."""
        self._in_flight: Future[dict[str, Any]] | None = None
        self._kept: list[Path] = []
        """The files of the last transfer, or the folder of its adapter."""
        super().__init__(**kwargs)
        # TRL's session repeats POSTs and has no deadline; our methods do not use it.
        self.session.close()
        self.has_port_of_its_own = self.group_port == DEFAULT_GROUP_PORT
        """True if each NCCL group meets at a free port, False if a person named one."""

    def reach(self, http_client: HttpClient) -> None:
        """Use another server from now on, or the same one at another address."""
        self.http_client, self.base_url = http_client, http_client.url

    def check_server(self, total_timeout: float = 0.0, retry_interval: float = 2.0) -> None:
        """Raises: ServerError if the server does not answer. TRL's own check follows an address that any answer may name."""
        self.http_client.get("/health")

    def get_server_info(self) -> dict[str, Any]:
        info = self.http_client.get("/server_info?config_format=json")["vllm_config"]
        assert isinstance(info, dict)
        return info

    def init_communicator(self, device: torch.device | str | int = 0) -> None:
        config = self.get_server_info()
        info = config["weight_transfer_config"]
        backend = info["backend"] if isinstance(info, dict) else "none"
        # A run that sends whole weights to this server would change the weights below another run's adapter.
        if (config["lora_config"] is not None) != self.sends_adapter:
            kinds = ("whole weights", "an adapter")
            takes, sends = kinds[not self.sends_adapter], kinds[self.sends_adapter]
            raise ServerError(
                f"{self.base_url} was started to take {takes}, and this run sends {sends} (generation.lora)"
            )
        wanted = ENGINE if self.folder else "nccl"
        if backend != wanted:
            raise ServerError(
                f"{self.base_url} takes weights by {backend}, and this run sends them by {wanted}; "
                f"start `tinyzero serve` and the run with the same generation.weight_transfer ({wanted}, or {backend})"
            )
        if self.folder is None:
            if is_on_this_machine(self.base_url):
                os.environ["VLLM_HOST_IP"] = "127.0.0.1"  # the rendezvous is not authenticated
            self._open_group(device)

    def _open_group(self, device: torch.device | str | int) -> None:
        """Join an NCCL group with the server. Raises: ServerError after `seconds_per_batch`: NCCL itself waits for a peer for ever."""
        if self.has_port_of_its_own:
            # TRL uses one port for all runs of a machine, and a broken group may still hold it.
            self.group_port = free_port()
        opening = broadcast.in_thread(lambda: super(Client, self).init_communicator(device))
        with self._as_server_error("join the NCCL group (server and trainer need GPUs of their own)"):
            broadcast.wait_for([opening], until=time.monotonic() + self.seconds_per_batch)
            opening.result()

    @contextmanager
    def _as_server_error(self, what: str) -> Iterator[None]:
        """Turns a missed deadline, and an error of NCCL or its rendezvous, into a ServerError: the server did not do `what`."""
        try:
            yield
        except TimeoutError:
            raise ServerError(f"{self.base_url} did not {what} within {self.seconds_per_batch:g} s") from None
        except RuntimeError as error:
            if not isinstance(error, torch.distributed.DistError) and not str(error).startswith("NCCL error"):
                raise
            raise ServerError(f"{self.base_url} did not {what}: {str(error).splitlines()[0]}") from error

    def push(self, step: int) -> str:
        """A new version for the next transfer. Versions are unique, so that an interrupted transfer is not taken for a complete one."""
        self.num_pushes += 1
        self.version = f"{self.run}:{step}:{self.num_pushes}"
        return self.version

    @property
    def step(self) -> int:
        """Optimizer steps behind the weights that the server should have."""
        return int(self.version.split(":")[1])

    def update_named_params(
        self, metadata: list[tuple[str, str, list[int]]], named_params: Iterator[tuple[str, torch.Tensor]]
    ) -> None:
        self.error = None
        try:
            if self.folder is None:
                self._pause()
                self._broadcast(metadata, named_params)
            else:
                # All parameters are written first: other processes gather them along with this one, and must not wait for a server.
                self._kept = self.folder.write(named_params)
                self.num_bytes = sum(file.stat().st_size for file in self._kept)
                self._send_files()
        except (ServerError, Failure) as error:
            self.error = error
        finally:
            for _ in named_params:  # gathered by all processes, also if the server failed before
                pass
            self._remove_files()

    def _send_files(self) -> None:
        self._pause()
        self._start_weight_update()
        for file in self._kept:
            self._post(f"{self.base_url}/update_weights", json={"update_info": {"path": str(file)}})
        self._finish_weight_update()

    def _remove_files(self) -> None:
        if self.folder is not None and not self.keeps_weights:
            self.folder.remove_files()

    def _broadcast(
        self, metadata: list[tuple[str, str, list[int]]], named_params: Iterator[tuple[str, torch.Tensor]]
    ) -> None:
        """Send the parameters by NCCL within `seconds_per_batch`. Raises: ServerError; the NCCL group is then destroyed."""
        until = time.monotonic() + self.seconds_per_batch
        self._start_weight_update()
        names, dtype_names, shapes = (list(values) for values in zip(*metadata, strict=True))
        update = {"names": names, "dtype_names": dtype_names, "shapes": shapes}
        receiving: Future[Any] = broadcast.in_thread(
            lambda: self._post(f"{self.base_url}/update_weights", json={"update_info": update})
        )
        self.num_bytes = 0
        # The loop is outside of the block: an error while parameters are gathered is not the server's.
        for bucket in broadcast.buckets(metadata, named_params, device=self.communicator.device):
            with self._as_server_error("take the weights by NCCL"):
                broadcast.send(self.communicator, bucket, receiving=receiving, until=until)
            self.num_bytes += len(bucket)
            del bucket
        with self._as_server_error("take the weights by NCCL"):
            broadcast.wait_for([receiving], until=until)
            receiving.result()
        self._finish_weight_update()

    def _pause(self) -> None:
        """Abort the requests that a dead client left running: one that meets half of the new weights ends vLLM's engine."""
        self.http_client.post("/pause?mode=abort")

    def update_adapter(self, config: Any, named_params: dict[str, torch.Tensor]) -> None:
        """Transfer an adapter, with which completions are then drawn on the weights that the server started with. Errors: see the class."""
        assert self.folder is not None
        self.error = None
        try:
            path = self.folder.write_adapter(config, named_params)
            self._kept = [path]
            self.num_bytes = sum(file.stat().st_size for file in path.iterdir())
            self._send_adapter()
        except (ServerError, Failure) as error:
            self.error = error
        finally:
            self._remove_files()

    def _send_adapter(self) -> None:
        self._pause()
        # Each adapter has a new name, and completions name it: a server with another adapter cannot answer. The new one evicts the one
        # before. If it replaced that one in place, vLLM would load it again for each request, from a file that is removed.
        body = {"lora_name": self.version, "lora_path": str(self._kept[0])}
        self.http_client.post("/v1/load_lora_adapter", body, seconds=self.seconds_per_batch)
        self.http_client.post("/update_weight_version", {"new_version": self.version})

    def send_again(self) -> None:
        """Repeat the last transfer, whose files `keeps_weights` has kept, under a new version of the same step. Errors: see the class."""
        self.push(self.step)
        self.error = None
        try:
            self._send_adapter() if self.sends_adapter else self._send_files()
        except ServerError as error:
            self.error = error
        self.reset_prefix_cache()

    def _start_weight_update(self) -> None:
        try:
            super()._start_weight_update()
        except ServerError as error:
            if error.status != 500:
                raise
            # A trainer that was killed during a transfer left the server waiting for the rest of it.
            self.http_client.post("/finish_weight_update", {}, seconds=self.seconds_per_batch)
            super()._start_weight_update()

    def _finish_weight_update(self) -> None:
        self._post(f"{self.base_url}/finish_weight_update", json={"weight_version": self.version})

    def reset_prefix_cache(self) -> None:
        """End the transfer: forget prefixes computed by the old weights, and let the server generate again."""
        if self.error is not None:
            return
        try:
            if not self.http_client.post("/reset_prefix_cache")["success"]:
                raise ServerError(f"{self.base_url} keeps the prefix cache of other weights")
            self.http_client.post("/resume")
        except ServerError as error:
            self.error = error

    def weight_version(self) -> str:
        """Version of the weights that the server has. Raises: ServerError."""
        return str(self.http_client.get("/weight_info")["weight_version"])

    def check_version(self) -> None:
        """Raises: StaleWeightsError if the server has other weights than the last transfer gave it; ServerTaken if they are another run's."""
        found = self.weight_version()
        if found == self.version:
            return
        if found != BASE_VERSION and not found.startswith(f"{self.run}:"):
            raise ServerTaken(f"another run writes its weights into {self.base_url}; give each run a server of its own")
        raise StaleWeightsError(f"{self.base_url} has the weights {found!r} in the place of {self.version!r}")

    def generate(self, prompts: Any, features: Any = None, n: int = 1, **settings: Any) -> dict[str, Any]:
        """One completion for each prompt, from a server that has the right weights before and after; LOST if it failed.

        While a request that `begins_alone` began is in flight, no other method may be called.
        """
        if features is not None or n != 1:
            raise NotImplementedError("one completion for each prompt, of text alone")
        if self.begins_alone:
            if self.error is None:  # otherwise the call that waits for the answer finds the error
                self._in_flight = broadcast.in_thread(lambda: self._complete_by_right_weights(prompts, settings))
            return LOST
        in_flight, self._in_flight = self._in_flight, None
        try:
            if self.error is not None:
                raise self.error
            return in_flight.result() if in_flight else self._complete_by_right_weights(prompts, settings)
        except (ServerError, Failure) as error:
            self.error = error
            return LOST

    def _complete_by_right_weights(self, prompts: list[list[int]], settings: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        self.check_version()
        generated = self._complete(prompts, settings)
        self.check_version()
        self.seconds_to_generate = time.perf_counter() - start
        return generated

    def _complete(self, prompts: list[list[int]], settings: dict[str, Any]) -> dict[str, Any]:
        regex = settings.pop("structured_outputs_regex", None)
        own = settings.pop("generation_kwargs", None) or {}
        if regex is not None:
            own = {**own, "structured_outputs": {"regex": regex}}
        model = self.version if self.sends_adapter else self.model
        bodies = request_bodies(model, prompts, self.rows, **settings, **own)
        answers = self.http_client.post_all("/v1/completions", bodies, seconds=self.seconds_per_batch)
        choices = [checked_choice(answer) for answer in answers]
        logprobs, token_ids = parse_logprobs([choice["logprobs"] for choice in choices])
        return {
            "prompt_ids": list(prompts),
            "completion_ids": [choice["token_ids"] for choice in choices],
            "logprobs": logprobs,
            "logprob_token_ids": token_ids,
        }

    def _get(self, url: str, **kwargs: Any) -> Any:
        return self.http_client.get(url.removeprefix(self.base_url))

    def _post(self, url: str, json: Any = None, **kwargs: Any) -> Any:
        return self.http_client.post(url.removeprefix(self.base_url), json, seconds=self.seconds_per_batch)


def request_bodies(model: str, prompts: Sequence[Sequence[int]], rows: Rows, **settings: Any) -> list[dict[str, Any]]:
    """One body of /v1/completions for each prompt. Several prompts in one request would share a seed."""
    seeds: Sequence[int | None] = rows.seeds or [None] * len(prompts)
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts")
    shared = {
        "model": model,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "stop_token_ids": list(rows.eos_token_ids),
        "logprobs": 0,
        **({"stop": list(rows.stop), "include_stop_str_in_output": True} if rows.stop else {}),
        **settings,
    }
    return [
        {**shared, "prompt": list(prompt), **({} if seed is None else {"seed": seed})}
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]


def checked_choice(answer: Any) -> dict[str, Any]:
    """The one completion of an answer. Raises: ServerError if it is empty, cut off, or without its log-probabilities."""
    try:
        (choice,) = answer["choices"]
        ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        is_whole = len(ids) == len(logprobs) > 0 and None not in logprobs and choice["finish_reason"] in FINISHED
    except (KeyError, TypeError, ValueError):
        is_whole = False
    if not is_whole:
        raise ServerError(f"the server answered with no whole completion: {json.dumps(answer, default=str)[:200]}")
    assert isinstance(choice, dict)
    return choice
