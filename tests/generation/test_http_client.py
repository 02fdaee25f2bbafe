"""Servers that are slow, hang, break off or lie: each call ends in its time, with one line that says what was wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="aiohttp comes with vLLM, which is not on the path")

from stub import Stub, reply

from tinyzero_trl.generation.http_client import HttpClient, ServerError

TOKEN = "t" * 43


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    yield made
    made.stop()


FAR = 300.0
"""A deadline in seconds that nothing here should wait for, however busy the machine is."""


def client(stub: Stub, seconds: float = FAR) -> HttpClient:
    return HttpClient(stub.url, token=TOKEN, seconds_per_call=seconds)


@pytest.mark.parametrize("behaviour", ["stall", "drip"])
def test_a_server_that_hangs_or_drips_is_given_up_in_time(stub: Stub, behaviour: str) -> None:
    stub.behave = getattr(stub, behaviour)
    started = time.monotonic()
    with pytest.raises(ServerError, match="no answer in time"):
        client(stub, seconds=0.5).post("/update_weights", {})
    with pytest.raises(ServerError, match="no answer in time"):
        client(stub).post_all("/v1/completions", [{}] * 8, seconds=0.5)
    assert not client(stub).is_healthy(seconds=0.5)
    assert time.monotonic() - started < FAR / 3
    assert len([path for _, path, _ in stub.asked if path == "/update_weights"]) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 401, 404, 307])
def test_what_is_not_200_is_a_fault_and_is_asked_once(stub: Stub, status: int) -> None:
    stub.behave = lambda request: reply(request, status, b"no \x1b[31mweights", Location="http://10.0.0.1/steal")
    with pytest.raises(ServerError, match=f"answered {status}: no") as caught:
        client(stub).post("/update_weights", {})
    assert caught.value.status == status
    assert "\x1b" not in str(caught.value)
    assert len(stub.asked) == 1


def test_a_server_that_is_not_there_or_breaks_off_is_a_fault(stub: Stub) -> None:
    def cut(request: Any) -> None:
        request.connection.close()

    stub.behave = cut
    with pytest.raises(ServerError, match="cannot be reached"):
        client(stub).get("/weight_info")
    with pytest.raises(ServerError, match="cannot be reached"):
        HttpClient("http://127.0.0.1:9", token=TOKEN, seconds_per_call=1).get("/health")
    stub.behave = lambda request: reply(request, 200, b"<html>")
    with pytest.raises(ServerError, match="no JSON"):
        client(stub).get("/weight_info")


def test_every_request_carries_the_token_and_no_header_of_an_answer_moves_the_next(stub: Stub) -> None:
    stub.behave = lambda request: reply(request, 200, {"ok": 1}, X_Forwarded_For="10.0.0.1")
    own = client(stub)
    assert [own.get("/health"), own.post("/x", {})] == [{"ok": 1}] * 2
    own.post_all("/y", [{}, {}], seconds=FAR)
    assert own.url == stub.url
    assert len(stub.asked) == 4
    assert all(headers["Authorization"] == f"Bearer {TOKEN}" for *_, headers in stub.asked)


def test_many_requests_are_on_their_way_at_once_and_their_answers_come_in_order(stub: Stub) -> None:
    four = threading.Barrier(4)  # one after the other, the first would wait for ever

    def work(request: Any) -> None:
        four.wait(timeout=FAR)
        reply(request, 200, {"path": request.path})

    stub.behave = work
    counted: list[Any] = []
    answers = client(stub).post_all("/v1/completions", list(range(40)), seconds=FAR, on_answer=counted.append)
    assert len(answers) == len(counted) == 40


def test_the_first_failure_ends_all_requests(stub: Stub) -> None:
    def work(request: Any) -> None:
        if len(stub.asked) == 3:
            reply(request, 500, b"broken")
        else:
            stub.stall(request)

    stub.behave = work
    started = time.monotonic()
    with pytest.raises(ServerError, match="500: broken"):
        client(stub).post_all("/v1/completions", [{}] * 6, seconds=FAR)
    assert time.monotonic() - started < FAR / 3


def test_a_server_that_hangs_while_it_generates_is_seen_long_before_its_time_is_over(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyzero_trl.generation.http_client.SECONDS_BETWEEN_CHECKS", 0.1)
    stub.behave = stub.stall
    started = time.monotonic()
    with pytest.raises(ServerError, match="no answer in time"):
        client(stub, seconds=0.5).post_all("/v1/completions", [{}], seconds=FAR)
    assert time.monotonic() - started < FAR / 3


def test_a_long_call_to_a_server_that_ends_meanwhile_is_given_up(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM does whose engine was killed: it takes no more calls, and waits without end for the answer to this one."""

    def end(request: Any) -> None:
        reply(request, 503, b"") if request.path == "/health" else stub.stall(request)

    monkeypatch.setattr("tinyzero_trl.generation.http_client.SECONDS_BETWEEN_CHECKS", 0.1)
    stub.behave = end
    started = time.monotonic()
    with pytest.raises(ServerError, match="/health answered 503"):
        client(stub).post("/update_weights", {}, seconds=FAR)
    assert time.monotonic() - started < FAR / 3
    assert stub.count("/update_weights") == 1


def test_an_answer_that_is_no_whole_completion_is_a_fault() -> None:
    pytest.importorskip("vllm", reason="vLLM is not on the path")
    from tinyzero_trl.generation.client import checked_choice

    whole = {"token_ids": [3, 4], "logprobs": {"token_logprobs": [-1.0, -2.0]}, "finish_reason": "stop"}
    assert checked_choice({"choices": [whole]}) == whole
    for change in (
        {"token_ids": []},
        {"token_ids": None},
        {"token_ids": [3]},
        {"logprobs": None},
        {"logprobs": {"token_logprobs": [None, -1.0]}},
        {"finish_reason": "abort"},
    ):
        with pytest.raises(ServerError, match="no whole completion"):
            checked_choice({"choices": [{**whole, **change}]})
    for answer in ({}, {"choices": []}, {"choices": [whole, whole]}, None, []):
        with pytest.raises(ServerError, match="no whole completion"):
            checked_choice(answer)
