"""TRL's client of a vLLM server, with an end to every call, versions of weights, and a seed for each completion."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from trl.generation.vllm_client import VLLMClient, parse_logprobs

from tinyzero_trl.config import free_port, is_on_this_machine
from tinyzero_trl.failures import Failure, ServerLost
from tinyzero_trl.generation import broadcast
from tinyzero_trl.generation.calls import Calls, ServerFault
from tinyzero_trl.generation.plugin import ENGINE
from tinyzero_trl.generation.weights import WeightFolder

BASE_VERSION = "default"
"""What vLLM calls the weights a server started with."""
DEFAULT_GROUP_PORT = 51216
"""TRL's trainer.vllm_group_port."""
FINISHED = ("stop", "length")
LOST: dict[str, Any] = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "logprob_token_ids": []}
"""What `generate` gives where the server failed: no completion at all, which no server that works gives. All processes see it."""


@dataclass
class Rows:
    """What the next rows of completions are drawn with, beside what TRL says."""

    seeds: Sequence[int] | None = None
    """One for each row; None: the server draws."""
    eos_token_ids: Sequence[int] = field(default_factory=tuple)
    """Tokens that end a completion, as the trainer has them."""
    stop: Sequence[str] = ()
    """Strings that end a completion."""


class StaleFault(ServerFault):
    """The server works, with other weights than it was given last."""


class ServerTaken(ServerLost):
    """Another run uses the same server."""


