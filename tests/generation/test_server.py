"""Answers of the real server: log-probabilities of the weights it was given last, and nothing at all without the token."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from servers import EOS, PROMPTS, SAMPLING, client_of, gap, push, rows, shaken, start

NUM_UPDATES = 4


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.nightly)], ids=["tied", "untied"])
def test_log_probabilities_are_the_trainers_after_every_update(
    tied: bool, models: Callable[[bool], Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Untied by day: the server of another terminal in test_engines_run.py, whose run compares the same at every step."""
    from transformers import AutoModelForCausalLM

    server = request.getfixturevalue("server") if tied else start(models(False), tmp_path)
    try:
        model = AutoModelForCausalLM.from_pretrained(models(tied), dtype=torch.float32).eval()
        client = client_of(server)
        for update in range(NUM_UPDATES):
            push(client, shaken(model, update), step=update)
            right = gap(model, generated := rows(client, 100 * update))
            assert client.error is None, client.error
            stale = gap(shaken(model, update + 1), generated)
            print(f"update {update}: gap {right:.1e}, with other weights {stale:.1e}, {client.num_bytes} bytes")
            assert right < 1e-4
            assert stale > 0.5, "the weights have to differ for this test to mean anything"
        assert not list(client.folder.path.iterdir())
    finally:
        if not tied:
            server.stop()


def test_equal_seeds_give_equal_completions_whatever_is_beside_them(
    server: Any, models: Callable[[bool], Path]
) -> None:
    from transformers import AutoModelForCausalLM

    from tinyzero_trl.generation.client import Rows

    client = client_of(server)
    push(client, AutoModelForCausalLM.from_pretrained(models(True)), step=0)
    whole = rows(client, 7)["completion_ids"]
    assert rows(client, 7)["completion_ids"] == whole
    assert rows(client, 70)["completion_ids"] != whole
    client.rows = Rows([9, 10], EOS)
    assert client.generate(PROMPTS[2:4], **SAMPLING)["completion_ids"] == whole[2:4]


def test_prompts_that_do_not_fit_into_one_step_of_the_engine_are_drawn_by_their_seeds_too(
    server: Any, models: Callable[[bool], Path]
) -> None:
    from transformers import AutoModelForCausalLM

    from tinyzero_trl.generation.client import Rows

    model = shaken(AutoModelForCausalLM.from_pretrained(models(True)).eval(), 5)
    client = client_of(server)
    push(client, model, step=0)
    prompts = [[5 + (row * 7 + place * place) % 250 for place in range(300 + row)] for row in range(16)]
    client.rows = Rows(list(range(16)), EOS)
    first = client.generate(prompts, **SAMPLING)
    assert client.error is None, client.error
    assert gap(model, first) < 1e-4
    assert client.generate(prompts, **SAMPLING)["completion_ids"] == first["completion_ids"]


def test_a_completion_ends_with_the_trainers_end_token_and_temperature_0_is_greedy(
    server: Any, models: Callable[[bool], Path]
) -> None:
    from transformers import AutoModelForCausalLM

    from tinyzero_trl.generation.client import Rows
    from tinyzero_trl.generation.sampler import sample

    model = shaken(AutoModelForCausalLM.from_pretrained(models(True)).eval(), 3)
    client = client_of(server)
    push(client, model, step=0)
    ends = list(range(0, 262, 7))
    client.rows = Rows(list(range(len(PROMPTS))), ends)
    given = client.generate(PROMPTS, **{**SAMPLING, "temperature": 0.0})["completion_ids"]
    ours = sample(model, PROMPTS, max_new_tokens=24, temperature=0.0, eos_token_ids=ends, pad_token_id=1)
    assert given == ours.completion_ids
    assert any(ids[-1] in ends for ids in given)


def test_the_server_and_the_sampler_end_completions_at_the_same_token_of_a_stop_string(
    server: Any, models: Callable[[bool], Path]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tinyzero_trl.generation.client import Rows
    from tinyzero_trl.generation.sampler import sample
    from tinyzero_trl.models.stop_strings import StopStrings

    model = shaken(AutoModelForCausalLM.from_pretrained(models(True)).eval(), 3)
    client = client_of(server)
    push(client, model, step=0)
    tokenizer = AutoTokenizer.from_pretrained(models(True))
    settings = {"max_new_tokens": 24, "temperature": 0.0, "eos_token_ids": EOS, "pad_token_id": 1}
    whole = sample(model, PROMPTS, **settings).completion_ids
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in whole[:3]]
    stop = sorted({text[place : place + 2] for place, text in enumerate(texts, start=4) if text[place : place + 2]})
    client.rows = Rows(list(range(len(PROMPTS))), EOS, stop)
    given = client.generate(PROMPTS, **{**SAMPLING, "temperature": 0.0})
    ours = sample(model, PROMPTS, **settings, stop=StopStrings(stop, tokenizer))
    assert given["completion_ids"] == ours.completion_ids
    assert ours.completion_ids != whole
    assert [len(rows) for rows in given["logprobs"]] == [len(ids) for ids in ours.completion_ids]


