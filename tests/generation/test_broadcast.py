"""The transfer by NCCL, with a communicator that stands in for the GPUs: what is gathered when, and what ends a broadcast that hangs."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stub import Stub, reply

from tinyzero_trl.generation import broadcast
from tinyzero_trl.generation.http_client import HttpClient, ServerError

PARAMS = {f"layers.{i}.weight": torch.full((4, 8), float(i), dtype=torch.float32) for i in range(5)} | {
    "head": torch.arange(6, dtype=torch.bfloat16)
}
METADATA = [(name, str(p.dtype).removeprefix("torch."), list(p.shape)) for name, p in PARAMS.items()]


class Group:
    """Stands in for PyNcclCommunicator: notes what it broadcasts; one that hangs returns only when it is aborted."""

    device = torch.device("cpu")

    def __init__(self, events: list[str], *, hangs_at: int | None = None):
        self.events, self.hangs_at = events, hangs_at
        self.sent: list[torch.Tensor] = []
        self.is_aborted = threading.Event()
        self.group = SimpleNamespace(store=object(), socket=object())

    def broadcast(self, bucket: torch.Tensor, src: int) -> None:
        assert src == 0
        self.events.append(f"broadcast {len(self.sent)}")
        if len(self.sent) == self.hangs_at:
            self.is_aborted.wait()
            raise RuntimeError("NCCL error: remote process exited or there was a network error")
        self.sent.append(bucket.clone())

    def destroy(self) -> None:
        self.is_aborted.set()


def gathered(events: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """As under ZeRO-3: a collective for each parameter, which is gone when the next is asked for."""
    for name, parameter in PARAMS.items():
        events.append(f"gather {name}")
        whole = parameter.clone()
        yield name, whole
        whole.fill_(float("nan"))


def client(stub: Stub, group: Group, *, seconds: float = 300.0, **of_trl: Any) -> Any:
    """A client whose NCCL group is open; what it asks over HTTP is answered by `stub`."""
    from tinyzero_trl.generation.client import Client

    stub.behave = lambda request: reply(request, 200, {"data": [{"id": "model"}]})
    http_client = HttpClient(stub.url, token="t" * 32, seconds_per_call=5.0)
    made = Client(http_client, run="test", folder=None, seconds_per_batch=seconds, base_url=stub.url, **of_trl)
    made.communicator = group
    made.push(1)
    return made


@pytest.fixture
def stub() -> Iterator[Stub]:
    running = Stub()
    yield running
    running.stop()


def test_every_parameter_of_a_bucket_is_gathered_before_the_bucket_is_sent(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No collective of the trainer's runs between the two ends of a broadcast."""
    monkeypatch.setattr(broadcast.buckets, "__kwdefaults__", {"bucket_bytes": 200})
    events: list[str] = []
    group = Group(events)
    made = client(stub, group)
    made.update_named_params(METADATA, gathered(events))
    assert made.error is None
    names = [f"gather {name}" for name in PARAMS]
    assert events == [*names[:2], "broadcast 0", *names[2:4], "broadcast 1", *names[4:], "broadcast 2"]
    arrived = torch.cat(group.sent)
    assert torch.equal(arrived, torch.cat([p.reshape(-1).view(torch.uint8) for p in PARAMS.values()]))
    assert made.num_bytes == len(arrived)
    assert [path for _, path, _ in stub.asked if "weight" in path] == [
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
    ]


@pytest.mark.parametrize("hangs_at", [0, 1])
def test_a_peer_that_dies_in_mid_broadcast_is_a_fault_after_the_deadline_and_not_a_hang(
    stub: Stub, hangs_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcast.buckets, "__kwdefaults__", {"bucket_bytes": 200})
    events: list[str] = []
    group = Group(events, hangs_at=hangs_at)
    made = client(stub, group, seconds=1.0)
    stub.behave = lambda request: (stub.stall if request.path == "/update_weights" else reply_empty)(request)
    began = time.monotonic()
    made.update_named_params(METADATA, gathered(events))
    assert time.monotonic() - began < 100, "the stub holds its answer back for 900 s"
    assert isinstance(made.error, ServerError)
    assert group.is_aborted.is_set()
    assert [event for event in events if event.startswith("gather")] == [f"gather {name}" for name in PARAMS], (
        "the other processes gather all of them"
    )
    assert stub.count("/finish_weight_update") == 0, "half of the weights are no weights"
    generated = made.generate([[1, 2]], temperature=1.0)
    assert generated["completion_ids"] == [], "all processes see that the server is lost"