class Client(VLLMClient):
    """Rank 0's view of a server: which weights it should have, which it has, and what went wrong last.

    Methods that TRL calls do not raise a ServerFault, they keep it in `fault`: the other processes are in collectives, and all have to
    leave by the same door (remote.py).
    """

    group_port: int
    sends_adapter = False
    """Whether an adapter goes by itself, through the folder, and completions are drawn with it; set before `init_communicator`."""

    def __init__(self, calls: Calls, *, run: str, folder: WeightFolder | None, seconds_per_batch: float, **kwargs: Any):
        """run: names this trainer among those that may have written weights into the server. folder: None transfers by NCCL."""
        self.calls = calls
        self.run = run
        self.folder = folder
        self.seconds_per_batch = seconds_per_batch
        self.fault: BaseException | None = None
        self.rows = Rows()
        self.version = BASE_VERSION
        """Of the weights the server has to have."""
        self.num_pushes = 0
        self.num_bytes = 0
        """Of the last transfer."""
        super().__init__(**kwargs)
        # TRL's session repeats POSTs and waits without end; nothing of ours uses it.
        self.session.close()
        self.has_port_of_its_own = self.group_port == DEFAULT_GROUP_PORT
        """True if each NCCL group meets at a free port, False if a person named one."""

    def reach(self, calls: Calls) -> None:
        """Go on with the server that `calls` reaches."""
        self.calls, self.base_url = calls, calls.url

    def check_server(self, total_timeout: float = 0.0, retry_interval: float = 2.0) -> None:
        """Whether it is the server that this run needs. TRL's own follows an address that any answer may name."""
        self.calls.get("/health")

    def get_server_info(self) -> dict[str, Any]:
        info = self.calls.get("/server_info?config_format=json")["vllm_config"]
        assert isinstance(info, dict)
        return info

    def init_communicator(self, device: torch.device | str | int = 0) -> None:
        config = self.get_server_info()
        info = config["weight_transfer_config"]
        backend = info["backend"] if isinstance(info, dict) else "none"
        # So no run of another kind can have changed the weights below an adapter.
        if (config["lora_config"] is not None) != self.sends_adapter:
            kinds = ("whole weights", "an adapter")
            takes, sends = kinds[not self.sends_adapter], kinds[self.sends_adapter]
            raise ServerFault(
                f"{self.base_url} was started to take {takes}, and this run sends {sends} (generation.lora)"
            )
        wanted = ENGINE if self.folder else "nccl"
        if backend != wanted:
            raise ServerFault(
                f"{self.base_url} takes weights by {backend}, and this run sends them by {wanted}; "
                f"start `tinyzero serve` and the run with the same generation.weight_transfer ({wanted}, or {backend})"
            )
        if self.folder is None:
            if is_on_this_machine(self.base_url):
                os.environ["VLLM_HOST_IP"] = "127.0.0.1"  # the rendezvous is not authenticated
            self._open_group(device)

    def _open_group(self, device: torch.device | str | int) -> None:
        """Raises: ServerFault where the server does not join in `seconds_per_batch`: NCCL waits for a peer without end."""
        if self.has_port_of_its_own:
            # TRL's is one for all runs of a machine, and one that a broken group may still hold.
            self.group_port = free_port()
        opening = broadcast.in_thread(lambda: super(Client, self).init_communicator(device))
        with self._nccl_faults("join the NCCL group (server and trainer need GPUs of their own)"):
            broadcast.wait_for([opening], until=time.monotonic() + self.seconds_per_batch)
            opening.result()

    @contextmanager
    def _nccl_faults(self, what: str) -> Iterator[None]:
        """Raises: ServerFault in the place of a deadline that passed, or of an error of NCCL or its rendezvous."""
        try:
            yield
        except TimeoutError:
            raise ServerFault(f"{self.base_url} did not {what} within {self.seconds_per_batch:g} s") from None
        except RuntimeError as error:
            if not isinstance(error, torch.distributed.DistError) and not str(error).startswith("NCCL error"):
                raise
            raise ServerFault(f"{self.base_url} did not {what}: {str(error).splitlines()[0]}") from error

    def push(self, step: int) -> str:
        """The version of the next transfer, which no other has: a transfer that broke off must not pass for a whole one."""
        self.num_pushes += 1
        self.version = f"{self.run}:{step}:{self.num_pushes}"
        return self.version

    def update_named_params(
        self, metadata: list[tuple[str, str, list[int]]], named_params: Iterator[tuple[str, torch.Tensor]]
    ) -> None:
        self.fault = None
        try:
            if self.folder is None:
                self._pause()
                self._broadcast(metadata, named_params)
            else:
                # All parameters first: other processes gather them along with this one, and no server is to keep them waiting.
                files = self.folder.write(named_params)
                self.num_bytes = sum(file.stat().st_size for file in files)
                self._pause()
                self._start_weight_update()
                for file in files:
                    self._post(f"{self.base_url}/update_weights", json={"update_info": {"path": str(file)}})
                self._finish_weight_update()
        except (ServerFault, Failure) as fault:
            self.fault = fault
        finally:
            for _ in named_params:  # where the server failed before all were taken
                pass
            if self.folder is not None:
                self.folder.remove_files()

    def _broadcast(
        self, metadata: list[tuple[str, str, list[int]]], named_params: Iterator[tuple[str, torch.Tensor]]
    ) -> None:
        """Send the parameters by NCCL within `seconds_per_batch`. Raises: ServerFault; the group is then gone."""
        until = time.monotonic() + self.seconds_per_batch
        self._start_weight_update()
        names, dtype_names, shapes = (list(values) for values in zip(*metadata, strict=True))
        update = {"names": names, "dtype_names": dtype_names, "shapes": shapes}
        receiving: Future[Any] = broadcast.in_thread(
            lambda: self._post(f"{self.base_url}/update_weights", json={"update_info": update})
        )
        self.num_bytes = 0
        # Outside of the block: what fails while parameters are gathered is no fault of the server.
        for bucket in broadcast.buckets(metadata, named_params, device=self.communicator.device):
            with self._nccl_faults("take the weights by NCCL"):
                broadcast.send(self.communicator, bucket, receiving=receiving, until=until)
            self.num_bytes += len(bucket)
            del bucket
        with self._nccl_faults("take the weights by NCCL"):
            broadcast.wait_for([receiving], until=until)
            receiving.result()
        self._finish_weight_update()

    def _pause(self) -> None:
        """End what a client that is gone still has running: it would meet half of the new weights, which ends vLLM's engine."""
        self.calls.post("/pause?mode=abort")

    def update_adapter(self, config: Any, named_params: dict[str, torch.Tensor]) -> None:
        """Have completions drawn with this adapter on the weights the server started with; as `update_named_params`."""
        assert self.folder is not None
        self.fault = None
        try:
            path = self.folder.write_adapter(config, named_params)
            self.num_bytes = sum(file.stat().st_size for file in path.iterdir())
            self._pause()
            # A new name each time, and completions are asked of it: a server that has another adapter has no answer. The one before goes
            # from memory as this one comes. Loaded in its place, vLLM would load it anew for each request, from a file that is gone.
            body = {"lora_name": self.version, "lora_path": str(path)}
            self.calls.post("/v1/load_lora_adapter", body, seconds=self.seconds_per_batch)
            self.calls.post("/update_weight_version", {"new_version": self.version})
        except (ServerFault, Failure) as fault:
            self.fault = fault
        finally:
            self.folder.remove_files()

    def _start_weight_update(self) -> None:
        try:
            super()._start_weight_update()
        except ServerFault as fault:
            if fault.status != 500:
                raise
            # A trainer that was killed in the middle of a transfer left the server waiting for the rest of it.
            self.calls.post("/finish_weight_update", {}, seconds=self.seconds_per_batch)
            super()._start_weight_update()

    def _finish_weight_update(self) -> None:
        self._post(f"{self.base_url}/finish_weight_update", json={"weight_version": self.version})

    def reset_prefix_cache(self) -> None:
        """What a transfer ends with: the server generates again."""
        if self.fault is not None:
            return
        try:
            if not self.calls.post("/reset_prefix_cache")["success"]:
                raise ServerFault(f"{self.base_url} keeps the prefix cache of other weights")
            self.calls.post("/resume")
        except ServerFault as fault:
            self.fault = fault

    def weight_version(self) -> str:
        """Of the weights the server has. Raises: ServerFault."""
        return str(self.calls.get("/weight_info")["weight_version"])

    def check_version(self) -> None:
        """Raises: ServerFault where the server has other weights than it was given; Failure where another run gave it its own."""
        found = self.weight_version()
        if found == self.version:
            return
        if found != BASE_VERSION and not found.startswith(f"{self.run}:"):
            raise ServerTaken(f"another run writes its weights into {self.base_url}; give each run a server of its own")
        raise StaleFault(f"{self.base_url} has the weights {found!r} in the place of {self.version!r}")

    def generate(self, prompts: Any, features: Any = None, n: int = 1, **settings: Any) -> dict[str, Any]:
        """One completion for each prompt as it comes, drawn by weights that were the right ones before and after; LOST where it failed."""
        if features is not None or n != 1:
            raise NotImplementedError("rows come one by one, and are text")
        try:
            if self.fault is not None:
                raise self.fault
            self.check_version()
            generated = self._complete(prompts, settings)
            self.check_version()
        except (ServerFault, Failure) as fault:
            self.fault = fault
            return LOST
        return generated

    def _complete(self, prompts: list[list[int]], settings: dict[str, Any]) -> dict[str, Any]:
        regex = settings.pop("structured_outputs_regex", None)
        own = settings.pop("generation_kwargs", None) or {}
        if regex is not None:
            own = {**own, "structured_outputs": {"regex": regex}}
        model = self.version if self.sends_adapter else self.model
        bodies = request_bodies(model, prompts, self.rows, **settings, **own)
        answers = self.calls.together("/v1/completions", bodies, seconds=self.seconds_per_batch)
        choices = [checked_choice(answer) for answer in answers]
        logprobs, token_ids = parse_logprobs([choice["logprobs"] for choice in choices])
        return {
            "prompt_ids": list(prompts),
            "completion_ids": [choice["token_ids"] for choice in choices],
            "logprobs": logprobs,
            "logprob_token_ids": token_ids,
        }

    def _get(self, url: str, **kwargs: Any) -> Any:
        return self.calls.get(url.removeprefix(self.base_url))

    def _post(self, url: str, json: Any = None, **kwargs: Any) -> Any:
        return self.calls.post(url.removeprefix(self.base_url), json, seconds=self.seconds_per_batch)


def request_bodies(model: str, prompts: Sequence[Sequence[int]], rows: Rows, **settings: Any) -> list[dict[str, Any]]:
    """The body of /v1/completions for each prompt. A list of prompts in one request would share one seed."""
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
    """The one completion of an answer. Raises: ServerFault where it is none: empty, cut off, without its log-probabilities."""
    try:
        (choice,) = answer["choices"]
        ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        is_whole = len(ids) == len(logprobs) > 0 and None not in logprobs and choice["finish_reason"] in FINISHED
    except (KeyError, TypeError, ValueError):
        is_whole = False
    if not is_whole:
        raise ServerFault(f"the server answered with no whole completion: {json.dumps(answer, default=str)[:200]}")
    assert isinstance(choice, dict)
    return choice