def test_weights_the_server_lost_or_another_run_wrote_are_found_before_and_after_generating(
    server: Any, models: Callable[[bool], Path]
) -> None:
    from transformers import AutoModelForCausalLM

    from tinyzero_trl.generation.client import LOST, ServerTaken, StaleWeightsError

    model = AutoModelForCausalLM.from_pretrained(models(True))
    client, other = client_of(server), client_of(server, run="other")
    push(client, model, step=5)
    assert rows(client, 1) is not LOST
    client.http_client.post("/update_weight_version", {"new_version": "default"})  # what a restart leaves
    assert rows(client, 1) is LOST
    assert isinstance(client.error, StaleWeightsError)
    push(client, model, step=5)
    assert rows(client, 1) is not LOST
    push(other, model, step=5)
    assert rows(client, 1) is LOST
    assert isinstance(client.error, ServerTaken)


def test_a_transfer_that_broke_off_does_not_stand_in_the_way_of_the_next(
    server: Any, models: Callable[[bool], Path]
) -> None:
    from transformers import AutoModelForCausalLM

    from tinyzero_trl.generation.http_client import ServerError

    model = shaken(AutoModelForCausalLM.from_pretrained(models(True)).eval(), 11)
    client = client_of(server)
    client.http_client.post("/start_weight_update", {})  # a trainer that was killed here
    push(client, model, step=1)
    assert gap(model, rows(client, 1)) < 1e-4
    client.http_client.post("/start_weight_update", {})
    with pytest.raises(ServerError, match="500"):
        client.http_client.post("/update_weights", {"update_info": {"path": "/nowhere.safetensors"}})
    push(client, shaken(model, 12), step=2)
    assert gap(model, rows(client, 1)) < 1e-4


def status_of(url: str, method: str, token: str | None) -> int:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(
        url, data=b"{}" if method in ("POST", "PUT") else None, method=method, headers=headers
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_only_with_the_token_can_it_be_told_to_write_a_file(server: Any, tmp_path: Path) -> None:
    from tinyzero_trl.generation.http_client import HttpClient, ServerError

    words = {"method": "save_sharded_state", "kwargs": {"path": str(tmp_path / "sharded")}}
    with pytest.raises(ServerError, match="answered 401"):
        HttpClient(server.url, token="x" * 43, seconds_per_call=20).post("/collective_rpc", words)
    assert not (tmp_path / "sharded").exists()
    (tmp_path / "sharded").mkdir()
    server.http_client.post("/collective_rpc", words)
    assert list((tmp_path / "sharded").iterdir()), "what the token keeps others from"


def test_every_route_but_health_asks_for_the_token(server: Any) -> None:
    from tinyzero_trl.generation.authentication import read_token

    described = server.http_client.get("/openapi.json")["paths"]
    routes = [(path, method.upper()) for path, methods in described.items() for method in methods]
    # Not described, and there: the metrics, the description itself, and what no route is.
    routes += [
        (path, "GET") for path in ("/metrics", "/openapi.json", "/docs", "/redoc", "/nothing", "/health/", "//health")
    ]
    assert len(routes) > 25
    assert {"/pause", "/update_weights", "/collective_rpc", "/v1/completions"} <= {path for path, _ in routes}
    for path, method in routes:
        address = server.url + path.replace("{", "").replace("}", "")
        for token in (None, "x" * 43):
            expected = 200 if path == "/health" else 401
            assert status_of(address, method, token) == expected, f"{method} {path}"
    assert status_of(f"{server.url}/weight_info", "GET", read_token(server.token_file)) == 200


def test_the_token_is_in_no_command_line_environment_or_log_and_only_this_user_can_read_it(server: Any) -> None:
    from tinyzero_trl.generation.authentication import read_token

    token = read_token(server.token_file)
    assert server.token_file.stat().st_mode & 0o777 == 0o600
    assert token not in server.log.read_text()
    for process in family(server):
        assert token not in " ".join(process.cmdline())
        assert token not in " ".join(process.environ().values())


def family(server: Any) -> list[psutil.Process]:
    supervisor = psutil.Process(server._supervisor.pid)
    return [supervisor, *supervisor.children(recursive=True)]


def test_nothing_of_the_server_listens_off_this_machine(server: Any) -> None:
    listening = [
        (process.pid, connection.laddr)
        for process in family(server)
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert any(address.port == server.port for _, address in listening)
    assert {address.ip for _, address in listening} <= {"127.0.0.1", "::1"}, listening


def test_what_the_server_resolved_is_what_was_asked_for(server: Any) -> None:
    info = client_of(server).get_server_info()
    shown = json.dumps(info)
    assert info["model_config"]["logprobs_mode"] == "processed_logprobs"
    assert info["model_config"]["max_model_len"] == 512
    assert "float32" in str(info["model_config"]["dtype"])
    assert info["cache_config"]["enable_prefix_caching"] is True
    assert '"backend": "file"' in shown
