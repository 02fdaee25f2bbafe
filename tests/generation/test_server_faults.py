"""Faults between a client and the real server, by a proxy that answers in its place: found in their time, and gone with the next transfer."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("aiohttp", reason="aiohttp comes with vLLM, which is not on the path")

from servers import client_of, gap, push, rows, shaken
from stub import Stub, forward, reply

from tinyzero_trl.generation.http_client import HttpClient, ServerError

SECONDS = 2.0
"""The deadline of what is to fail."""
FAR = 600.0
"""The deadline of what is not, however busy the machine is."""


@pytest.fixture
def proxy(server: Any) -> Iterator[Stub]:
    made = Stub()
    made.forward_to(server.url)
    yield made
    made.stop()


@pytest.fixture
def client(proxy: Stub, server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Reaches the real server through the proxy."""
    monkeypatch.setattr("tinyzero_trl.generation.http_client.SECONDS_BETWEEN_CHECKS", 0.5)
    return client_of(server, http_client=HttpClient(proxy.url, token=server.token_file, seconds_per_call=FAR))


@pytest.fixture
def model(models: Callable[[bool], Path]) -> Any:
    from transformers import AutoModelForCausalLM

    return shaken(AutoModelForCausalLM.from_pretrained(models(True)).eval(), 21)


def assert_is_well_again(client: Any, model: Any) -> None:
    client.seconds_per_batch = FAR
    push(client, shaken(model, 22), step=2)
    assert gap(model, rows(client, 5)) < 1e-4


@pytest.mark.parametrize("path", ["/start_weight_update", "/update_weights", "/finish_weight_update"])
@pytest.mark.parametrize("status", [500, 503])
def test_a_transfer_that_is_refused_is_asked_once_and_never_generated_from(
    path: str, status: int, client: Any, proxy: Stub, server: Any, model: Any
) -> None:
    from tinyzero_trl.generation.client import LOST

    def refuse(request: Any) -> None:
        if request.path.split("?")[0] == path:
            reply(request, status, b"no")
        else:
            forward(request, server.url)

    push(client, model, step=0)
    proxy.asked.clear()
    proxy.behave = refuse
    push(client, shaken(model, 23), step=1, fails=True)
    assert client.error.status == status
    assert proxy.count(path) == 1
    assert rows(client, 1) is LOST
    assert proxy.count("/v1/completions") == 0
    proxy.forward_to(server.url)
    assert_is_well_again(client, model)


@pytest.mark.parametrize("fault", ["stall", "drip", 500, 503, "cut", "freeze api", "freeze engine", "pause"])
def test_a_server_that_fails_in_the_middle_of_a_batch_gives_none_of_it(
    fault: Any, client: Any, proxy: Stub, server: Any, model: Any
) -> None:
    """freeze: SIGSTOP to a process of the real one, so that its sockets stay open. pause: its own /pause, after which /health still says 200."""
    from tinyzero_trl.generation.client import LOST

    once = threading.Lock()
    (api,) = psutil.Process(server._supervisor.pid).children()
    (engine,) = (child for child in api.children() if "spawn_main" in " ".join(child.cmdline()))

    def fail(request: Any) -> None:
        if request.path == "/v1/completions" and once.acquire(blocking=False):
            if isinstance(fault, int):
                return reply(request, fault, b"no")
            if fault == "cut":
                return request.connection.close()
            if fault in ("stall", "drip"):
                return getattr(proxy, fault)(request)
            if fault == "pause":
                server.http_client.post("/pause?mode=keep")
            else:
                (api if fault == "freeze api" else engine).send_signal(signal.SIGSTOP)
        return forward(request, server.url)

    push(client, model, step=0)
    proxy.behave = fail
    client.seconds_per_batch = SECONDS
    started = time.monotonic()
    try:
        assert rows(client, 1) is LOST
        seconds = time.monotonic() - started
        assert fault != "pause" or server.http_client.is_healthy()
    finally:
        api.send_signal(signal.SIGCONT)
        engine.send_signal(signal.SIGCONT)
    assert isinstance(client.error, ServerError)
    assert seconds < FAR / 6
    proxy.forward_to(server.url)
    assert_is_well_again(client, model)


@pytest.mark.parametrize("fault", ["503", "stall", "drip"])
def test_the_time_to_start_is_all_the_time_there_is(fault: str, proxy: Stub, server: Any) -> None:
    from tinyzero_trl.generation.server_generation import Remote

    http_client = HttpClient(proxy.url, token=server.token_file, seconds_per_call=FAR)
    remote = Remote(http_client, None, None, seconds_to_start=SECONDS, seconds_per_batch=FAR)
    proxy.behave = (lambda request: reply(request, 503, b"not yet")) if fault == "503" else getattr(proxy, fault)
    started = time.monotonic()
    with pytest.raises(ServerError, match="not ready within 2 s"):
        remote.begin()
    assert time.monotonic() - started < FAR / 6
    proxy.forward_to(server.url)
    remote.begin()


def test_a_token_that_is_not_the_servers_is_said_at_once(server: Any) -> None:
    with pytest.raises(ServerError, match="answered 401: no token"):
        client_of(server, http_client=HttpClient(server.url, token="x" * 43, seconds_per_call=SECONDS))