def test_a_server_that_refuses_the_transfer_ends_the_broadcast_at_once(stub: Stub) -> None:
    group = Group([], hangs_at=0)
    made = client(stub, group)
    stub.behave = lambda request: reply(request, 500 if request.path == "/update_weights" else 200, {})
    began = time.monotonic()
    made.update_named_params(METADATA, gathered([]))
    assert time.monotonic() - began < 100, "300 s are the deadline"
    assert isinstance(made.error, ServerError)
    assert made.error.status == 500
    assert group.is_aborted.is_set()


def test_what_fails_while_parameters_are_gathered_is_not_called_a_fault_of_the_server(stub: Stub) -> None:
    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield from list(PARAMS.items())[:1]
        raise RuntimeError("NCCL error in: the trainer's own group")

    with pytest.raises(RuntimeError, match="the trainer's own group"):
        client(stub, Group([])).update_named_params(METADATA, broken())


def test_a_group_that_a_server_never_joins_is_a_fault_after_the_deadline(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.generation.vllm_client import VLLMClient

    from tinyzero_trl.generation.client import Client

    never = threading.Event()
    monkeypatch.setattr(VLLMClient, "init_communicator", lambda self, device: never.wait())
    config = {"weight_transfer_config": {"backend": "nccl"}, "lora_config": None}
    made = client(stub, Group([]), seconds=0.3)
    stub.behave = lambda request: reply(request, 200, {"vllm_config": config})
    with pytest.raises(ServerError, match="did not join the NCCL group"):
        Client.init_communicator(made, "cuda:0")
    config["weight_transfer_config"] = {"backend": "file"}
    with pytest.raises(ServerError, match="same generation.weight_transfer"):
        Client.init_communicator(made, "cuda:0")


@pytest.mark.parametrize("named", [None, 40123])
def test_each_group_meets_at_a_free_port_unless_one_is_named(
    named: int | None, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL's default is one for all runs of a machine; a person behind a firewall names one."""
    from trl.generation.vllm_client import VLLMClient

    ports: list[int] = []
    monkeypatch.setattr(VLLMClient, "init_communicator", lambda self, device: ports.append(self.group_port))
    made = client(stub, Group([]), **({} if named is None else {"group_port": named}))
    made._open_group("cuda:0")
    made._open_group("cuda:0")
    assert (51216 in ports, ports == [40123, 40123]) == (False, named is not None)


def reply_empty(request: Any) -> None:
    reply(request, 200, {})


@pytest.mark.parametrize("bucket_bytes", [1, 100, 300, 10**6])
def test_buckets_end_where_the_receiver_of_vllm_ends_them(bucket_bytes: int) -> None:
    from vllm.distributed.weight_transfer import packed_tensor

    assert packed_tensor.DEFAULT_PACKED_BUFFER_SIZE_BYTES == broadcast.BUCKET_BYTES
    left, theirs = iter(PARAMS.items()), []
    while (chunk := packed_tensor.pack_tensors(left, lambda item: item[1], bucket_bytes)) is not None:
        theirs.append(chunk.packed_tensor)
    ours = list(broadcast.buckets(METADATA, iter(PARAMS.items()), device="cpu", bucket_bytes=bucket_bytes))
    assert len(ours) == len(theirs)
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_the_communicator_of_vllm_is_aborted_by_nccl_itself() -> None:
    from vllm.distributed.device_communicators import pynccl

    assert "ncclCommAbort" in inspect.getsource(pynccl.PyNcclCommunicator.destroy)
